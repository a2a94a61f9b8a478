"""Continuous latents in standard deviations of their channels.

Shape suffixes: C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwm.nn.layers import constant
from hwm.types import DataSpec


def latent_scale(spec: DataSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1, 1) of the latents' channels: 0 and 1 where the spec has none, and 1 for a
    channel that is constant."""
    channels = spec.latent.channels or 0
    mean = spec.latent_mean or (0.0,) * channels
    std = tuple(s if s > 0 else 1.0 for s in spec.latent_std) or (1.0,) * channels
    return constant(mean, device)[:, None, None], constant(std, device)[:, None, None]
