"""Picture, GIF and video files that are there whole or not at all."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from hwm.errors import HwmError
from hwm.files import write_atomically
from hwm.pictures.video import write_video


def png(picture: np.ndarray) -> bytes:
    """A uint8 (H, W, 3) picture as a PNG file (W3C Portable Network Graphics, third edition): 8-bit RGB.

    Each row is written as it is, or less its left or upper neighbours, whichever has the smallest values.
    """
    height, width, colours = picture.shape
    if picture.dtype != np.uint8 or colours != 3:
        raise HwmError(f"a PNG takes uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    above = np.concatenate([np.zeros_like(picture[:1]), picture[:-1]])
    left = np.concatenate([np.zeros_like(picture[:, :1]), picture[:, :-1]], 1)
    filtered = np.stack([picture, picture - left, picture - above]).reshape(
        3, height, -1
    )  # modulo 256, as it should be
    choice = np.abs(filtered.view(np.int8).astype(np.int32)).sum(-1).argmin(0)
    rows = np.concatenate([choice[:, None], filtered[choice, np.arange(height)]], 1).astype(np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


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
        HwmError: pillow is not installed, or there is nothing to write.
    """
    try:
        from PIL import Image
    except ImportError:
        raise HwmError("GIFs need pillow: pip install 'humanoid-world-models[eval]'") from None
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
