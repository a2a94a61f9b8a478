"""Video files into files of latents and back, in bounded memory.

A file of latents is a safetensors file with one tensor, `latents`: ids (T, H, W) int32 or (T, C, H, W) float16. Its
metadata say of which tokenizer they are, and what they show.

Shape suffixes: F frames, T latent step, C channels, H W picture or grid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hwm.config import Trainable, from_json, to_json
from hwm.data.store import differing
from hwm.devices import device_of, exact, format_of
from hwm.errors import HwmError
from hwm.files import write_atomically
from hwm.pictures.video import count_frames, frame_rate, frame_size, read_video, to_uint8, to_video, write_video
from hwm.progress import track
from hwm.tokenizers.checks import nearest_size
from hwm.types import DataSpec, LatentSpec, Tokenizer, check_ids
from hwm.weights import with_weights

FORMAT = "hwm-tokens/1"
FRAMES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class About:
    """What a file of latents says of them.

    Attributes:
        tokenizer: identity of the tokenizer.
        frames: that they show; the last of them may be repeated to fill the last step.
        fps: of the video.
        size: (height, width) of the pictures.
        clip: frames that were encoded together, apart from all others; 0 where all were.
        dtype: the number format in which the tokenizer computed; empty where that was not recorded.
    """

    tokenizer: str
    frames: int
    fps: float
    size: tuple[int, int]
    clip: int = 0
    dtype: str = ""


def for_size(tokenizer: Tokenizer, size: tuple[int, int]) -> Tokenizer:
    """The same weights for pictures of another size.

    Raises:
        HwmError: this tokenizer cannot take that size.
    """
    if tuple(tokenizer.size) == size:
        return tokenizer
    if not isinstance(tokenizer, Trainable):
        return tokenizer.of_size(size)
    device = next(tokenizer.parameters()).device
    spec = DataSpec(LatentSpec(size, channels=3), {}, f"pixels-{size[0]}x{size[1]}")
    other: Tokenizer = with_weights(tokenizer.config, spec, tokenizer.state_dict(), tokenizer.id).to(device)
    other.id = tokenizer.id
    return other


def encode_file(
    source: Path,
    tokenizer: Tokenizer,
    out: Path,
    *,
    clip: int = 0,
    fps: float = 0.0,
    resize: bool = False,
    strict: bool = False,
) -> tuple[About, int]:
    """Encode a video file into a file of latents.

    Args: as of `latents_of`. Returns what the file says of them, and how often the last frame was repeated.
    """
    latents, about, repeated = latents_of(source, tokenizer, clip=clip, fps=fps, resize=resize, strict=strict)
    save_latents(out, latents, about)
    return about, repeated


@exact()
def latents_of(
    source: Path, tokenizer: Tokenizer, *, clip: int = 0, fps: float = 0.0, resize: bool = False, strict: bool = False
) -> tuple[Tensor, About, int]:
    """Latents of a video file as they are stored, (T, ...), what they are, and how often the last frame was repeated to
    fill the last step.

    Args:
        clip: encode so many frames at a time, each clip by itself; 0 encodes the video as one clip.
        fps: frames a second to take, of which the video's rate must be a multiple; 0 takes all.
        resize: resize pictures to the tokenizer's size, where they have another.
        strict: refuse a video whose frames do not fill whole steps (or clips) instead of repeating its last frame.

    Raises:
        HwmError: the video is missing, damaged, or of another size or rate; or its frames do not fill whole steps.
    """
    stride = tokenizer.latent.stride
    if clip and (clip < 1 or (clip - 1) % stride):
        raise HwmError(f"a clip of {clip} frames does not fill whole latent steps: choose 1 + {stride} * n")
    rate, every = take_every(source, fps)
    _check_size(source, tokenizer, resize)
    steps = max(1, FRAMES_AT_ONCE // stride)
    sizes = (clip, clip) if clip else (tokenizer.latent.frames(steps), steps * stride)
    count, repeated, device = 0, 0, device_of(tokenizer, torch.device("cpu"))

    def pieces() -> Iterator[Tensor]:
        nonlocal count, repeated
        for i, frames in enumerate(_groups(read_video(source, every), *sizes)):
            count += len(frames)
            whole = clip or (1 if i == 0 else 0) + -(-(len(frames) - (i == 0)) // stride) * stride
            repeated = whole - len(frames)
            if repeated and strict:
                what = f"clips of {clip}" if clip else f"1 + {stride} * n"
                raise HwmError(f"{source} has {count} frames, which are not {what} (--strict)")
            yield to_video(frames + frames[-1:] * repeated, tokenizer.size)[None].to(device)

    found = map(tokenizer.encode, pieces()) if clip else tokenizer.encode_pieces(pieces())
    total = -(-max(1, -(-count_frames(source) // every) - sizes[0]) // sizes[1]) + 1
    latents = [stored(part[0]).cpu() for part in track(found, total, f"encoding {source.name}", sizes[1], "frames")]
    if not count:
        raise HwmError(f"{source} shows no frames")
    return torch.cat(latents), _about(tokenizer, count, rate / every, clip), repeated


def _about(tokenizer: Tokenizer, frames: int, fps: float, clip: int) -> About:
    return About(
        tokenizer=tokenizer.id, frames=frames, fps=fps, size=tokenizer.size, clip=clip, dtype=format_of(tokenizer)
    )


def check_asked(source: Path, out: Path, tokenizer: Tokenizer, *, clip: int = 0, fps: float = 0.0) -> None:
    """Raise `HwmError` unless a file of latents that is there is what `encode_file` would write with these settings."""
    rate, every = take_every(source, fps)
    asked, known = (to_json(a) for a in (_about(tokenizer, 0, rate / every, clip), about_of(out)))
    unknown = {"frames"} | ({"dtype"} if not known["dtype"] else set())
    if differ := differing(known, {k: v for k, v in asked.items() if k not in unknown}):
        raise HwmError(
            f"{out} is there, and was made with other settings ({'; '.join(differ)}): choose another folder, or remove "
            "it"
        )


def _groups(frames: Iterator[np.ndarray], first: int, others: int) -> Iterator[list[np.ndarray]]:
    size = first
    while group := list(islice(frames, size)):
        yield group
        size = others


def take_every(source: Path, fps: float) -> tuple[float, int]:
    """The rate of a video, and that each n-th of its frames is to be taken for `fps` frames a second; 0 takes all.

    Raises:
        HwmError: they do not lie evenly.
    """
    rate = frame_rate(source)
    every = round(rate / fps) if fps else 1
    if fps and (every < 1 or abs(rate / every - fps) > 0.01 * fps):
        raise HwmError(
            f"{source} has {rate:g} frames a second, of which {fps:g} cannot be taken evenly: give a rate that divides "
            "it, or convert the video first"
        )
    return rate, every


def _check_size(source: Path, tokenizer: Tokenizer, resize: bool) -> None:
    width, height = frame_size(source)
    if (height, width) != tuple(tokenizer.size) and not resize:
        near = nearest_size((height, width), tokenizer.size[0] // tokenizer.latent.grid[0])
        other = (
            f"take it for pictures of that size (--size {height} {width})"
            if near == (height, width)
            else f"to the nearest size that it can be taken for (--size {near[0]} {near[1]} --resize)"
        )
        raise HwmError(
            f"{source} shows pictures of {_by((height, width))} (height x width), the tokenizer takes "
            f"{_by(tokenizer.size)}: let them be resized (--resize), or {other}"
        )


def decode_file(source: Path, tokenizer: Tokenizer, out: Path, steps: int = 0) -> int:
    """Decode a file of latents into a video; returns its frames.

    Args:
        steps: decode only so many from the first on; 0 decodes all.

    Raises:
        HwmError: the file is missing or damaged, its latents are not this tokenizer's, or ids are out of range.
    """
    latents, about = load_latents(source)
    if not tokenizer.answers_to(about.tokenizer):
        raise HwmError(f"{source} holds latents of {about.tokenizer}, which mean nothing to {tokenizer.id}")
    tokenizer = for_size(tokenizer, about.size)
    spec = tokenizer.latent
    latents = latents[: steps or None][None]
    if spec.vocab:
        check_ids(latents, spec.vocab)
    latents = latents.to(device_of(tokenizer, torch.device("cpu")))
    latents = latents.long() if spec.vocab else latents.float()
    if about.clip:
        parts = latents.split(spec.steps(about.clip), 1)
        video: Iterator[Tensor] = map(tokenizer.decode, parts)
    else:
        parts = latents.split(max(1, FRAMES_AT_ONCE // spec.stride), 1)
        video = tokenizer.decode_pieces(parts)
    count = _frames_of(about, spec, latents.shape[1])
    shown = track(video, len(parts), f"decoding {source.name}", count / len(parts), "frames")
    frames = (frame for part in shown for frame in to_uint8(part[0]))
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_video(out, islice(frames, count), about.fps)


def check_decoded(source: Path, tokenizer: Tokenizer, out: Path, steps: int = 0) -> None:
    """Raise `HwmError` unless a video that is there has as many frames as `decode_file` would write."""
    latents, about = load_latents(source)
    want = _frames_of(about, for_size(tokenizer, about.size).latent, len(latents[: steps or None]))
    if (have := count_frames(out)) != want:
        raise HwmError(
            f"{out} is there with {have} frames, and {want} are asked for: choose another folder, or remove it"
        )


def _frames_of(about: About, spec: LatentSpec, steps: int) -> int:
    """The frames that so many steps decode to, without those that were repeated to fill the last."""
    clip = spec.steps(about.clip) if about.clip else steps
    return min(about.frames, sum(spec.frames(min(clip, steps - i)) for i in range(0, steps, clip)))


def stored(latents: Tensor) -> Tensor:
    """Latents in the type in which they are kept."""
    return latents.to(torch.float16 if latents.is_floating_point() else torch.int32)


def save_latents(path: Path, latents: Tensor, about: About) -> None:
    """Write a file of latents, whole or not at all."""
    metadata = {"format": FORMAT, "about": json.dumps(to_json(about))}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({"latents": stored(latents).contiguous()}, metadata))


def load_latents(path: Path) -> tuple[Tensor, About]:
    """The latents (T, ...) of a file, and what it says of them.

    Raises:
        HwmError: it is missing, damaged, or something else.
    """
    with _opened(path) as file:
        return file.get_tensor("latents"), _read_about(path, file)


def about_of(path: Path) -> About:
    """What a file of latents says of them.

    Raises:
        HwmError: it is missing, damaged, or something else.
    """
    with _opened(path) as file:
        return _read_about(path, file)


def _read_about(path: Path, file: Any) -> About:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise HwmError(f"{path} is no file of latents: its format is {metadata.get('format')!r}")
    return from_json(About, json.loads(metadata["about"]))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), "pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise HwmError(f"cannot read the latents {path}: {error}") from error


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
