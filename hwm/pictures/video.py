"""Video files in and out: exact frame counts, bounded memory, clear errors. PyAV brings its own FFmpeg."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.codec.hwaccel import HWAccel
from torch import Tensor

from hwm.errors import HwmError


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: float, crf: int = 20, preset: str = "veryfast"
) -> int:
    """Write uint8 (H, W, 3) frames as H.264 in 4:2:0; returns how many. H and W must be even.

    Args:
        crf: quality of x264, lower is better and larger.
        preset: of x264: "slow" takes longer for smaller files.

    Raises:
        HwmError: no frames, a frame of odd or changing size, or a file that cannot be written.
    """
    from fractions import Fraction

    count, shape = 0, None
    try:
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(crf), "g": "60", "preset": preset}
            stream.codec_context.thread_count = 1
            for frame in frames:
                if shape is None:
                    shape = frame.shape
                    if frame.ndim != 3 or shape[0] % 2 or shape[1] % 2 or shape[2] != 3 or frame.dtype != np.uint8:
                        raise HwmError(
                            f"video frames are uint8 (H, W, 3) of even height and width, got {frame.dtype} {shape}"
                        )
                    stream.height, stream.width = shape[:2]
                if frame.shape != shape:
                    raise HwmError(f"frame {count} of {path} has shape {frame.shape}, the first had {shape}")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
                count += 1
            if shape is None:
                raise HwmError(f"no frames to write to {path}")
            container.mux(stream.encode())
    except (av.FFmpegError, OSError) as error:
        raise HwmError(f"cannot write the video {path}: {error}") from error
    return count


@cache
def _cannot(device: str, why: str) -> None:
    print(f"videos are not decoded on {device} ({why}), but in software", file=sys.stderr)


def _opened(path: str | Path) -> Any:
    """A video, opened to be decoded by the hardware that HWM_DECODE names (such as `cuda`), or in software."""
    device = os.environ.get("HWM_DECODE", "")
    if device:
        try:
            hardware = HWAccel(device_type=device, allow_software_fallback=True)
            return av.open(str(path), hwaccel=hardware, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            _cannot(device, str(error))
    return av.open(str(path), metadata_errors="replace")


def read_video(path: str | Path, every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield uint8 (H, W, 3) frames start, start + every, ... before `stop`, in order.

    Only what lies after the last key frame before `start` is decoded.

    Raises:
        HwmError: the file is missing, not a video, damaged, or has fewer frames than its index says.
    """
    if not Path(path).is_file():
        raise HwmError(f"there is no video {path}")
    try:
        with _opened(path) as container:
            if not container.streams.video:
                raise HwmError(f"{path} has no video stream")
            count = 0
            for i, frame in _numbered(container, container.streams.video[0], start):
                if stop is not None and i >= stop:
                    return
                count = i + 1
                if i >= start and (i - start) % every == 0:
                    yield frame.to_ndarray(format="rgb24")
            # a file cut between two frames ends without an error; the index, where there is one, tells
            if count < container.streams.video[0].frames:
                raise HwmError(f"{path} is truncated: it shows {count} of {container.streams.video[0].frames} frames")
    except av.FFmpegError as error:
        raise HwmError(f"cannot read the video {path}: {error}") from error


def _numbered(container: Any, stream: Any, start: int) -> Iterator[tuple[int, Any]]:
    """Frames with their numbers, from `start` on where it can be jumped to, else from the first.

    Times tell where a jump has led to. They count frames only where these lie evenly in time, so a video in which the
    wanted frame is not met at its time is read from the beginning.
    """
    rate, origin = stream.average_rate, stream.start_time or 0
    if start and rate and rate == stream.base_rate:
        container.seek(origin + int(start / rate / stream.time_base), stream=stream)
        frames = container.decode(stream)
        for frame in frames:
            number = -1.0 if frame.pts is None else float((frame.pts - origin) * stream.time_base * rate)
            if abs(number - start) < 0.25:
                yield from enumerate(chain([frame], frames), start)
                return
            if number > start:
                break
        container.seek(origin, stream=stream)
    yield from enumerate(container.decode(stream))


def read_at(path: str | Path, times: np.ndarray, fps: float) -> Iterator[np.ndarray]:
    """Yield the uint8 (H, W, 3) frames that are shown at these times, in order.

    Only what lies after the last key frame before the first time is decoded.

    Args:
        times: (N,) seconds, ascending; a frame belongs to a time if it is the first within half a frame of it.
        fps: frames a second of the video.

    Raises:
        HwmError: the file is missing, not a video, damaged, or has no frame at one of the times.
    """
    if not Path(path).is_file():
        raise HwmError(f"there is no video {path}")
    if not len(times):
        return
    half, wanted = 0.5 / fps, iter(np.asarray(times, np.float64).tolist())
    try:
        with _opened(path) as container:
            if not container.streams.video:
                raise HwmError(f"{path} has no video stream")
            stream = container.streams.video[0]
            time, at, base = next(wanted), 0.0, float(stream.time_base or 1)
            container.seek(max(0, int((time - half) / base)), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise HwmError(f"{path} does not say when its frames are shown")
                at, picture = float(frame.pts) * base, None
                while time - half < at <= time + half:
                    picture = frame.to_ndarray(format="rgb24") if picture is None else picture
                    yield picture
                    following = next(wanted, None)
                    if following is None:
                        return
                    time = following
                if at > time + half:
                    break
    except av.FFmpegError as error:
        raise HwmError(f"cannot read the video {path}: {error}") from error
    raise HwmError(
        f"{path} shows no frame at {time:.3f} s: it is truncated, or its time stamps are of another video or rate"
    )


def count_frames(path: str | Path) -> int:
    """How many frames a video has according to its index, or where it has none by decoding it."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            return stream.frames or sum(1 for _ in container.decode(stream))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise HwmError(f"cannot read the video {path}: {error}") from error


def frame_size(path: str | Path) -> tuple[int, int]:
    """Width and height that a video or picture file declares; raises `HwmError` where it holds neither."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            return stream.codec_context.width, stream.codec_context.height
    except (av.FFmpegError, OSError, IndexError) as error:
        raise HwmError(f"{path} is no video or picture that can be read: {error}") from error


def frame_rate(path: str | Path) -> float:
    """Frames a second that a video declares; raises `HwmError` where it does not."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            rate = container.streams.video[0].average_rate
    except (av.FFmpegError, OSError, IndexError) as error:
        raise HwmError(f"{path} is no video that can be read: {error}") from error
    if not rate:
        raise HwmError(f"{path} does not say how many frames a second it has")
    return float(rate)


def to_video(
    frames: np.ndarray | list[np.ndarray],
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    views: int = 1,
) -> Tensor:
    """uint8 (F, H, W, 3) -> float (F, 3, *size) in [0, 1] on a device, averaged over areas when it shrinks.

    Args:
        views: how many pictures of the same height lie one below the other in each; they do not mix.
    """
    x = torch.from_numpy(np.asarray(frames)).to(device).permute(0, 3, 1, 2).float() / 255
    if tuple(x.shape[-2:]) == size:
        return x
    return torch.cat([_resized(part, (size[0] // views, size[1])) for part in x.chunk(views, -2)], -2)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    shrink = x.shape[-2] >= size[0] and x.shape[-1] >= size[1]
    return F.interpolate(x, size, mode="area") if shrink else F.interpolate(x, size, mode="bilinear", antialias=True)


def to_uint8(video: Tensor) -> np.ndarray:
    """Float (..., 3, H, W) in [0, 1] -> uint8 (..., H, W, 3)."""
    return (video.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()
