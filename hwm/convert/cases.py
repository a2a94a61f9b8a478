"""Recorded cases: inputs, weights and outputs of a public implementation, and what ours make of them.

A case is a pair of files. NAME.safetensors holds tensors: `state.*` the original's state dict, `in.*` inputs (with
every random number that was drawn), `out.*` outputs. NAME.json holds `family`, the original's `config`, and `tensors`:
for each input and output its `shape` and `dtype`, and for each output of floats `atol`, by how much it may differ.
Integers are to be equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwm.convert.family import find_family
from hwm.errors import HwmError
from hwm.weights import load_tensors


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
    """

    name: str
    family: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    given: Tensors
    out: dict[str, Tensor]
    tolerance: dict[str, float]


class Compared(NamedTuple):
    """One output of ours beside the recorded one.

    Attributes:
        name: of the output.
        error: largest absolute difference; of integers too. NaN where `problem` is set.
        relative: the same, divided by the largest recorded magnitude.
        tolerance: what `error` may be; 0 for integers.
        problem: why the two could not be compared, or "".
    """

    name: str
    error: float
    relative: float
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # NaN is not


def read_case(path: Path) -> Case:
    """The case of a .safetensors file and the .json file beside it.

    Raises:
        HwmError: a file is missing, damaged, or the two do not agree; the message names the tensor.
    """
    about_path, path = path.with_suffix(".json"), path.with_suffix(".safetensors")
    try:
        about = json.loads(about_path.read_bytes())
        family, config, listed = str(about["family"]), dict(about["config"]), dict(about["tensors"])
        shapes = {name: (tuple(entry["shape"]), str(entry["dtype"])) for name, entry in listed.items()}
        tolerance = {name: float(entry["atol"]) for name, entry in listed.items() if "atol" in entry}
    except (OSError, ValueError) as error:
        raise HwmError(f"cannot read {about_path}, which says what is in {path.name}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise HwmError(
            f"{about_path} does not describe a case: it needs family, config and tensors, and of each tensor its "
            f"shape and dtype ({type(error).__name__}: {error})"
        ) from error
    tensors = load_tensors(path)
    for name, expected in shapes.items():
        if name not in tensors:
            raise HwmError(f"{path} lacks {name}, which {about_path.name} lists")
        found = tuple(tensors[name].shape), str(tensors[name].dtype).removeprefix("torch.")
        if found != expected:
            raise HwmError(f"{name} of {path} is {_kind(found)}, and {about_path.name} says {_kind(expected)}")

    for name in tensors:
        if not name.startswith("state.") and name not in shapes:
            raise HwmError(f"{path} holds {name}, of which {about_path.name} says nothing")

    def part(prefix: str) -> dict[str, Tensor]:
        names = [*shapes, *tensors.keys() - shapes.keys()]  # in the order of the description
        return {name.removeprefix(prefix): tensors[name] for name in names if name.startswith(prefix)}

    given, out = Tensors(part("in."), f"in.* of {path}"), part("out.")
    if not out:
        raise HwmError(f"{path} holds no outputs (tensors named out.*) to compare with")
    tolerance = {name.removeprefix("out."): value for name, value in tolerance.items()}
    for name, value in out.items():
        if value.is_floating_point() and not 0 <= tolerance.get(name, math.nan) < math.inf:
            raise HwmError(f"{about_path} gives no tolerance (atol) for out.{name}")
    return Case(path.stem, family, config, part("state."), given, out, tolerance)


def _kind(of: tuple[tuple[int, ...], str]) -> str:
    return f"{of[1]} {of[0]}"


def compare(case: Case) -> tuple[Any, list[Compared]]:
    """Our model of a case, and every recorded output beside ours.

    An output that cannot be computed is a problem of that output and does not keep the others from being compared.

    Raises:
        HwmError: the family is unknown, or no model can be made of the case.
    """
    family = find_family(case.family)
    model = family.build(case.config, case.weights)
    ours = family.outputs(model, case)
    with torch.no_grad():
        return model, [_compare(case, name, ours.get(name)) for name in case.out]


def _compare(case: Case, name: str, ours: Callable[[], Tensor] | None) -> Compared:
    expected, nan = case.out[name], math.nan
    tolerance = case.tolerance[name] if expected.is_floating_point() else 0.0
    if ours is None:
        return Compared(name, nan, nan, tolerance, f"no output of {case.family!r} has this name")
    try:
        found = ours()
    except HwmError as problem:
        return Compared(name, nan, nan, tolerance, str(problem))
    except Exception as problem:  # whatever is wrong with one output, the others are worth knowing
        return Compared(name, nan, nan, tolerance, f"{type(problem).__name__}: {problem}")
    if found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point():
        kinds = (_kind((tuple(x.shape), str(x.dtype).removeprefix("torch."))) for x in (found, expected))
        return Compared(name, nan, nan, tolerance, " instead of ".join(kinds))
    if not expected.numel():
        return Compared(name, 0.0, 0.0, tolerance)
    error = (found.double() - expected.double()).abs().max().item()
    return Compared(name, error, error / max(expected.double().abs().max().item(), 1e-300), tolerance)


def table(rows: Iterable[Compared]) -> str:
    """Compared outputs as text: a line each."""
    rows = list(rows)
    width = max(6, *(len(row.name) for row in rows))
    lines = [f"  {'output':<{width}}  {'error':>9}  {'relative':>9}  {'allowed':>9}"]
    for row in rows:
        numbers = (f"{x:>9.2e}" if x else f"{'0':>9}" for x in (row.error, row.relative, row.tolerance))
        lines.append(f"  {row.name:<{width}}  {'  '.join(numbers)}  {row.problem or ('ok' if row.passed else 'WRONG')}")
    return "\n".join(lines)
