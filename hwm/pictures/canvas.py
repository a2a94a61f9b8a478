"""What all drawing shares: colours, sizes of pictures, and text in the font that Pillow brings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import cast

import numpy as np
from PIL import Image, ImageFont

Colour = tuple[int, int, int]

INK, PAPER, DIM = (238, 240, 244), (17, 20, 26), (150, 156, 168)
CONTEXT_COLOUR, FUTURE_COLOUR = (138, 146, 160), (235, 148, 40)
GAP = 6
"""Pixels between two pictures."""


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font at a size in pixels."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def text_width(text: str, size: int) -> int:
    """Pixels that a line takes."""
    return math.ceil(font(size).getlength(text))


def line_height(size: int) -> int:
    """Pixels from one line to the next."""
    return sum(font(size).getmetrics()) + 2


def fitting_size(texts: Iterable[str], width: int, largest: int, smallest: int = 10) -> int:
    """The largest size, of those between two, at which each of the texts is no wider than `width` pixels."""
    longest = max(texts, key=lambda t: text_width(t, largest), default="")
    sizes = range(largest, smallest, -1)
    return next((size for size in sizes if text_width(longest, size) <= width), min(smallest, largest))


def enlargement(picture: np.ndarray, wide: int = 256) -> int:
    """Whole factor that brings a picture (..., H, W, 3) to about `wide` pixels; 1 for a large one."""
    return max(1, round(wide / picture.shape[-2]))


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """(..., H, W, 3) -> (..., H * factor, W * factor, 3), each pixel a square."""
    return picture.repeat(factor, -3).repeat(factor, -2)


def shrink(pictures: np.ndarray, wide: int) -> np.ndarray:
    """uint8 (N, H, W, 3), averaged over whole blocks until they are not much wider than `wide`."""
    factor = max(1, pictures.shape[-2] // wide)
    high, broad = (n // factor * factor for n in pictures.shape[1:3])
    return np.stack([np.asarray(Image.fromarray(p[:high, :broad]).reduce(factor)) for p in pictures])
