"""Finite scalar quantisation (Mentzer et al., 2023, arXiv 2309.15505).

Each of a few channels is bounded and rounded to one of its levels; the digits of a cell, read as a mixed-radix number
whose least significant digit is channel 0, are its token id. Arithmetic is float32 whatever goes in and whatever type
the module around is cast to: half precision rounds one code in a few hundred to a neighbour.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hwm.types import join_digits, split_digits


class Scales(NamedTuple):
    """By channel, (C, 1, ..., 1): how far values reach, what is subtracted, added before, and the middle level."""

    bound: Tensor
    offset: Tensor
    shift: Tensor
    middle: Tensor


class FSQ(nn.Module):
    """Bounds and rounds each channel to its number of levels; gradients pass straight through the rounding.

    Channels are dimension 1, and any number of dimensions may follow. It has no weights and no buffers.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = tuple(levels)

    @property
    def vocab(self) -> int:
        """Number of ids."""
        return math.prod(self.levels)

    def scales(self, like: Tensor) -> Scales:
        """By channel, for tensors of this device and number of dimensions."""
        return _scales(self.levels, like.ndim, like.device)

    def bounded(self, z: Tensor) -> Tensor:
        """Continuous codes (B, C, ...) -> what is rounded to whole levels, float32."""
        s = self.scales(z)
        return torch.tanh(z.float() + s.shift) * s.bound - s.offset

    def forward(self, z: Tensor) -> Tensor:
        """Continuous codes (B, C, ...) -> quantised codes in [-1, 1], float32."""
        bounded = self.bounded(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self.scales(z).middle

    def ids(self, codes: Tensor) -> Tensor:
        """Quantised codes (B, C, ...) -> token ids (B, ...) int64."""
        middle = self.scales(codes).middle
        digits = (codes.float() * middle + middle).round().long()
        return join_digits(digits.movedim(1, -1), self.levels)

    def codes(self, ids: Tensor) -> Tensor:
        """Token ids (B, ...), which must lie in 0..vocab-1 -> quantised codes (B, C, ...), float32."""
        digits = split_digits(ids, self.levels).movedim(-1, 1)
        middle = self.scales(digits).middle
        return (digits - middle) / middle


@lru_cache(maxsize=64)
def _scales(levels: tuple[int, ...], dims: int, device: torch.device) -> Scales:
    """Made outside inference mode, as all that is kept."""
    with torch.inference_mode(False):
        level = torch.tensor(levels, dtype=torch.float32, device="cpu").view(-1, *(1,) * (dims - 2))
        # an even number of levels has no middle one: half a level of offset keeps them symmetric about zero
        offset = (level % 2 == 0).float() * 0.5
        half = (level - 1) * (1 + 1e-3) / 2
        middle = torch.div(level, 2, rounding_mode="floor")
        return Scales(*(x.to(device) for x in (half, offset, torch.atanh(offset / half), middle)))
