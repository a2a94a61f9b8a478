"""Small parts: the MLP, its initialisation, and constants that live beside a module and not in it.

Shape suffixes: ... any leading axes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hwm.devices import machine_memory

ROWS_AT_ONCE = 2048  # see `in_parts`


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with dropout after both (as in the released Masked-HWM): (..., D) -> (..., D)."""

    def __init__(self, dim: int, ratio: float = 4.0, drop: float = 0.0) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act, self.drop = nn.GELU(), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def added(x: Tensor, fresh: Tensor) -> Tensor:
    """x + fresh, in the place of `fresh`, which nobody else may hold; a sum of its own, in the type of `x`, under
    autocast, whose Linears put out half precision, and in training, where a selective checkpoint may hold `fresh`."""
    return x + fresh if fresh.dtype != x.dtype or torch.is_grad_enabled() else fresh.add_(x)


def plainly(function: Callable[..., Any], *given: Any) -> Any:
    """function(*given); the counterpart of `recomputed`."""
    return function(*given)


def recomputed(function: Callable[..., Any], *given: Any) -> Any:
    """function(*given), of which only what was given is kept for the backward pass, which computes the rest again.

    It stops where the last thing that it needs is made: what comes out of a function's last Linear is not made twice.
    """
    if not torch.is_grad_enabled():
        return function(*given)
    run = function if torch.compiler.is_compiling() else partial(_forgetting, function)
    return checkpoint(run, *given, use_reentrant=False)


FORGETTING = ContextVar("FORGETTING", default=False)
"""Whether what runs now is computed again in the backward pass, by the decision of the block that it is part of."""


def _forgetting(function: Callable[..., Any], *given: Any) -> Any:
    token = FORGETTING.set(True)
    try:
        return function(*given)
    finally:
        FORGETTING.reset(token)


SPARING = ContextVar("SPARING", default=False)
"""Whether a pass takes as little memory as it can; see `sparing`."""


@contextmanager
def sparing(on: bool = True) -> Iterator[None]:
    """Let layers that can be made to forget activations do so, however much room there is."""
    token = SPARING.set(on or SPARING.get())
    try:
        yield
    finally:
        SPARING.reset(token)


def roomy(size: float, device: torch.device) -> bool:
    """Whether so many bytes may be kept for the backward pass instead of computing again what they hold.

    On a graphics card, whose memory is what limits a batch, nothing is; on a CPU what takes up to a quarter of the
    machine's memory, of which weights, optimizer and whatever else runs take their part.
    """
    return device.type == "cpu" and not SPARING.get() and size <= machine_memory() / 4


def in_parts(function: Callable[..., Tensor], axis: int, *given: Tensor) -> Tensor:
    """A function that keeps the places along an axis apart, on a CPU of some of them at a time.

    What it makes on the way is then small beside what a pass keeps of every layer, fits the caches, and leaves small
    holes in memory. (At 2048 rows of 256, the peak of a training step of GENIE-35M is 1.6 GB, at 4096, all at once,
    1.9 GB, in the same time.)

    Args:
        given: (..., D), all of the same length along the axis; what is in the first decides how many go at a time.
    """
    x_D = given[0]
    rows = x_D.numel() // max(1, x_D.shape[axis] * x_D.shape[-1])  # at each place along the axis
    size = max(1, ROWS_AT_ONCE // max(1, rows))
    if x_D.device.type != "cpu" or x_D.shape[axis] <= size:
        return function(*given)
    parts = zip(*(g.split(size, axis) for g in given), strict=True)
    return torch.cat([function(*part) for part in parts], axis)


def init_weights(root: nn.Module, std: float = 0.02) -> None:
    """Linear and embedding weights N(0, std), biases zero, norms one: the initialisation of the released Masked-HWM.

    The projections that end a residual branch are not scaled down by depth: the release does not.
    """
    for module in root.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@lru_cache(maxsize=256)
def constant(values: tuple, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A (nested) tuple of numbers as a tensor, made once a device.

    Constants are no buffers: a module cast to bfloat16 or built on the meta device keeps them whole, and the state
    dict holds weights alone. They are made outside inference mode, so that training may use what play made first.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
