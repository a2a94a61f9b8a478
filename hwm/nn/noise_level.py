"""Levels of noise as vectors that a network is conditioned on.

Shape suffixes: B batch, E width, F waves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WAVES, SLOWEST, FASTEST = 32, 1 / 8, 4.0  # of a quarter of a level's logarithm, which most levels have between -1 and 1
FAINT = 0.02  # noise on known frames that is as good as none, in standard deviations


class NoiseLevel(nn.Module):
    """Levels of noise above 0 (B,) -> (B, E): waves of a quarter of their logarithm, as EDM has it, and a Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(2 * WAVES, width)

    def forward(self, sigma_B: Tensor) -> Tensor:
        place_F = torch.arange(WAVES, device=sigma_B.device, dtype=torch.float32) / (WAVES - 1)
        angle_BF = 2 * math.pi * SLOWEST * (FASTEST / SLOWEST) ** place_F * (sigma_B.log() / 4)[:, None]
        out: Tensor = self.read(torch.cat([angle_BF.cos(), angle_BF.sin()], 1).to(self.read.weight.dtype))
        return out


class ContextLevel(NoiseLevel):
    """The same of the noise on known frames, of which there may be none: levels far below `FAINT` look alike."""

    def forward(self, sigma_B: Tensor) -> Tensor:
        return super().forward((sigma_B.square() + FAINT**2).sqrt())
