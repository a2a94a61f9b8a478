"""Parts of a diffusion transformer: flow time, adaptive norms, patches, action tokens.

Adaptive norms that begin as zero (AdaLN-Zero): Peebles and Xie 2022, arXiv 2212.09748.

Shape suffixes: ... any leading axes, B batch, T latent step, L tokens, K actions a step, A action dimension, D width,
C channels, H W latent grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.nn.actions import module_key, standardised
from hwm.types import DataSpec

TIME_SCALE = 1000.0  # the sinusoids were made for the numbers of a thousand noise levels


class TimeEmbedding(nn.Module):
    """Flow time (B,) in [0, 1] -> (B, D): D/2 cosines and sines of 1000 t, and an MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, t_B: Tensor) -> Tensor:
        half = self.fc1.in_features // 2
        frequency = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t_B.device, dtype=torch.float32))
        angle = TIME_SCALE * t_B.float()[:, None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], -1).to(self.fc1.weight.dtype)
        out: Tensor = self.fc2(F.silu(self.fc1(wave)))
        return out


class Modulation(nn.Module):
    """(B, D) -> `parts` vectors (B, 1, D) that scale, shift and gate; all zero at first."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts, self.linear = parts, nn.Linear(dim, parts * dim)

    def forward(self, c_BD: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(c_BD))[:, None].chunk(self.parts, -1)


def modulated(x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float = 1e-5) -> Tensor:
    """A LayerNorm without weights, scaled by 1 + scale and shifted."""
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps) * (1 + scale_B1D) + shift_B1D


def patches(x_BTCHW: Tensor, size: int) -> Tensor:
    """Latents -> (B, T, H/p, W/p, p * p * C): row in the patch, column in the patch, channel, the last fastest."""
    rows = x_BTCHW.unflatten(-2, (-1, size)).unflatten(-1, (-1, size))  # B T C h p w q
    return rows.permute(0, 1, 3, 5, 4, 6, 2).flatten(-3)


def unpatched(x: Tensor, size: int) -> Tensor:
    """The inverse of `patches`."""
    rows = x.unflatten(-1, (size, size, -1))  # B T h w p q C
    return rows.permute(0, 1, 6, 2, 4, 3, 5).flatten(-2).flatten(-3, -2)


class ActionTokens(nn.Module):
    """(B, T, K, A) actions in the units of the robot -> (B, L, D), a token for every action that is real.

    The first step of a tokenizer with stride s > 1 holds one frame, so only the last K/s of its K rows are real.
    """

    def __init__(self, spec: DataSpec, dim: int) -> None:
        super().__init__()
        self.specs, self.stride = spec.actions, spec.latent.stride
        self.read = nn.ModuleDict({module_key(e): nn.Linear(a.dim, 4 * dim) for e, a in spec.actions.items()})
        self.mix = nn.Linear(4 * dim, dim)

    def absent(self, per_step: int) -> int:
        """How many rows of a window's first step are not real."""
        return per_step - max(1, per_step // self.stride)

    def times(self, steps: int, per_step: int) -> tuple[float, ...]:
        """When each token acts, in latent steps: the last action that leads to step t is at t, as is its video."""
        rows = range(self.absent(per_step), steps * per_step)
        return tuple((row + 1) / per_step - 1 for row in rows)

    def forward(self, actions_BTKA: Tensor, embodiment: str, kept_B: Tensor) -> Tensor:
        """Tokens; where `kept` is 0, those of actions that are all at their mean."""
        rows_BLA = actions_BTKA.flatten(1, 2)[:, self.absent(actions_BTKA.shape[2]) :]
        x_BLA, _ = standardised(rows_BLA, self.specs[embodiment])
        x_BLA = (x_BLA * kept_B[:, None, None]).to(self.mix.weight.dtype)
        out: Tensor = self.mix(F.silu(self.read[module_key(embodiment)](x_BLA)))
        return out
