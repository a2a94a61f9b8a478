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


def refill(out: Tensor, generator: Generator = None) -> Tensor:
    """U(0, 1) in place of what a float32 tensor (B, ...) holds: the numbers of `uniform_like`."""
    if generator is None or isinstance(generator, torch.Generator):
        return out.uniform_(generator=generator)
    for row, one in zip(out, generator, strict=True):
        row.uniform_(generator=one)
    return out


def gumbel(logits: Tensor, generator: Generator = None) -> Tensor:
    """Standard Gumbel noise: argmax(logits / T + noise) is a draw from softmax(logits / T)."""
    return gumbel_of(uniform_like(logits, generator))


def gumbel_of(uniform: Tensor) -> Tensor:
    """The same from uniform numbers."""
    return uniform.clamp(1e-20, 1 - 1e-7).log_().neg_().log_().neg_()
