"""Does the model do what it is told? Constant commands from the same start, and how the pictures move under each.

Every rollout starts from the same true context and differs in its commands alone: say `turn left`, `turn right`,
`still`. Commands move from the last true one to the wanted ones no faster than commands do in the data, so that nothing
the model sees is out of the ordinary. What the pictures then do is measured, not judged by eye: how far they shift
sideways from step to step and how much they expand, beside what the camera's pictures do under such commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.data.store import Store
from hwm.devices import Runtime, runtime_of
from hwm.errors import HwmError, unknown
from hwm.evaluate.camera import camera_video, decode, episode_of
from hwm.evaluate.predict import judged
from hwm.evaluate.swaps import action_bounds
from hwm.evaluate.uncertainty import Estimate, estimate
from hwm.evaluate.views import first_view
from hwm.models.base import WorldModel
from hwm.pictures.stack import side_by_side
from hwm.pictures.video import to_uint8
from hwm.progress import track
from hwm.types import Batch, Tokenizer

MOTIONS = ("shift", "expansion")
"""`shift`: pixels a step that the picture moves to the right (turning left does that).
`expansion`: pixels a step by which its right half moves further right than its left (driving forward does that)."""


@dataclass
class Obedience:
    """What the pictures did under each command. N starts, T steps, M motions in the order of `MOTIONS`.

    Attributes:
        asked: command -> action name -> value, as given.
        told: the same within the range of the data: what the model was told.
        motion: command -> (N, T, M) pixels a step.
        expected: command -> (M,) pixels a step that the camera would show, or None where that is not known.
        episodes: (N,) which episode each start is from: standard errors are clustered by it.
        videos: command -> (N, F, H, W, 3) uint8, context and prediction.
        context: how many of the frames are context.
        steps_per_second, frames_per_step: of the latents.
    """

    asked: dict[str, dict[str, float]]
    told: dict[str, dict[str, float]]
    motion: dict[str, np.ndarray]
    expected: dict[str, np.ndarray] | None
    episodes: np.ndarray
    videos: dict[str, np.ndarray]
    context: int
    steps_per_second: float
    frames_per_step: int

    @property
    def starts(self) -> int:
        return len(next(iter(self.motion.values())))

    def mean(self, command: str, motion: str = "shift") -> Estimate:
        """Pixels a step under a command, averaged over starts and steps, with its standard error."""
        return estimate(self.motion[command][..., MOTIONS.index(motion)].mean(1), self.episodes)

    def by_step(self, command: str, motion: str = "shift") -> list[float]:
        """Pixels a step under a command, averaged over starts, by step."""
        return [float(x) for x in self.motion[command][..., MOTIONS.index(motion)].mean(0)]

    def contrast(self, one: str, other: str, motion: str = "shift") -> Estimate:
        """How much more the picture moves under `one` than under `other`, start by start, with its standard error."""
        m = MOTIONS.index(motion)
        return estimate((self.motion[one] - self.motion[other])[..., m].mean(1), self.episodes)

    def response(self, motion: str = "shift") -> Estimate | None:
        """How far the picture moves for what the camera would: 1 as far, 0 not at all, below 0 the wrong way.

        Pairs of commands that should differ in this motion more than in the others are compared: the slope, through
        the origin, of the difference that was predicted on the difference that the camera would show, with its standard
        error. None when no such pair should differ by a quarter of a pixel a step.
        """
        if self.expected is None:
            return None
        m = MOTIONS.index(motion)
        expected, moved = [], []
        for one, other in combinations(self.motion, 2):
            difference = self.expected[one] - self.expected[other]
            if np.abs(difference).argmax() == m:
                expected.append(difference[m])
                moved.append((self.motion[one] - self.motion[other])[..., m].mean(1))
        if not expected or max(np.abs(expected)) < 0.25:
            return None
        e = np.array(expected)
        return estimate(e @ np.stack(moved) / (e @ e), self.episodes)

    def json(self) -> dict[str, Any]:
        """Plain values for a report or a file."""
        return {
            "starts": self.starts,
            "commands": {
                c: {
                    "asked": self.asked[c],
                    "told": self.told[c],
                    **{m: round(self.mean(c, m).mean, 4) for m in MOTIONS},
                    **{f"{m}_by_step": [round(x, 4) for x in self.by_step(c, m)] for m in MOTIONS},
                    **(
                        {}
                        if self.expected is None
                        else {f"{m}_of_camera": round(float(self.expected[c][i]), 4) for i, m in enumerate(MOTIONS)}
                    ),
                }
                for c in self.motion
            },
            "response": {m: None if r is None else round(r.mean, 4) for m in MOTIONS for r in [self.response(m)]},
        }


def obey(
    model: WorldModel,
    tokenizer: Tokenizer,
    clips: Clips,
    commands: Mapping[str, Mapping[str, float]],
    *,
    starts: int = 4,
    prompt: int | None = None,
    steps: int = 12,
    ramp: Mapping[str, float] | None = None,
    reference: int = 32,
    seed: int = 0,
    sampler: Any = None,
    dtype: str | torch.dtype = "auto",
    progress: bool = False,
) -> Obedience:
    """Roll out from the same starts under each command, and measure how the pictures move.

    Args:
        commands: name -> {action name: value in the robot's units}; actions that are not named keep their last value.
        starts: windows to start from, spread evenly over the clips.
        prompt: context frames (latent steps); None is all that the model looks back on.
        ramp: the most that an action may change from one slot to the next; None takes what is usual in the data.
        reference: windows of the data from which to learn what the camera does under commands; 0 leaves it out.
        dtype: number format of the model's matrix products, as of `EvaluateConfig`.
        progress: show how far it is and how long it still takes.

    Raises:
        HwmError: an unknown action, or windows shorter than the context.
    """
    prompt = model.config.past if prompt is None else prompt
    _check(clips, prompt, commands)
    runtime = runtime_of(model, dtype)
    indices = clips.spread(starts)
    context = clips.batch(indices).window(0, prompt, prompt)
    limit = _limit(clips.store, ramp or {})
    targets, told = _targets(clips.store, context, commands)
    motion, videos, views = {}, {}, tokenizer.latent.views
    with judged(model):
        asked = targets.items()
        for command, target in track(asked, len(asked), "commands", starts, "rollouts") if progress else asked:
            actions = torch.cat([context.actions, ramp_to(context.actions, target, limit, steps)], 1)
            latents = _rolled_out(model, runtime, replace(context, actions=actions, following=None), sampler, seed)
            video = decode(tokenizer, latents).cpu()
            motion[command] = motion_by_step(first_view(video, views), tokenizer.latent.stride)[:, prompt - 1 :].numpy()
            videos[command] = side_by_side(to_uint8(video), len(views))
        expected = expectation(tokenizer, clips, told, reference) if reference else None
    spec = clips.spec()
    return Obedience(
        asked={c: dict(w) for c, w in commands.items()},
        told=told,
        motion=motion,
        expected=expected,
        episodes=np.array([episode_of(clips, int(i)).id for i in indices]),
        videos=videos,
        context=spec.latent.frames(prompt),
        steps_per_second=spec.fps,
        frames_per_step=spec.latent.stride,
    )


def _rolled_out(model: WorldModel, runtime: Runtime, batch: Batch, sampler: Any, seed: int) -> Tensor:
    """Latents of the context and of what the model makes of the actions that follow."""
    batch, generator = batch.to(runtime.device), torch.Generator(runtime.device).manual_seed(seed)
    with runtime.autocast():
        made = model.rollout(batch, sampler=sampler, generator=generator)
    return torch.cat([batch.latents, made.latents], 1)


def _limit(store: Store, ramp: Mapping[str, float]) -> Tensor:
    """The most that each action may change from one slot to the next, (A,): what is usual, or what `ramp` says."""
    limit = usual_changes(store)
    for name, value in ramp.items():
        limit[store.header.action_names.index(name)] = value
    return limit


def _check(clips: Clips, prompt: int, commands: Mapping[str, Mapping[str, float]]) -> None:
    if clips.length < prompt:
        raise HwmError(f"windows of {clips.length} steps are too short for {prompt} steps of context")
    if not commands:
        raise HwmError("obey needs at least one command, such as turn_left={'ANGULAR_VELOCITY': 1.0}")
    names = clips.store.header.action_names
    for wanted in commands.values():
        for name in wanted:
            if name not in names:
                raise unknown("action", name, names)


def _targets(
    store: Store, context: Batch, commands: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """By command, the actions to approach from each start, (N, A), and those that it names, within the data's range."""
    names, bounds = store.header.action_names, action_bounds(store)
    targets, told = {}, {}
    for command, wanted in commands.items():
        target = context.actions[:, -1, -1].clone()
        for name, value in wanted.items():
            target[:, names.index(name)] = value
        targets[command] = bounds.clip(target)
        told[command] = {name: float(targets[command][0, names.index(name)]) for name in wanted}
    return targets, told


def ramp_to(actions_NTKA: Tensor, target_NA: Tensor, limit_A: Tensor, steps: int) -> Tensor:
    """Actions of the next steps, (N, steps, K, A): from the last one to the target, at most `limit` a slot."""
    per_step = actions_NTKA.shape[2]
    now = actions_NTKA[:, -1, -1]
    slots = []
    for _ in range(steps * per_step):
        now = now + torch.clamp(target_NA - now, -limit_A, limit_A)
        slots.append(now)
    return torch.stack(slots, 1).unflatten(1, (steps, per_step))


def usual_changes(store: Store, share: float = 0.99, rows: int = 100_000) -> Tensor:
    """How fast commands change, (A,): a bound that this share of the changes from slot to slot keeps.

    At least a fiftieth of the range, so that a command which seldom changes can still be given.
    """
    part = np.asarray(store.actions[:rows], np.float64)
    same = np.asarray(store.segments[: len(part)])
    within = np.abs(np.diff(part, axis=1)).reshape(-1, part.shape[2])
    between = np.abs(part[1:, 0] - part[:-1, -1])[same[1:] == same[:-1]]
    changes = np.concatenate([within, between])
    usual = np.quantile(changes, share, axis=0) if len(changes) else np.zeros(part.shape[2])
    bounds = action_bounds(store)
    return torch.maximum(torch.from_numpy(usual).float(), (bounds.high - bounds.low) / 50)


def expectation(
    tokenizer: Tokenizer, clips: Clips, told: Mapping[str, Mapping[str, float]], windows: int
) -> dict[str, np.ndarray] | None:
    """How the camera's pictures move under each command, in pixels a step: command -> (M,).

    Learnt from the data by robust linear regression: motion between neighbouring steps against the mean command of the
    step, for the actions that any command names, and against the change of every action (a turning waist moves the
    picture too). None when the data have too few steps for that.
    """
    names = clips.store.header.action_names
    used = sorted({names.index(name) for wanted in told.values() for name in wanted})
    std = np.maximum(clips.store.statistics[1], 1e-6)
    indices = clips.spread(windows)
    values, changes, moved = [], [], []
    for index in indices:
        batch = clips.batch([index])
        if clips.store.has_video:
            video = camera_video(clips, np.array([index]), clips.length, tokenizer.size)
        else:
            video = decode(tokenizer, batch.latents).cpu()
        seen = first_view(video, tokenizer.latent.views)
        moved.append(motion_by_step(seen, tokenizer.latent.stride)[0].double().numpy())
        mean_TA = batch.actions[0].mean(1).double().numpy()
        values.append(mean_TA[1:, used])
        changes.append(np.diff(mean_TA, axis=0) / std)
    value, change, motion = np.concatenate(values), np.concatenate(changes), np.concatenate(moved)
    if len(motion) < 4 * (len(used) + change.shape[1] + 1):
        return None
    slope = _robust_slopes(np.c_[value, np.ones(len(value)), change], motion)[: len(used) + 1]
    usual = value.mean(0)
    return {
        command: np.r_[[wanted.get(names[i], usual[n]) for n, i in enumerate(used)], 1.0] @ slope
        for command, wanted in told.items()
    }


def _robust_slopes(inputs_NP: np.ndarray, outputs_NM: np.ndarray, rounds: int = 20) -> np.ndarray:
    """Linear regression with Huber's weights, (P, M): steps that do not fit the line count less."""
    out = []
    ridge = 1e-3 * len(inputs_NP) * np.diag(inputs_NP.std(0) > 0) + 1e-9 * np.eye(inputs_NP.shape[1])
    for y in outputs_NM.T:
        weight = np.ones(len(y))
        for _ in range(rounds):
            weighted = inputs_NP * weight[:, None]
            slope = np.linalg.solve(weighted.T @ inputs_NP + ridge, weighted.T @ y)
            error = np.abs(y - inputs_NP @ slope)
            weight = np.minimum(1, 1.345 * 1.4826 * np.median(error) / np.maximum(error, 1e-9) + 1e-6)
        out.append(slope)
    return np.stack(out, 1)


def motion_by_step(video_BFCHW: Tensor, stride: int) -> Tensor:
    """`MOTIONS` from step to step in pixels, (B, T - 1, 2), between the last frames of neighbouring steps."""
    grey = video_BFCHW.float().mean(2)[:, ::stride]
    before, after = grey[:, :-1], grey[:, 1:]
    half = grey.shape[-1] // 2
    right = horizontal_shift(before[..., half:], after[..., half:])
    left = horizontal_shift(before[..., :half], after[..., :half])
    return torch.stack([horizontal_shift(before, after), right - left], -1)


def horizontal_shift(before: Tensor, after: Tensor, finer: int = 8) -> Tensor:
    """Pixels by which a grey picture moved to the right, (..., H, W) twice -> (...), to 1/`finer` of a pixel.

    Phase correlation (Kuglin and Hines, 1975): the whitened cross-power spectrum of the two pictures transforms back
    into a peak at the shift. The peak is looked for up to a third of the width to either side; it may lie up to a sixth
    of the height up or down, so that nodding does not disturb. Whitening is soft and high frequencies are damped, since
    predictions are blurred. A picture without structure has shift 0.
    """
    height, width = before.shape[-2:]
    window = _hann(height).to(before)[:, None] * _hann(width).to(before)

    def spectrum(x: Tensor) -> Tensor:
        return torch.fft.rfft2((x - x.mean((-2, -1), keepdim=True)) * window)

    cross = spectrum(before).conj() * spectrum(after)
    size = cross.abs()
    largest = size.amax((-2, -1), keepdim=True)
    frequency = torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width) ** 2
    white = cross / (size + 0.1 * largest + 1e-12) * torch.exp(-0.5 * frequency / 0.12**2).to(before)
    # a longer inverse transform is one on a finer grid
    peak = torch.fft.irfft(torch.fft.ifft(white, dim=-2), width * finer)
    most, nod = width * finer // 3, height // 6
    peak = torch.cat([peak[..., -nod:, :], peak[..., : nod + 1, :]], -2).amax(-2)
    peak = torch.cat([peak[..., -most:], peak[..., : most + 1]], -1)
    shift = (peak.argmax(-1) - most).to(before) / finer
    return torch.where(largest[..., 0, 0] > 1e-6 * width * height, shift, torch.zeros_like(shift))


def _hann(size: int) -> Tensor:
    return torch.hann_window(size + 2, periodic=False)[1:-1]
