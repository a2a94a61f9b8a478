"""Several cameras through the tokenizer of one: each view by itself, and their cells one below the other.

Shape suffixes: B batch, V views, F frames, T latent step, C channels, H W picture or grid of one view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.types import Tokenizer


def for_views(tokenizer: Tokenizer, views: Sequence[str]) -> Tokenizer:
    """A tokenizer for pictures of these cameras, one below the other; for a single camera the tokenizer itself.

    Raises:
        HwmError: it is one of other cameras.
    """
    if tuple(views) == tokenizer.latent.views:
        return tokenizer
    if tokenizer.latent.views:
        raise HwmError(
            f"this tokenizer is for the views {', '.join(tokenizer.latent.views)}, not for {', '.join(views) or 'one'}"
        )
    return Views(tokenizer, tuple(views))


class Views(nn.Module, Tokenizer):
    """A tokenizer that encodes and decodes the pictures of each camera by themselves.

    What one camera sees changes the cells of its own rows alone. Its identity is that of the tokenizer of one camera,
    whose weights make the latents; which views they are of is in `latent`.
    """

    def __init__(self, each: Tokenizer, views: tuple[str, ...]) -> None:
        super().__init__()
        (high, wide), (rows, columns), count = each.size, each.latent.grid, len(views)
        self.each, self.count = each, count
        self.id, self.published, self.lookback, self.stored = each.id, each.published, each.lookback, each.stored
        self.size = count * high, wide
        self.latent = replace(each.latent, grid=(count * rows, columns), views=views)

    def encode(self, video_BFCHW: Tensor) -> Tensor:
        return self._joined(self.each.encode(self._apart(video_BFCHW)))

    def decode(self, latents: Tensor) -> Tensor:
        return self._joined(self.each.decode(self._apart(latents)))

    def encode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        return map(self._joined, self.each.encode_pieces(map(self._apart, pieces)))

    def decode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        return map(self._joined, self.each.decode_pieces(map(self._apart, pieces)))

    def of_size(self, size: tuple[int, int]) -> Tokenizer:
        if size[0] % self.count:
            raise HwmError(f"pictures of {size[0]} rows cannot be shared out among {self.count} views")
        return Views(self.each.of_size((size[0] // self.count, size[1])), self.latent.views)

    def shift(self, latents: Tensor, keep: int) -> Tensor:
        return self._joined(self.each.shift(self._apart(latents), keep))

    def _apart(self, x: Tensor) -> Tensor:
        """(B, T, ..., V*H, W) -> (B*V, T, ..., H, W): views are clips of their own."""
        return torch.stack(x.chunk(self.count, -2), 1).flatten(0, 1)

    def _joined(self, x: Tensor) -> Tensor:
        """The inverse of `_apart`."""
        return torch.cat(x.unflatten(0, (-1, self.count)).unbind(1), -2)
