"""Noise on known frames in training, so that a model learns to mend the errors of its own earlier frames.

GameNGen (Valevski et al. 2024, arXiv 2408.14837): each clip has a level of its own, which the model is told.

Shape suffixes: B batch, ... any further axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.objectives.flow import column


def check_levels(levels: tuple[float, float]) -> None:
    """Raise `HwmError` where these are no least and most level, and no two zeros."""
    low, high = levels
    if not (0 < low <= high or low == high == 0):
        raise HwmError(f"context_noise={levels} must be a least and a most level above 0, or two zeros for none")


def noised(known: Tensor, levels: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Known frames (B, ...) with normal noise, and its level in each row (B,).

    Args:
        levels: least and most; all of one order of magnitude are as likely as all of another. Two zeros add none.
    """
    low, high = levels
    share_B = torch.rand(len(known), device=known.device)
    level_B = low * (high / low) ** share_B if low else torch.zeros_like(share_B)
    return known + column(level_B, known) * torch.randn_like(known), level_B
