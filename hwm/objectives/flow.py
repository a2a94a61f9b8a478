"""Conditional flow matching along straight paths, and the solvers that follow a velocity field from noise to data.

Flow matching: Lipman et al. 2022, arXiv 2210.02747; straight paths: Liu et al. 2022, arXiv 2209.03003; times drawn from
a logit-normal distribution: Esser et al. 2024, arXiv 2403.03206; guidance: Ho and Salimans 2022, arXiv 2207.12598.

Flow time runs from 0, noise, to 1, data: x(t) = (1 - t) noise + t data, whose velocity is data - noise at every t.

Shape suffixes: B batch, ... any further axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hwm.types import Generator, HwmError

Field = Callable[[Tensor, float], Tensor]  # x (B, ...) and a flow time -> velocity (B, ...)
Step = Callable[[Field, Tensor, float, float], Tensor]


def euler(field: Field, x: Tensor, t: float, dt: float) -> Tensor:
    """First order, one evaluation."""
    return x + dt * field(x, t)


def midpoint(field: Field, x: Tensor, t: float, dt: float) -> Tensor:
    """Second order, two evaluations."""
    return x + dt * field(x + dt / 2 * field(x, t), t + dt / 2)


def heun(field: Field, x: Tensor, t: float, dt: float) -> Tensor:
    """Second order, two evaluations: the trapezoid rule with Euler's guess of the end."""
    first = field(x, t)
    return x + dt / 2 * (first + field(x + dt * first, t + dt))


SOLVERS: dict[str, Step] = {"euler": euler, "midpoint": midpoint, "heun": heun}


@dataclass(frozen=True)
class FlowSampler:
    """How a sample is drawn.

    Attributes:
        steps: of the solver, evenly spaced over the flow time.
        solver: "euler" evaluates the field once a step, "midpoint" and "heun" twice.
        guidance: how far the velocity is moved from the unconditional one towards the conditional one and beyond: 1 is
            the conditional velocity and costs one evaluation, all others cost two.
    """

    steps: int = 50
    solver: Literal["euler", "midpoint", "heun"] = "euler"
    guidance: float = 3.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.solver not in SOLVERS or not math.isfinite(self.guidance):
            raise HwmError(
                f"steps={self.steps} must be at least 1, solver={self.solver!r} one of {', '.join(SOLVERS)}, and "
                f"guidance={self.guidance} finite"
            )


def integrate(field: Field, x: Tensor, sampler: FlowSampler) -> Tensor:
    """Follow a velocity field from flow time 0 to 1; every step starts from what the one before it came to."""
    step = SOLVERS[sampler.solver]
    for i in range(sampler.steps):
        x = step(field, x, i / sampler.steps, 1 / sampler.steps)
    return x


def guided(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """unconditional + guidance (conditional - unconditional)."""
    return torch.lerp(unconditional, conditional, guidance)


def draw_times(batch: int, device: torch.device) -> Tensor:
    """Flow times (B,) for training: the logistic function of standard normal draws, most of them near one half."""
    return torch.randn(batch, device=device).sigmoid()


def at_time(data: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
    """The point of the path from noise to data at each example's own time: (B, ...)."""
    return torch.lerp(noise, data, t_B.view(-1, *[1] * (data.dim() - 1)))


def normal(shape: tuple[int, ...], device: torch.device, generator: Generator = None) -> Tensor:
    """Standard normal draws (B, ...), from one generator or from one for each row."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(shape, device=device, generator=generator)
    return torch.stack([torch.randn(shape[1:], device=device, generator=g) for g in generator])
