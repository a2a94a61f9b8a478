"""Mean velocities: what a flow model has to know to go from noise to data in a few steps.

The velocity at a time leads along the tangent of a path that bends, so its steps must be short. The mean velocity
u(x, t, d) over a span d of the path through x at time t leads to its end in one step, however long. A model that is
told spans is trained on velocities (a span of 0) for most examples, and for the others on targets that it makes itself,
without gradient, out of what it knows of shorter spans. Those of a shortcut model (Frans, Hafner, Levine and Abbeel
2024, arXiv 2410.12557) are two steps of half the span, one after the other, with spans of all of the path, a half, a
quarter, ...

Shape suffixes: B batch, ... any further axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hwm.objectives.flow import at_time, column, draw_times

# x (B, ...), times and spans (B,) -> mean velocities (B, ...)
Means = Callable[[Tensor, Tensor, Tensor], Tensor]
# the model's mean velocities, x, times and spans -> what it should say there
Target = Callable[[Means, Tensor, Tensor, Tensor], Tensor]
# how many, and where -> times and spans (B,)
Draw = Callable[[int, torch.device], tuple[Tensor, Tensor]]

HALVINGS = 5
"""The shortest span is 1 / 2^5 of the path; half of it counts as no span at all."""


@dataclass(frozen=True)
class Objective:
    """What a model of mean velocities is trained on.

    Attributes:
        draw: times and spans of the examples that have a span.
        target: what the mean velocity there should be, from what the model knows of shorter spans.
    """

    draw: Draw
    target: Target


def draw_halves(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Spans 1, 1/2, ..., 1/2^5 of equal likelihood, and times that are whole multiples of the span."""
    pieces = 2.0 ** torch.randint(HALVINGS + 1, (batch,), device=device)
    return (torch.rand(batch, device=device) * pieces).floor() / pieces, 1 / pieces


def shortcut_target(means: Means, x: Tensor, t_B: Tensor, d_B: Tensor) -> Tensor:
    """The mean of two steps of half the span."""
    half_B = d_B / 2
    asked_B = torch.where(half_B < 2.0**-HALVINGS, 0.0, half_B)
    first = means(x, t_B, asked_B)
    second = means(x + column(half_B, x) * first, t_B + half_B, asked_B)
    return (first + second) / 2


OBJECTIVES = {"shortcut": Objective(draw_halves, shortcut_target)}


class Lesson(NamedTuple):
    """What a model is shown of a batch, and what it should say.

    Attributes:
        noisy: points of the paths (B, ...).
        t, span: their flow times, and over how much of the path the mean is asked for (B,).
        target: mean velocities (B, ...).
    """

    noisy: Tensor
    t: Tensor
    span: Tensor
    target: Tensor


def lesson(
    objective: Objective | None,
    spanned: int,
    means_of: Callable[[slice], Means],
    data: Tensor,
    noise: Tensor,
    middle: float = 0.0,
) -> Lesson:
    """Velocities at random flow times; of the last `spanned` examples, mean velocities over random spans.

    Args:
        objective: None where nothing is spanned.
        means_of: the model's mean velocities of some of the examples.
        data, noise: (B, ...).
        middle: of the flow times without a span, see `draw_times`.
    """
    size, device = len(data), data.device
    t_B, span_B, target, part = draw_times(size, device, middle), torch.zeros(size, device=device), data - noise, None
    if objective and spanned:
        part = slice(size - spanned, size)
        t_B[part], span_B[part] = objective.draw(spanned, device)
    noisy = at_time(data, noise, t_B)
    if objective and part:
        with torch.no_grad():
            target[part] = objective.target(means_of(part), noisy[part], t_B[part], span_B[part])
    return Lesson(noisy, t_B, span_B, target)
