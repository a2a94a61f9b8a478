"""Which camera a cell is of: a learned vector for each of several views, added where cells are embedded.

Shape suffixes: ... any leading axes, S cells of a step, L cells by number, D width, H W grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwm.types import LatentSpec


class ViewEmbedding(nn.Module):
    """Adds the vector of its view to each cell; zero at first. For data of one camera it has no weights, adds nothing.

    Views share the cells of a step evenly, as `LatentSpec.views` has it: neighbours in the grid are of one view but at
    the border of two, which only this tells.
    """

    def __init__(self, latent: LatentSpec, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(len(latent.views), dim)) if latent.views else None

    def forward(self, x_SD: Tensor) -> Tensor:
        """Embedded cells of whole steps, (..., S, D)."""
        if self.vectors is None:
            return x_SD
        each = x_SD.shape[-2] // len(self.vectors)
        return x_SD + self.vectors.repeat_interleave(each, 0).to(x_SD.dtype)

    def in_grid(self, x_DHW: Tensor) -> Tensor:
        """The same of features that stand before the grid, (..., D, H, W)."""
        return x_DHW if self.vectors is None else self(x_DHW.flatten(-2).mT).mT.unflatten(-1, x_DHW.shape[-2:])

    def at(self, x_LD: Tensor, place_L: Tensor, cells: int, lead: int = 0) -> Tensor:
        """The same of some tokens (..., L, D), at places of a sequence of steps of `cells` after `lead` others."""
        if self.vectors is None:
            return x_LD
        view_L = (place_L - lead) % cells * len(self.vectors) // cells
        return x_LD + self.vectors.to(x_LD.dtype)[view_L]
