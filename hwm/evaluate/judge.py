"""The true simulator as judge of a dream: both go through the same commands, so every dreamed step has a truth.

The commands need not be recorded ones, and there may be as many as one likes. It takes a store of the simulator, MuJoCo
and a way to draw.

Shape suffixes: N starts, T steps, K actions a step, A their values, C H W a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.data.origin import origin_of
from hwm.devices import device_of, runtime_of
from hwm.errors import HwmError
from hwm.evaluate.camera import decode, episode_of
from hwm.evaluate.predict import judged
from hwm.evaluate.rollout import by_clips, rollout_clips
from hwm.models.base import WorldModel
from hwm.sim.twin import Origin, Twin
from hwm.types import Batch, Tokenizer


@dataclass(frozen=True)
class Starts:
    """Where dreams begin, and how the simulator gets there.

    Attributes:
        context: the true steps, and the actions that led to them.
        origins: of each, at the last true step.
        episodes: (N,) which episode each is from: standard errors are clustered by it.
    """

    context: Batch
    origins: list[Origin]
    episodes: np.ndarray

    def __len__(self) -> int:
        return len(self.origins)


@dataclass(frozen=True)
class Judgement:
    """What was dreamed and what was so. Step 0 is the last true one, and step t the one after t steps of commands.

    Attributes:
        dream: (N, T + 1, C, H, W) uint8, step 0 as the tokenizer shows it; the last frame of steps of several.
        truth: the same, of the simulator.
        poses: (N, T + 1, 3), where the simulated robot was: x and y in metres, yaw in radians, which goes on past pi.
    """

    dream: Tensor
    truth: Tensor
    poses: np.ndarray


def starts_of(clips: Clips, count: int, prompt: int) -> Starts:
    """Contexts of `prompt` steps, spread evenly over the clips.

    Raises:
        HwmError: the store is not a recording of the simulator.
    """
    indices = clips.spread(count)
    origins = []
    for index in indices:
        episode = episode_of(clips, int(index))
        steps = int(clips.starts[int(index)]) - episode.start + (prompt - 1) * clips.stride + 1
        origin = origin_of(clips.store, episode, steps)
        if origin is None:
            raise HwmError(
                f"{clips.store.path}: episode {episode.id!r} is no recording of the simulated humanoid, so there is no "
                "simulator to judge by"
            )
        origins.append(origin)
    context = replace(clips.batch(indices).window(0, prompt, prompt), following=None)
    return Starts(context, origins, np.array([episode_of(clips, int(i)).id for i in indices]))


def dream(
    model: WorldModel,
    tokenizer: Tokenizer,
    context: Batch,
    commands_NTKA: Tensor,
    *,
    sampler: Any = None,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    batch_size: int = 8,
) -> Tensor:
    """What a model makes of commands after a context, (N, T + 1, C, H, W) uint8; see `Judgement.dream`.

    Each row has random numbers of the same seed, so that rows which differ in their commands differ in nothing else.
    """
    runtime, shown = runtime_of(model, dtype), []
    past, stride = context.latents.shape[1], tokenizer.latent.stride
    with judged(model):
        for latents, before, after in zip(
            context.latents.split(batch_size),
            context.actions.split(batch_size),
            commands_NTKA.to(context.actions).split(batch_size),
            strict=True,
        ):
            batch = Batch(latents, torch.cat([before, after], 1), context.embodiment).to(runtime.device)
            generators = [torch.Generator(runtime.device).manual_seed(seed) for _ in latents]
            how: dict[str, Any] = {"sampler": sampler, "generator": generators}
            if by_clips(model, tokenizer, batch.actions.shape[1]):
                _, made = rollout_clips(model, tokenizer, batch, autocast=runtime.autocast, **how)
                video = torch.cat([decode(tokenizer, batch.latents), made], 1)
            else:
                with runtime.autocast():
                    latents = model.rollout(batch, **how).latents
                runtime.check(latents)
                video = decode(tokenizer, torch.cat([batch.latents, latents], 1))
            shown.append(_bytes(video[:, (past - 1) * stride :: stride]))
    return torch.cat(shown)


def accompany(origin: Origin, actions_TKA: np.ndarray, size: int) -> Iterator[Twin]:
    """The simulator at a start and after each step of these actions: T + 1 times the same, to be asked at once."""
    with Twin(origin, size) as twin:
        yield twin
        for actions in actions_TKA:
            twin.step(actions)
            yield twin


def judge(model: WorldModel, tokenizer: Tokenizer, starts: Starts, commands_NTKA: Tensor, **how: Any) -> Judgement:
    """Dream under these commands from each start, and let the simulator go through the same.

    Args:
        how: options of `dream`.

    Raises:
        HwmError: MuJoCo or a way to draw is missing.
    """
    dreamed = dream(model, tokenizer, starts.context, commands_NTKA, **how)
    truth, poses = torch.empty_like(dreamed), np.empty((*dreamed.shape[:2], 3))
    for n, (origin, actions) in enumerate(zip(starts.origins, commands_NTKA.cpu().numpy(), strict=True)):
        for t, twin in enumerate(accompany(origin, actions, side_of(tokenizer))):
            truth[n, t] = torch.from_numpy(twin.frame()).permute(2, 0, 1)
            poses[n, t] = twin.pose()
    return Judgement(dreamed, truth, poses)


def rebuilt(tokenizer: Tokenizer, pictures_NCHW: Tensor) -> Tensor:
    """Pictures as the tokenizer shows them, uint8 to uint8: the ceiling of what a model could show."""
    with torch.inference_mode():
        latents = tokenizer.encode(unit(pictures_NCHW)[:, None].to(device_of(tokenizer, torch.device("cpu"))))
        return _bytes(decode(tokenizer, latents)[:, 0])


def unit(pictures: Tensor) -> Tensor:
    """uint8 as floats in [0, 1], as metrics take them."""
    return pictures.float() / 255


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round().byte().cpu()


def side_of(tokenizer: Tokenizer) -> int:
    """Pixels a side of a tokenizer's pictures; raises `HwmError` where the simulator does not draw such."""
    if tokenizer.latent.views:
        raise HwmError("beside the simulator models of one camera are judged: this one's pictures are of several")
    height, width = tokenizer.size
    if height != width or height % 16:
        raise HwmError(
            f"the simulator draws squares of a multiple of 16 pixels, and {tokenizer.id!r} shows pictures of "
            f"{height} x {width}"
        )
    return height
