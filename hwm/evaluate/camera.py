"""The pictures of a clip: the camera's own, and those that a tokenizer makes of latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.data.store import Episode, Store
from hwm.devices import device_of
from hwm.errors import HwmError
from hwm.pictures.video import to_video
from hwm.types import Tokenizer

DECODE_FRAMES = 128
"""Frames that are decoded at once; a clip is never split."""


WORTH_A_JUMP = 30
"""Frames between two windows from which on they are jumped over; a jump decodes from the key frame before."""


def episode_of(clips: Clips, index: int) -> Episode:
    """The episode that a window lies in."""
    return clips.store.episodes[int(clips.store.segments[int(clips.starts[index])])]


def frame_numbers(clips: Clips, index: int, steps: int) -> np.ndarray:
    """Which frames of its episode's video the first `steps` steps of a window show, (F,) with F = latent.frames(steps).

    Step i of an episode is the camera frame i * frames_per_step, counted from the episode's first. A latent step of
    several frames ends at its camera frame, and the earlier ones lie evenly between it and the step before.

    Raises:
        HwmError: frames would lie between camera frames.
    """
    latent = clips.store.header.latent
    assert latent is not None
    episode = episode_of(clips, index)
    per_step = episode.frames_per_step * clips.stride
    if clips.stride > 1 and latent.stride > 1:
        raise HwmError(
            f"windows of every {clips.stride}th step cannot be shown: each latent step holds {latent.stride} frames, "
            "those between would be missing; evaluate with stride 1"
        )
    if per_step % latent.stride:
        raise HwmError(
            f"{clips.store.path}: a step of episode {episode.id!r} spans {per_step} camera frames and its latent holds "
            f"{latent.stride}; frames_per_step must be a multiple of the tokenizer's stride"
        )
    first = (int(clips.starts[index]) - episode.start) * (per_step // clips.stride)
    return first + np.arange(latent.frames(steps)) * (per_step // latent.stride)


def camera_video(clips: Clips, indices: np.ndarray, steps: int, size: tuple[int, int]) -> Tensor:
    """Camera frames of the first `steps` steps of these windows, (B, F, 3, *size) in [0, 1].

    Raises:
        HwmError: a video is missing or ends too early.
    """
    wanted = [(episode_of(clips, int(i)), frame_numbers(clips, int(i), steps)) for i in indices]
    return torch.stack(camera_frames(clips.store, wanted, size))


def camera_frames(store: Store, wanted: Sequence[tuple[Episode, np.ndarray]], size: tuple[int, int]) -> list[Tensor]:
    """Camera frames of episodes by their numbers, each (n, 3, *size) in [0, 1].

    A frame that is wanted several times is read once, and long stretches of which none is wanted are not read.

    Raises:
        HwmError: a video is missing or ends too early.
    """
    found: dict[int, Tensor] = {}
    for episode in {e.id: e for e, _ in wanted}.values():
        mine = [i for i, (e, _) in enumerate(wanted) if e.id == episode.id]
        numbers = np.unique(np.concatenate([wanted[i][1] for i in mine]))
        keep, frames = set(numbers.tolist()), []
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > WORTH_A_JUMP) + 1):
            first, stop = int(run[0]), int(run[-1]) + 1
            shown = enumerate(store.frames(episode, start=first, stop=stop), first)
            frames += [frame for number, frame in shown if number in keep]
        if len(frames) < len(numbers):
            raise HwmError(
                f"{store.path}: the video of {episode.id!r} ends before frame {numbers[-1]}, which the store's "
                f"{episode.steps} steps of that episode need; the video does not belong to these latents, or "
                "frames_per_step is wrong"
            )
        video = to_video(frames, size, views=max(1, len(store.header.views)))
        for i in mine:
            found[i] = video[torch.from_numpy(np.searchsorted(numbers, wanted[i][1]))]
    return [found[i] for i in range(len(wanted))]


def decode(tokenizer: Tokenizer, latents: Tensor, frames: int = DECODE_FRAMES, last: int | None = None) -> Tensor:
    """Latents (B, T, ...) -> pictures (B, F, 3, H, W), a bounded number of frames at a time.

    Args:
        frames: how many are decoded at once.
        last: keep only so many of each clip, those at its end.
    """
    latents = latents.to(device_of(tokenizer, latents.device))
    shown = tokenizer.latent.frames(latents.shape[1])
    group, first = max(1, frames // shown), shown - last if last else 0
    return torch.cat([tokenizer.decode(part)[:, first:].float() for part in latents.split(group)])


def future(video_BFCHW: Tensor, prompt: int, stride: int) -> Tensor:
    """The frames after the first `prompt` steps, step by step: (B, F, ...) -> (B, T - prompt, stride, ...)."""
    shown = 1 + (prompt - 1) * stride
    return video_BFCHW[:, shown:].unflatten(1, (-1, stride))


def per_step(metric: Callable[[Tensor, Tensor], Tensor], video_BTFCHW: Tensor, truth_BTFCHW: Tensor) -> Tensor:
    """A metric of pictures, averaged over the frames of each step: (B, T, F, C, H, W) -> (B, T)."""
    return metric(video_BTFCHW, truth_BTFCHW.expand_as(video_BTFCHW)).mean(-1)
