"""Picture, GIF and video files that are there whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from hwm.errors import HwmError
from hwm.files import write_atomically
from hwm.pictures.video import write_video


def png(picture: np.ndarray) -> bytes:
    """A uint8 (H, W, 3) picture as a PNG file: 8-bit RGB."""
    return _encoded(picture, "PNG", compress_level=4)  # 1.02 of the smallest size, in a tenth of the time


def jpeg(picture: np.ndarray, quality: int = 85) -> bytes:
    """A uint8 (H, W, 3) picture as a JPEG file."""
    return _encoded(picture, "JPEG", quality=quality)


def _encoded(picture: np.ndarray, kind: str, **options: int) -> bytes:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise HwmError(f"a {kind} file takes uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def read_picture(data: bytes) -> np.ndarray:
    """A PNG or JPEG file's bytes as uint8 (H, W, 3).

    Raises:
        HwmError: it is neither, or damaged, or has more than 8 bits a colour.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.mode.startswith(("I", "F")):
                raise HwmError(f"a picture of {len(data)} bytes has more than 8 bits a colour ({image.mode})")
            return np.array(image.convert("RGB"))
    except Image.UnidentifiedImageError as error:
        raise HwmError(f"a picture of {len(data)} bytes is neither PNG nor JPEG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise HwmError(f"a picture of {len(data)} bytes cannot be decoded: {error}") from error


def save_png(path: str | Path, picture: np.ndarray) -> Path:
    """Write a picture, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png(picture))
    return path


def save_gif(path: str | Path, frames: Sequence[np.ndarray], fps: float, hold: float = 1.0) -> Path:
    """Write pictures (H, W, 3) uint8 as a GIF that repeats for ever, whole or not at all, at their true speed.

    All frames share one palette, so that what stands still does not flicker.

    Args:
        hold: seconds for which the last frame stays.

    Raises:
        HwmError: there is nothing to write.
    """
    if not frames:
        raise HwmError(f"no frames to write to {path}")
    sample = frames[:: max(1, len(frames) // 8)]
    palette = Image.fromarray(np.concatenate(sample)).quantize(256, method=Image.Quantize.MEDIANCUT)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    ends = [round(100 * (i + 1) / fps) for i in range(len(frames))]  # a GIF counts in hundredths of a second
    lasting = [10 * (b - a) for a, b in pairwise([0, *ends])]
    lasting[-1] += round(1000 * hold)
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=lasting, loop=0, disposal=1)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getvalue())
    return path


def save_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, crf: int = 20) -> int:
    """Write an mp4, whole or not at all; returns the number of frames."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.stem}.{os.getpid()}.new.mp4")  # the encoder goes by the ending
    try:
        count = write_video(new, frames, fps, crf=crf)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return count
