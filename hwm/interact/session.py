"""A world to act in: reset it to a start, step it by actions, see what happens. It exists only in the model.

    session = Session.open("masked_hwm_mini")
    session.reset("start:3", seed=0)
    for _ in range(20):
        frames = session.step({"LINEAR_VELOCITY": 0.5})
    session.write_video("drive.mp4")

A session asks neither its model nor its tokenizer what they are. Its randomness is a function of its seed and of the
step alone, so that the same start, seed and actions give the same steps, whoever is stepped beside it and however often
it went back; only rounding can differ, where several sessions are computed as one batch, on another device or machine,
or in another number format.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.devices import open_runtime, runtime_of
from hwm.errors import HwmError
from hwm.interact.limits import Action, Limits
from hwm.interact.replay import Replay
from hwm.interact.starts import Gallery, Start
from hwm.models.base import WorldModel
from hwm.pictures.stack import side_by_side
from hwm.pictures.video import to_uint8, write_video
from hwm.types import Batch, Tokenizer

MAX_STEPS = 36_000
"""Steps that a session remembers, an hour at 10 a second; then it must be reset."""


@dataclass
class World:
    """What all sessions of a place share: model, tokenizer, limits and starts.

    Attributes:
        model, tokenizer: weights, in evaluation mode.
        limits: of the commands of each embodiment.
        gallery: starts, or None.
        name: of the model, for replay files.
        dtype: number format of the model's matrix products, as `hwm.devices.choose_format`; where its weights are
            narrower than float32, theirs. The tokenizer stays in float32.
    """

    model: WorldModel
    tokenizer: Tokenizer
    limits: dict[str, Limits]
    gallery: Gallery | None = None
    name: str = "model"
    dtype: str | torch.dtype = "auto"

    def __post_init__(self) -> None:
        wanted = self.model.spec.tokenizer
        if wanted and not self.tokenizer.answers_to(wanted):
            raise HwmError(f"the model was trained on latents of {wanted}, and this tokenizer is {self.tokenizer.id}")
        self.model.eval()
        self.runtime = runtime_of(self.model, self.dtype)
        self.device = self.runtime.device

    @classmethod
    def open(
        cls,
        model: str | Path = "masked_hwm_mini",
        *,
        tokenizer: str | None = None,
        store: str | Path | None = "mini_heldout",
        device: torch.device | str = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> World:
        """A shipped model by name, a run or a checkpoint folder; starts from a store of its tokenizer, or none.

        Args:
            device: auto (an NVIDIA card, Apple's GPU or else the CPU), cpu, cuda, cuda:1, mps.
            dtype: auto, float32, bfloat16 or float16.

        Raises:
            HwmError: there is no such model, store, device or number format, or they do not belong together.
        """
        from hwm.data.readers import open_store
        from hwm.loading import load, load_tokenizer

        device = open_runtime(device, dtype).device
        loaded = load(model, device)
        spec = loaded.spec
        limits = {name: Limits.of_spec(action) for name, action in spec.actions.items()}
        gallery = None
        if store is not None:
            opened = open_store(store)
            h = opened.header
            if h.tokenizer != spec.tokenizer or h.embodiment not in spec.actions or h.views != spec.latent.views:
                mine, its = (f" of the cameras {', '.join(v)}" if v else "" for v in (h.views, spec.latent.views))
                raise HwmError(
                    f"{opened.path} holds {h.embodiment!r} in latents of {h.tokenizer}{mine}; the model knows "
                    f"{sorted(spec.actions)} in latents of {spec.tokenizer}{its}: name a store of its kind, or none"
                )
            limits[h.embodiment] = Limits.of_store(opened)
            gallery = Gallery(opened, loaded.config.past)
        tok = load_tokenizer(tokenizer or spec.tokenizer, device, views=spec.latent.views)
        return cls(loaded, tok, limits, gallery, str(model), dtype)

    @property
    def clips(self) -> bool:
        """Whether what the model makes at once is a clip, which its tokenizer encodes and decodes by itself."""
        return self.model.group > 1 and self.tokenizer.latent.stride > 1

    @property
    def fps(self) -> float:
        """Frames a second of what is shown."""
        return self.model.spec.fps * self.tokenizer.latent.stride

    @property
    def views(self) -> int:
        """How many cameras' pictures lie one below the other in what the model makes; people see them side by side."""
        return max(1, len(self.model.spec.latent.views))

    @property
    def lookback(self) -> int:
        """How many earlier latents `show` wants."""
        return 0 if self.clips else self.tokenizer.lookback

    def show(self, latents: Tensor) -> np.ndarray:
        """The frames of what `Session.shown` gave, (F, H, W, 3) uint8; of several cameras one below the other."""
        with torch.inference_mode():
            video = self.tokenizer.decode(latents[None])
        return to_uint8(video[0, -self.model.group * self.tokenizer.latent.stride :])

    def start(self, name: str | Start) -> Start:
        """A start by its name, checked against the model.

        Raises:
            HwmError: there is no such start, or it is of another kind than the model.
        """
        if isinstance(name, str):
            if self.gallery is None:
                raise HwmError(f"there is no gallery to take {name[:80]!r} from: give a store, or a start of your own")
            name = self.gallery[name]
        self.model.check(Batch(name.latents[None], torch.from_numpy(name.actions)[None], name.embodiment))
        latent = self.model.spec.latent
        if latent.vocab is not None:
            x = name.latents
            if x.is_floating_point() or not len(x) or int(x.min()) < 0 or int(x.max()) >= latent.vocab:
                raise HwmError(f"start {name.name!r}: token ids must be whole numbers from 0 to {latent.vocab - 1}")
        if not 1 <= len(name.latents) <= self.model.config.past or len(name.actions) != len(name.latents):
            raise HwmError(
                f"start {name.name!r}: {len(name.latents)} steps and {len(name.actions)} of actions; "
                f"the model looks back on 1 to {self.model.config.past}"
            )
        if not (np.isfinite(name.actions).all() and torch.isfinite(name.latents.float()).all()):
            raise HwmError(f"start {name.name!r} holds values that are not finite")
        return name


@dataclass
class Window:
    """What one session shows the model for its next step."""

    latents: Tensor
    actions: Tensor
    cache: Any
    generator: torch.Generator
    key: tuple[object, ...]


class Session:
    """One world under way.

    What will be done after the next step nobody knows yet: a model that is conditioned on the actions that follow a
    step, as published HMA models are, is given those that lead to it once more.

    Args:
        world: what it shares with other sessions.
        sampler: how missing steps are filled in, in the model's own terms; None is the model's choice.

    Attributes:
        steps: steps taken since the start.
        last: (A,) the command in force.
        hashes: a checksum of the latents of each step taken.
    """

    def __init__(self, world: World, sampler: Any = None) -> None:
        self.world, self.sampler = world, sampler
        self.start: Start | None = None

    @classmethod
    def open(cls, model: str | Path = "masked_hwm_mini", *, sampler: Any = None, **where: Any) -> Session:
        """A session of its own; options as of `World.open`."""
        return cls(World.open(model, **where), sampler)

    def reset(self, start: str | Start = "start:0", seed: int = 0) -> np.ndarray:
        """Begin anew; the frames of the last true step, (F, H, W, 3) uint8."""
        chosen = self.world.start(start)
        self.start, self.seed = chosen, int(seed)
        self.limits = self.world.limits[chosen.embodiment]
        self.latents = list(chosen.latents.to(self.world.device).split(1))
        self.actions = list(chosen.actions)
        self.last = chosen.actions[-1, -1].astype(np.float32)
        self.hashes: list[int] = []
        self.prompt = len(self.latents)
        self._cache: Any = None
        self._cached_start = -1
        return self.frames()

    @property
    def steps(self) -> int:
        return len(self.hashes)

    def plan(self, action: Action, ramp: bool = False) -> np.ndarray:
        """The actions of the next step, (G, K, A): a wanted command as the limits allow it.

        Args:
            action: a command as {name: value}, (A,) values, or the K of a step, (K, A).
            ramp: approach the command no faster than commands change in the data; False takes it at once.
        """
        self._begun()
        action_spec = self.world.model.spec.actions[self._start.embodiment]
        count, group = action_spec.per_step, self.world.model.group
        if isinstance(action, np.ndarray) and action.ndim == 2:
            if action.shape != (count, action_spec.dim):
                raise HwmError(f"a step has {count} x {action_spec.dim} action values, got shape {action.shape}")
            rows = np.stack([self.limits.vector(row, self.last) for row in action])
            return np.repeat(rows[None], group, 0)
        wanted = self.limits.vector(action, self.last)
        total = group * count
        rows = self.limits.towards(wanted, self.last, total) if ramp else np.tile(wanted, (total, 1))
        return rows.reshape(group, count, -1)

    def step(self, action: Action, ramp: bool = False) -> np.ndarray:
        """One step of the model; the frames it shows, (F, H, W, 3) uint8. See `plan` for the arguments."""
        advance([self], [self.plan(action, ramp)])
        return self.frames()

    def shown(self) -> Tensor:
        """The latents that `World.show` needs for the frames of the last step."""
        self._begun()
        return torch.cat(self.latents[-self.world.model.group - self.world.lookback :])

    def frames(self) -> np.ndarray:
        """The frames of the last step (of the last `group` of them), (F, H, W, 3) uint8."""
        return self.world.show(self.shown())

    def snapshot(self) -> Session:
        """This session as it is now, for reading while the original goes on."""
        self._begun()
        other = copy(self)
        other.latents, other.actions, other.hashes = list(self.latents), list(self.actions), list(self.hashes)
        other._cache, other._cached_start = None, -1
        return other

    def undo(self, steps: int = 1) -> np.ndarray:
        """Go back by some steps, at most to the start; the frames shown then."""
        self._begun()
        if steps < 0:
            raise HwmError(f"undo goes back by a number of steps, not by {steps}")
        keep = self.prompt + max(0, self.steps - steps) * self.world.model.group
        del self.latents[keep:], self.actions[keep:], self.hashes[(keep - self.prompt) // self.world.model.group :]
        self.last = self.actions[-1][-1].astype(np.float32)
        self._restore_cache()
        return self.frames()

    def replay(self) -> Replay:
        """All that is needed to see this session again."""
        self._begun()
        from hwm.config import to_json

        return Replay(
            model=self.world.name,
            tokenizer=self.world.tokenizer.id,
            seed=self.seed,
            sampler=to_json(self.sampler),
            start=replace(self._start, latents=self._start.latents.cpu()),
            actions=np.array(self.actions[self.prompt :], np.float32),
            hashes=tuple(self.hashes),
            dtype=self.world.runtime.format,
        )

    def play(self, replay: Replay, on_frames: Callable[[np.ndarray], None] = lambda _: None) -> int | None:
        """See a session again; the first step (from 0) whose latents differ from those recorded, or None.

        They do not differ where machine, model, number format and number of threads are those of the recording.
        """
        if replay.tokenizer != self.world.tokenizer.id:
            raise HwmError(f"the replay is of tokenizer {replay.tokenizer}, this world of {self.world.tokenizer.id}")
        self.sampler = None
        if replay.sampler is not None:
            self.sampler = self.world.model.sampler_with(replay.sampler)
        on_frames(self.reset(replay.start, replay.seed))
        group, departed = self.world.model.group, None
        for i in range(len(replay.actions) // group):
            advance([self], [replay.actions[i * group : (i + 1) * group]])
            on_frames(self.frames())
            if departed is None and i < len(replay.hashes) and self.hashes[-1] != replay.hashes[i]:
                departed = i
        return departed

    def write_video(self, path: str | Path, first: int = 0, last: int | None = None) -> int:
        """Write the steps from `first` to `last` as mp4, the true ones before the first step included when first = 0,
        several cameras side by side; returns how many frames."""
        self._begun()
        return write_video(path, side_by_side(self.video(first, last), self.world.views), self.world.fps)

    def video(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """The frames of those steps, decoded anew, (F, H, W, 3) uint8."""
        group = self.world.model.group
        begin = self.prompt + first * group if first else 0
        end = len(self.latents) if last is None else self.prompt + last * group
        if not 0 <= begin < end <= len(self.latents):
            raise HwmError(f"steps {first} to {last} are not within the {self.steps} steps of this session")
        from hwm.evaluate.camera import decode

        latents = torch.cat(self.latents[begin - min(begin, self.world.lookback) : end])[None]
        parts = latents.split(group, 1) if self.world.clips else (latents,)
        with torch.inference_mode():
            frames = torch.cat([decode(self.world.tokenizer, part) for part in parts], 1)
        return to_uint8(frames[0, -(end - begin) * self.world.tokenizer.latent.stride :])

    def window(self, actions_GKA: np.ndarray) -> Window:
        """What the model is shown for the next step."""
        model = self.world.model
        done = len(self.latents)
        start = model.window_start(done)
        cache = self._cache if start == self._cached_start else None
        generator = torch.Generator(self.world.device).manual_seed(mix(self.seed, done))
        actions = np.concatenate([np.stack(self.actions[start:]), actions_GKA]).astype(np.float32)
        latents = torch.cat(self.latents[start:])
        alone = None if model.joins_caches else id(self)  # whose caches cannot be joined with others'
        key = (self._start.embodiment, len(latents), cache is None, self.sampler, alone)
        return Window(latents, torch.from_numpy(actions).to(self.world.device), cache, generator, key)

    def accept(self, latents: Tensor, actions_GKA: np.ndarray, cache: Any) -> None:
        """Take the model's answer as what happened."""
        self._cached_start = self.world.model.window_start(len(self.latents))
        self._cache = cache
        self.latents += latents.split(1)
        self.actions += list(actions_GKA)
        self.last = actions_GKA[-1, -1].astype(np.float32)
        self.hashes.append(zlib.crc32(latents.cpu().contiguous().numpy().tobytes()))

    def _restore_cache(self) -> None:
        """Bring the cache to what it was at this step, by the very same computations, so that the same bits follow."""
        model, group = self.world.model, self.world.model.group
        now = len(self.latents)
        first = now
        while first - group >= self.prompt and model.window_start(first - group) == model.window_start(now):
            first -= group
        latents, actions, hashes = self.latents, self.actions, self.hashes
        self._cache, self._cached_start = None, -1
        for done in range(first, now, group):
            self.latents, self.actions, self.hashes = latents[:done], actions[:done], hashes[: done - self.prompt]
            self._cache = predict([self.window(np.stack(actions[done : done + group]))], self)[0][1]
            self._cached_start = model.window_start(done)
        self.latents, self.actions, self.hashes = latents, actions, hashes

    @property
    def _start(self) -> Start:
        self._begun()
        assert self.start is not None
        return self.start

    def _begun(self) -> None:
        if self.start is None:
            raise HwmError("reset the session to a start before anything else")


def advance(sessions: Sequence[Session], actions: Sequence[np.ndarray]) -> None:
    """One step of several sessions of one world; those whose windows are of one shape are computed as one batch.

    Raises:
        HwmError: a session is too long; none has been stepped then.
    """
    for session in sessions:
        if session.steps >= MAX_STEPS:
            raise HwmError(f"this session has {MAX_STEPS:,} steps and remembers no more: reset it")
    windows = [session.window(a) for session, a in zip(sessions, actions, strict=True)]
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, window in enumerate(windows):
        groups.setdefault(window.key, []).append(i)
    for members in groups.values():
        answers = predict([windows[i] for i in members], sessions[members[0]])
        for i, (latents, cache) in zip(members, answers, strict=True):
            sessions[i].accept(latents, actions[i], cache)


@torch.inference_mode()
def predict(windows: Sequence[Window], session: Session) -> list[tuple[Tensor, Any]]:
    """Latents of the next step and the cache after it, for windows of one key."""
    world = session.world
    batch = Batch(
        torch.stack([w.latents for w in windows]),
        torch.stack([w.actions for w in windows]),
        str(windows[0].key[0]),
    )
    cache = windows[0].cache
    if cache is not None and len(windows) > 1:
        cache = world.model.stack_caches([w.cache for w in windows])
    with world.runtime.autocast():
        out = world.model.predict(batch, sampler=session.sampler, cache=cache, generator=[w.generator for w in windows])
    world.runtime.check(out.latents)
    caches = [out.cache] if len(windows) == 1 else world.model.split_cache(out.cache, len(windows))
    return list(zip(out.latents, caches, strict=True))


def mix(seed: int, step: int) -> int:
    """One number of two, of 63 bits."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + 0x165667B1) % (1 << 63)
