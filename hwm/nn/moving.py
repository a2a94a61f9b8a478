"""Pictures and latents that move: sampled where a flow points, and the flow of a frame predicted.

Shape suffixes: N pictures, B batch, D width, C channels, H W grid, h w coarser grid, E width of the condition; the 2 of
a flow is right and down, in cells of the grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.nn.unet import UNetBlock

REACH = 4.0
"""Cells that a prediction of 1 stands for, so that large movements are learned as soon as small ones."""


def moved(x_NCHW: Tensor, flow_N2HW: Tensor, views: int = 1) -> Tensor:
    """Pictures as they look where each cell is taken from where its flow points, between cells by interpolation, in
    float32. Beyond an edge the edge goes on.

    Args:
        views: pictures of the same size that lie one below the other in each; none moves into another.
    """
    x, flow = (t.float().unflatten(2, (views, -1)).transpose(1, 2).flatten(0, 1) for t in (x_NCHW, flow_N2HW))
    height, width = x.shape[2:]
    down, right = torch.meshgrid(
        *(torch.arange(n, device=x.device, dtype=torch.float32) + 0.5 for n in (height, width)), indexing="ij"
    )
    at_NHW2 = (torch.stack([right, down]) + flow).movedim(1, -1)
    grid_NHW2 = at_NHW2 * at_NHW2.new_tensor([2 / width, 2 / height]) - 1
    out = F.grid_sample(x, grid_NHW2, padding_mode="border", align_corners=False)
    return out.unflatten(0, (-1, views)).transpose(1, 2).flatten(2, 3)


def camera_flow(shift_N2: Tensor, zoom_N: Tensor, grid: tuple[int, int]) -> Tensor:
    """The flow (N, 2, H, W) of pictures that are shifted, by shares of their sides, and drawn together about their
    middle by a factor."""
    height, width = grid
    down, right = torch.meshgrid(*(torch.arange(n, device=zoom_N.device) + 0.5 - n / 2 for n in grid), indexing="ij")
    sides_211 = shift_N2.new_tensor([width, height])[:, None, None]
    return (zoom_N[:, None, None, None] - 1) * torch.stack([right, down]) + shift_N2[..., None, None] * sides_211


class Flow(nn.Module):
    """Where the cells of the next frame come from in the last one, (B, 2, H, W); still at first.

    A movement of the whole picture that is linear in the place, from the condition alone (how a camera turns and drives
    is known from the actions), and another of each cell, from what is seen.

    Args:
        width: of the features.
        condition: width of the condition.
        patch: cells of the flow, along each side, of a cell of the features.
        views: as of `moved`.
    """

    def __init__(self, width: int, condition: int, patch: int = 1, views: int = 1) -> None:
        super().__init__()
        self.patch, self.views = patch, views
        self.place = nn.Conv2d(2, width, 1)
        self.block = UNetBlock(width, condition, attention=False)
        self.cells = nn.Conv2d(width, 2 * patch**2, 3, padding=1)
        self.whole = nn.Linear(condition, 6)
        for layer in (self.cells, self.whole):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x_BDhw: Tensor, condition_BE: Tensor) -> Tensor:
        """Of features of the known frames, and a condition of the actions."""
        height, width = x_BDhw.shape[2] // self.views, x_BDhw.shape[3]
        coarse, fine = (self.places(height * p, width * p, x_BDhw.device) for p in (1, self.patch))
        x_BDhw = self.block(x_BDhw + self.place(coarse[None].to(x_BDhw.dtype)), condition_BE)
        each_B2HW = F.pixel_shuffle(self.cells(F.silu(x_BDhw)).float(), self.patch)
        ones_3HW = torch.cat([torch.ones_like(fine[:1]), fine])
        whole_B2HW = torch.einsum("bfp,phw->bfhw", self.whole(condition_BE).float().unflatten(1, (2, 3)), ones_3HW)
        return REACH * (each_B2HW + whole_B2HW)

    def places(self, height: int, width: int, device: torch.device) -> Tensor:
        """Right and down from the middle of each view, from -1 to 1, (2, H, W)."""
        down, right = torch.meshgrid(
            *((torch.arange(n, device=device) + 0.5) * (2 / n) - 1 for n in (height, width)), indexing="ij"
        )
        return torch.stack([right, down]).repeat(1, self.views, 1)


def random_camera(count: int, shift: float, zoom: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shifts (N, 2) and zooms (N,) for `camera_flow`, evenly drawn: up to a share of the sides either way, and up to a
    factor either way."""
    return (
        (2 * torch.rand(count, 2, device=device) - 1) * shift,
        ((2 * torch.rand(count, device=device) - 1) * math.log(zoom)).exp(),
    )
