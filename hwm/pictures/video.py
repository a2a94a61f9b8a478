"""Video files in and out: exact frame counts, bounded memory, clear errors. PyAV brings its own FFmpeg."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.errors import HwmError
from hwm.pictures.decode import decoded
from hwm.pictures.index import FrameIndex, frame_index
from hwm.pictures.turn import turn_of


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


def read_video(path: str | Path, every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield uint8 (H, W, 3) frames start, start + every, ... before `stop`, in order and turned as players show them.

    Only what lies after the last key frame before `start` is decoded.

    Raises:
        HwmError: the file is missing, not a video, truncated or damaged.
    """
    index = frame_index(path)
    yield from _pictures(index, iter(range(len(index))[start:stop:every]))


def _pictures(index: FrameIndex, numbers: Iterator[int]) -> Iterator[np.ndarray]:
    """The pictures of frames, of which there are any number in ascending order; a frame may be asked for repeatedly."""
    wanted = next(numbers, None)
    if wanted is None:
        return
    _tell_aspect(index.pixel_aspect)
    turn = None
    for number, frame in decoded(index, wanted):
        turn = turn or turn_of(index.path, frame)
        picture = None
        while number == wanted:
            picture = turn(frame.to_ndarray(format="rgb24")) if picture is None else picture
            yield picture
            wanted = next(numbers, None)
            if wanted is None:
                return


@cache
def _tell_aspect(aspect: float) -> None:
    if aspect != 1:
        print(
            f"the pixels of a video are {aspect:.3g} times as wide as high; its pictures are read as they are stored, "
            "not stretched as players show them",
            file=sys.stderr,
        )


def read_at(path: str | Path, times: np.ndarray, fps: float) -> Iterator[np.ndarray]:
    """Yield the uint8 (H, W, 3) frames that are shown at these times, in order.

    Only what lies after the last key frame before the first time is decoded.

    Args:
        times: (N,) seconds from the first frame on, whatever time the file gives that; ascending.
        fps: frames a second of the video: to a time belongs the nearest frame, if it lies within half a frame of it.

    Raises:
        HwmError: the file is missing, not a video, truncated, damaged, or has no frame at one of the times.
    """
    index = frame_index(path)
    wanted = np.asarray(times, np.float64)
    numbers = index.nearest(wanted, 0.5 / fps)
    if (numbers < 0).any():
        raise HwmError(
            f"{path} shows no frame at {wanted[numbers < 0][0]:.3f} s: it is truncated, or its time stamps are of "
            "another video or rate"
        )
    yield from _pictures(index, iter(numbers.tolist()))


def count_frames(path: str | Path) -> int:
    """How many frames a video shows; raises `HwmError` as `frame_index` does."""
    return len(frame_index(path))


def frame_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a video or picture as players turn it; raises `HwmError` where the file holds neither."""
    return frame_index(path).size


def frame_rate(path: str | Path) -> float:
    """Frames a second of a video; raises `HwmError` where nothing tells."""
    if not (rate := frame_index(path).rate):
        raise HwmError(f"{path} does not say how many frames a second it has")
    return rate


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
    parts = [_resized(part, (size[0] // views, size[1])) for part in x.chunk(views, -2)]
    return torch.cat(parts, -2) if views > 1 else parts[0]


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    shrink = x.shape[-2] >= size[0] and x.shape[-1] >= size[1]
    return F.interpolate(x, size, mode="area") if shrink else F.interpolate(x, size, mode="bilinear", antialias=True)


def to_uint8(video: Tensor) -> np.ndarray:
    """Float (..., 3, H, W) in [0, 1] -> uint8 (..., H, W, 3)."""
    return (video.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()
