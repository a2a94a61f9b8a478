"""What was recorded of a public implementation: a config, weights, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwm.errors import HwmError


class Tensors(dict[str, Tensor]):
    """Tensors by name; one that is not there is a mistake of the case."""

    def __init__(self, tensors: Mapping[str, Tensor], what: str) -> None:
        super().__init__(tensors)
        self.what = what

    def __missing__(self, name: str) -> Tensor:
        raise HwmError(f"{self.what} lacks {name!r}, which this output is computed from")


class Case(NamedTuple):
    """One recorded case.

    Attributes:
        name: of its files.
        family: who recorded it, as `hwm.convert.family` names them.
        config: the fields of the original, and their values.
        weights: its state dict.
        given, out: inputs and outputs by name.
        tolerance: largest absolute difference of each output of floats.
        shapes: of each output, whole.
        every: of each output, of how many numbers one is in `out`, which is flat where this is not 1.
    """

    name: str
    family: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    given: Tensors
    out: dict[str, Tensor]
    tolerance: dict[str, float]
    shapes: dict[str, tuple[int, ...]]
    every: dict[str, int]

    def on(self, device: torch.device) -> Case:
        """The same with its inputs on a device."""
        return self._replace(given=Tensors({k: x.to(device) for k, x in self.given.items()}, self.given.what))
