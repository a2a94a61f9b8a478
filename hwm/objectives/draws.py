"""Random draws from one generator, or from one for each row of a batch: so a row is the same in any company.

Shape suffixes: B batch, ... any further axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwm.types import Generator


def normal(shape: tuple[int, ...], device: torch.device, generator: Generator = None) -> Tensor:
    """N(0, 1) of a shape (B, ...)."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(shape, device=device, generator=generator)
    return torch.stack([torch.randn(shape[1:], device=device, generator=g) for g in generator])


def uniform_like(x: Tensor, generator: Generator = None) -> Tensor:
    """U(0, 1) of the shape of x (B, ...)."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(x.shape, device=x.device, generator=generator)
    return torch.stack([torch.rand(x.shape[1:], device=x.device, generator=g) for g in generator])


def gumbel(logits: Tensor, generator: Generator = None) -> Tensor:
    """Standard Gumbel noise: argmax(logits / T + noise) is a draw from softmax(logits / T)."""
    u = uniform_like(logits, generator).clamp_(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(u))
