"""The network of a diffusion head: an MLP with adaptive norms (MAR, arXiv 2406.11838).

Shape suffixes: ... any leading axes, D numbers of a vector, C width of the condition, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WAVES, PERIOD = 256, 10_000.0
EPS = 1e-6


class StepEmbedding(nn.Module):
    """Diffusion steps (...) -> (..., W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, step: Tensor) -> Tensor:
        half = WAVES // 2
        rate_W = torch.exp(-math.log(PERIOD) * torch.arange(half, dtype=torch.float32, device=step.device) / half)
        angle_W = step[..., None].float() * rate_W
        waves_W = torch.cat([angle_W.cos(), angle_W.sin()], -1)
        found: Tensor = self.mlp(waves_W.to(next(self.parameters()).dtype))
        return found


class AdaptiveBlock(nn.Module):
    """A residual MLP whose norm and gate depend on a condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.read = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x_W: Tensor, condition_W: Tensor) -> Tensor:
        shift_W, scale_W, gate_W = self.read(condition_W).chunk(3, -1)
        return x_W + gate_W * self.mlp(self.in_ln(x_W) * (1 + scale_W) + shift_W)


class AdaptiveOut(nn.Module):
    """A norm that depends on a condition, and a Linear."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.read = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_W: Tensor, condition_W: Tensor) -> Tensor:
        shift_W, scale_W = self.read(condition_W).chunk(2, -1)
        found: Tensor = self.linear(F.layer_norm(x_W, x_W.shape[-1:], eps=EPS) * (1 + scale_W) + shift_W)
        return found


class Denoiser(nn.Module):
    """Noisy vectors (..., D), their steps (...), conditions (..., C) -> noise and place of the variance (..., 2 D)."""

    def __init__(self, numbers: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = StepEmbedding(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(numbers, width)
        self.res_blocks = nn.ModuleList(AdaptiveBlock(width) for _ in range(depth))
        self.final_layer = AdaptiveOut(width, 2 * numbers)

    def conditioned(self, condition_C: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The same as a function of noisy vectors and their steps, for asking many times about one condition: what does
        not change from step to step is computed once."""
        return partial(self.denoise, embedded_W=self.cond_embed(condition_C))

    def forward(self, x_D: Tensor, step: Tensor, condition_C: Tensor) -> Tensor:
        return self.denoise(x_D, step, self.cond_embed(condition_C))

    def denoise(self, x_D: Tensor, step: Tensor, embedded_W: Tensor) -> Tensor:
        """As `forward`, of embedded conditions. A step that all vectors share may come as one, without axes."""
        condition_W = self.time_embed(step) + embedded_W
        x_W = self.input_proj(x_D.to(self.input_proj.weight.dtype))
        for block in self.res_blocks:
            x_W = block(x_W, condition_W)
        found: Tensor = self.final_layer(x_W, condition_W)
        return found
