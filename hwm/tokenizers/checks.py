"""What tokenizers refuse: video and latents of another shape or kind than their own."""

from __future__ import annotations

from torch import Tensor

from hwm.errors import HwmError
from hwm.types import LatentSpec, Tokenizer, check_ids


def nearest_size(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """The (height, width) nearest to one, of sides that are multiples of a cell's."""
    height, width = (max(cell, round(side / cell) * cell) for side in size)
    return height, width


def check_sides(pictures: LatentSpec, cell: int) -> None:
    """Raise `HwmError` unless these are colour pictures that divide into cells of so many pixels a side."""
    height, width = pictures.grid
    near = nearest_size(pictures.grid, cell)
    if pictures.channels != 3 or near != (height, width):
        got = f"{height} x {width}" if pictures.channels == 3 else f"{height} x {width} of {pictures.channels} channels"
        raise HwmError(
            f"this tokenizer takes colour pictures whose sides are multiples of {cell}, not {got}: the nearest size is "
            f"{near[0]} x {near[1]}"
        )


def check_video(tokenizer: Tokenizer, video: Tensor, first: bool = True) -> None:
    """Raise `HwmError` unless this is video of a tokenizer's size and of whole latent steps (the first or not)."""
    height, width = tokenizer.size
    if video.ndim != 5 or tuple(video.shape[2:]) != (3, height, width):
        raise HwmError(f"this tokenizer takes video of shape (B, F, 3, {height}, {width}), got {tuple(video.shape)}")
    stride = tokenizer.latent.stride
    if video.shape[1] < 1 or (video.shape[1] - int(first)) % stride:
        raise HwmError(
            f"{video.shape[1]} frames do not fill whole latent steps: they hold {int(first)} + {stride} * n frames"
        )


def check_latents(tokenizer: Tokenizer, latents: Tensor) -> None:
    """Raise `HwmError` unless these are latents of a tokenizer's shape and kind, and ids of its vocabulary."""
    spec, floats = tokenizer.latent, latents.is_floating_point()
    shape = spec.grid if spec.channels is None else (spec.channels, *spec.grid)
    if latents.ndim != 2 + len(shape) or tuple(latents.shape[2:]) != shape or floats != (spec.vocab is None):
        what = "integer ids" if spec.vocab else "floating-point latents"
        raise HwmError(
            f"this tokenizer takes {what} of shape (B, T, {', '.join(map(str, shape))}), "
            f"got {latents.dtype} {tuple(latents.shape)}"
        )
    if not latents.shape[1]:
        raise HwmError("there are no latents to decode")
    if spec.vocab:
        check_ids(latents, spec.vocab)
