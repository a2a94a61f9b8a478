"""What of an evaluation is of one camera of several: its part of every picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

Cut = Callable[[Tensor], Tensor]


def cuts(views: Sequence[str]) -> dict[str, Cut]:
    """By view, what gives its part (..., H, W) of pictures (..., V*H, W); under the empty name the whole picture."""
    return {"": lambda x: x} | {view: partial(_part, i, len(views)) for i, view in enumerate(views)}


def first_view(pictures: Tensor, views: Sequence[str]) -> Tensor:
    """The part of pictures (..., V*H, W) that the first camera saw; of one camera the pictures."""
    return _part(0, max(1, len(views)), pictures)


def _part(number: int, count: int, pictures: Tensor) -> Tensor:
    return pictures.chunk(count, -2)[number]
