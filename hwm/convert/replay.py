"""Sampling as released code does it, where ours departs: for recorded outputs alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import Generator


@dataclass(frozen=True)
class ReleasedSampler(MaskGITSampler):
    """The schedule of 1X's code and of what was built on it, and random orders as they were recorded.

    Attributes:
        draws: for each look but the last, of each step, what was drawn in place of confidences: (B, S).
    """

    draws: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    def counts(self, cells: int) -> tuple[int, ...]:
        """ceil(cos(pi/2 k/K) S), where ours sees to it that every look settles a cell: the first of 4 looks at 9 cells
        settles none here."""
        return (*(math.ceil(math.cos(math.pi / 2 * k / self.steps) * cells) for k in range(1, self.steps)), 0)

    def keep_score(self, logp_BHS: Tensor, generator: Generator = None, *, to_come: float = 0.0) -> Tensor:
        return next(self.draws)[:, None] if self.order == "random" else logp_BHS
