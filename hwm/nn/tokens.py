"""Token ids to vectors: over the whole vocabulary, or over the digits that ids are made of.

Shape suffixes: ... any leading axes, D width.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.nn.layers import constant
from hwm.nn.views import ViewEmbedding
from hwm.types import LatentSpec, split_digits


class DigitTable(nn.Embedding):
    """An id's vector is the sum of those of its digits; the rows of all digits lie in one table."""

    def __init__(self, levels: tuple[int, ...], dim: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(sum(levels), dim, dtype=dtype)
        self.levels = levels
        self.starts = tuple(accumulate(levels[:-1], initial=0))

    def forward(self, ids: Tensor) -> Tensor:
        rows = split_digits(ids, self.levels) + constant(self.starts, ids.device, torch.long)
        return F.embedding_bag(rows.flatten(0, -2), self.weight, mode="sum").unflatten(0, ids.shape)


class TokenEmbedding(nn.Module):
    """A table of ids, one vector that stands for "masked", and where there are several views one for each."""

    def __init__(self, table: nn.Embedding, latent: LatentSpec) -> None:
        super().__init__()
        self.table = table
        self.mask_vector = nn.Parameter(torch.zeros(table.embedding_dim))
        self.views = ViewEmbedding(latent, table.embedding_dim)

    def forward(self, ids: Tensor, masked: Tensor | None = None) -> Tensor:
        """ids of whole steps (..., S) and, where some are masked, bool (..., S) -> (..., S, D)."""
        x_D: Tensor = self.table(ids)
        x_D = x_D if masked is None else torch.where(masked[..., None], self.mask_vector.to(x_D.dtype), x_D)
        return self.views(x_D)
