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
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from hwm.errors import HwmError

# x (B, ...), a flow time and a step size -> mean velocity (B, ...) over a step of that size along the path; a step size
# of 0 asks for the velocity at that time. A field that knows no step sizes gives that velocity for all of them.
Field = Callable[[Tensor, float, float], Tensor]
Step = Callable[[Field, Tensor, float, float], Tensor]


def euler(field: Field, x: Tensor, t: float, dt: float) -> Tensor:
    """First order, one evaluation; exact for a field of mean velocities."""
    return x + dt * field(x, t, dt)


def midpoint(field: Field, x: Tensor, t: float, dt: float) -> Tensor:
    """Second order, two evaluations."""
    return x + dt * field(x + dt / 2 * field(x, t, 0.0), t + dt / 2, 0.0)


def heun(field: Field, x: Tensor, t: float, dt: float) -> Tensor:
    """Second order, two evaluations: the trapezoid rule with Euler's guess of the end."""
    first = field(x, t, 0.0)
    return x + dt / 2 * (first + field(x + dt * first, t + dt, 0.0))


@dataclass(frozen=True)
class FlowSampler:
    """How a sample is drawn.

    Attributes:
        steps: of the solver, evenly spaced over the flow time; "dopri5" chooses its own.
        solver: "euler" evaluates the field once a step, "midpoint" and "heun" twice. "dopri5" (of the package
            torchdiffeq) takes steps as long as its error allows.
        guidance: how far the velocity is moved from the unconditional one towards the conditional one and beyond: 1 is
            the conditional velocity and costs one evaluation, all others cost two.
        tolerance: largest error of a step of "dopri5", relative and absolute, over the whole batch.
    """

    steps: int = 50
    solver: Literal["euler", "midpoint", "heun", "dopri5"] = "euler"
    guidance: float = 3.0
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.solver not in SOLVERS or not math.isfinite(self.guidance) or not self.tolerance > 0:
            raise HwmError(
                f"steps={self.steps} must be at least 1, solver={self.solver!r} one of {', '.join(SOLVERS)}, "
                f"guidance={self.guidance} finite, and tolerance={self.tolerance} above 0"
            )


Solver = Callable[[Field, Tensor, FlowSampler], Tensor]


def stepwise(step: Step, field: Field, x: Tensor, sampler: FlowSampler) -> Tensor:
    """Evenly spaced steps; each starts from what the one before it came to."""
    for i in range(sampler.steps):
        x = step(field, x, i / sampler.steps, 1 / sampler.steps)
    return x


def dopri5(field: Field, x: Tensor, sampler: FlowSampler) -> Tensor:
    """Runge-Kutta of order 5 with an error estimate (Dormand and Prince 1980), of torchdiffeq.

    Raises:
        HwmError: torchdiffeq is not installed.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise HwmError(
            "the solver 'dopri5' is torchdiffeq's: pip install 'humanoid-world-models[ode]', or choose "
            f"{', '.join(name for name in SOLVERS if name != 'dopri5')}"
        ) from error
    times = torch.tensor([0.0, 1.0], device=x.device)
    path: Tensor = odeint(
        lambda t, x: field(x, float(t), 0.0), x, times, rtol=sampler.tolerance, atol=sampler.tolerance, method="dopri5"
    )
    return path[-1]


SOLVERS: dict[str, Solver] = {
    "euler": partial(stepwise, euler),
    "midpoint": partial(stepwise, midpoint),
    "heun": partial(stepwise, heun),
    "dopri5": dopri5,
}


def integrate(field: Field, x: Tensor, sampler: FlowSampler) -> Tensor:
    """Follow a velocity field from flow time 0 to 1."""
    return SOLVERS[sampler.solver](field, x, sampler)


def guided(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """unconditional + guidance (conditional - unconditional)."""
    return torch.lerp(unconditional, conditional, guidance)


def draw_times(batch: int, device: torch.device, logit_normal_mean: float = 0.0) -> Tensor:
    """Flow times (B,) for training, logit-normal: the logistic function of normal draws of deviation 1 about a mean.

    Most of them are near one half, or earlier, where there is more noise, for a mean below 0.
    """
    return (torch.randn(batch, device=device) + logit_normal_mean).sigmoid()


def at_time(data: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
    """The point of the path from noise to data at each example's own time: (B, ...)."""
    return torch.lerp(noise, data, column(t_B, data))


def column(t_B: Tensor, like: Tensor) -> Tensor:
    """One number an example, in a shape that multiplies (B, ...)."""
    return t_B.view(-1, *[1] * (like.dim() - 1))
