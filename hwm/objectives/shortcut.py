"""Mean velocities: what a flow model has to know to go from noise to data in a few steps.

The velocity at a time leads along the tangent of a path that bends, so its steps must be short. The mean velocity
u(x, t, d) over a step of size d along the path through x at time t leads to its end in one step, however long. A model
conditioned on the step size is trained on velocities (a step size of 0) for most examples, and for the others on
self-consistency targets, which it makes itself, without gradient, out of what it knows of smaller steps. Those of a
shortcut model (Frans, Hafner, Levine and Abbeel 2024, arXiv 2410.12557) are two steps of half the size, one after the
other, with step sizes of all of the path, a half, a quarter, ...

Shape suffixes: B batch, ... any further axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hwm.objectives.flow import at_time, column, draw_times

# x (B, ...), times and step sizes (B,) -> mean velocities (B, ...)
Means = Callable[[Tensor, Tensor, Tensor], Tensor]
# the model's mean velocities, x, times and step sizes -> what it should say there
Target = Callable[[Means, Tensor, Tensor, Tensor], Tensor]
# how many, and where -> times and step sizes (B,)
Draw = Callable[[int, torch.device], tuple[Tensor, Tensor]]

HALVINGS = 5
"""The smallest step size is 1 / 2^5 of the path; half of it counts as 0."""


@dataclass(frozen=True)
class Objective:
    """What a model of mean velocities is trained on.

    Attributes:
        draw: times and step sizes of the examples with a self-consistency target.
        target: what the mean velocity there should be, from what the model knows of shorter step sizes.
    """

    draw: Draw
    target: Target


def draw_halves(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Step sizes 1, 1/2, ..., 1/2^5 of equal likelihood, and times that are whole multiples of the step size."""
    pieces = 2.0 ** torch.randint(HALVINGS + 1, (batch,), device=device)
    return (torch.rand(batch, device=device) * pieces).floor() / pieces, 1 / pieces


def shortcut_target(means: Means, x: Tensor, t_B: Tensor, d_B: Tensor) -> Tensor:
    """The mean of two steps of half the size."""
    half_B = d_B / 2
    asked_B = torch.where(half_B < 2.0**-HALVINGS, 0.0, half_B)
    first = means(x, t_B, asked_B)
    second = means(x + column(half_B, x) * first, t_B + half_B, asked_B)
    return (first + second) / 2


OBJECTIVES = {"shortcut": Objective(draw_halves, shortcut_target)}


class Targets(NamedTuple):
    """What a model is shown of a batch, and what it should say.

    Attributes:
        noisy: points of the paths (B, ...).
        t, step_size: their flow times, and over how much of the path the mean is asked for (B,).
        target: mean velocities (B, ...).
    """

    noisy: Tensor
    t: Tensor
    step_size: Tensor
    target: Tensor


def training_targets(
    objective: Objective | None,
    self_consistent: int,
    means_of: Callable[[slice], Means],
    data: Tensor,
    noise: Tensor,
    logit_normal_mean: float = 0.0,
) -> Targets:
    """Velocities at random flow times; of the last `self_consistent` examples, mean velocities over random step sizes.

    Args:
        objective: None where no mean velocities are learned.
        means_of: the model's mean velocities of some of the examples.
        data, noise: (B, ...).
        logit_normal_mean: of the flow times without a step size, see `draw_times`.
    """
    size, device = len(data), data.device
    t_B, step_size_B = draw_times(size, device, logit_normal_mean), torch.zeros(size, device=device)
    target, part = data - noise, None
    if objective and self_consistent:
        part = slice(size - self_consistent, size)
        t_B[part], step_size_B[part] = objective.draw(self_consistent, device)
    noisy = at_time(data, noise, t_B)
    if objective and part:
        with torch.no_grad():
            target[part] = objective.target(means_of(part), noisy[part], t_B[part], step_size_B[part])
    return Targets(noisy, t_B, step_size_B, target)
