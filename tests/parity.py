"""Recorded inputs, weights and outputs of public implementations, which lie beside the project and not in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "shared" / "parity"


class Case(NamedTuple):
    """One recorded case.

    Attributes:
        config: the fields of the original, and their values.
        weights: its state dict.
        given, out: inputs and outputs by name.
        tolerance: of each output of floats. It is ten times the largest difference between the recorded float32 result
            and the same computation in float64, at least 3e-6 of its magnitude: as tight as float32 sums in another
            order allow. Integers are to be equal.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    given: dict[str, Tensor]
    out: dict[str, Tensor]
    tolerance: dict[str, float]


def recorded(name: str) -> Case:
    """A recorded case; skips the test where there are none."""
    if not (FOLDER / f"{name}.json").exists():
        pytest.skip(f"the recorded outputs of the public implementation ({name}) are not here")
    about = json.loads((FOLDER / f"{name}.json").read_text())
    tensors = load_file(FOLDER / f"{name}.safetensors")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    tolerance = {k.removeprefix("out."): v["atol"] for k, v in about["tensors"].items() if "atol" in v}
    return Case(about["config"], part("state."), part("in."), part("out."), tolerance)
