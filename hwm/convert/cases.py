"""Recorded cases: inputs, weights and outputs of a public implementation, and what ours make of them.

A case is a pair of files. NAME.safetensors holds tensors: `state.*` the original's state dict, `in.*` inputs (with
every random number that was drawn), `out.*` outputs. NAME.json holds `family`, the original's `config`, and `tensors`:
for each input and output its `shape` and `dtype`, and for each output of floats `atol`, by how much it may differ.
Integers are to be equal. Of an output with `every`, N, the file holds each N-th number alone, from the first on, of all
that `shape` counts, in a row. Floats narrower than float32 stand for the float32 that they equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwm.convert.family import find_family
from hwm.convert.public import PUBLIC, path_of, watched
from hwm.convert.recorded import Case, Tensors
from hwm.devices import Runtime, exact
from hwm.errors import HwmError
from hwm.weights import load_tensors

IN_FLOAT32 = Runtime(torch.device("cpu"), "float32")
"""As outputs are recorded."""


class _Entry(NamedTuple):
    """What the description says of an input or output."""

    shape: tuple[int, ...]
    dtype: str
    every: int
    atol: float

    @property
    def held(self) -> tuple[tuple[int, ...], str]:
        """Shape and type of the tensor in the file."""
        return (self.shape if self.every == 1 else (-(-math.prod(self.shape) // self.every),)), self.dtype


class Compared(NamedTuple):
    """One output of ours beside the recorded one.

    Attributes:
        name: of the output.
        error: largest absolute difference; of integers too. NaN where `problem` is set.
        relative: the same, divided by the largest recorded magnitude.
        tolerance: what `error` may be; 0 for integers.
        problem: why the two could not be compared, or "".
        by: the public methods that ours was computed by and, where they do not give it, what inside the model did.
    """

    name: str
    error: float
    relative: float
    tolerance: float
    problem: str = ""
    by: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # NaN is not


def read_case(path: Path) -> Case:
    """The case of a .safetensors file and the .json file beside it.

    Raises:
        HwmError: a file is missing, damaged, or the two do not agree; the message names the tensor.
    """
    about_path, path = path.with_suffix(".json"), path.with_suffix(".safetensors")
    family, config, listed = _described(about_path, path.name)
    tensors = load_tensors(path)
    for name, entry in listed.items():
        if name not in tensors:
            raise HwmError(f"{path} lacks {name}, which {about_path.name} lists")
        found = tuple(tensors[name].shape), str(tensors[name].dtype).removeprefix("torch.")
        if found != entry.held:
            raise HwmError(f"{name} of {path} is {_kind(found)}, and {about_path.name} says {_kind(entry.held)}")
    for name in tensors:
        if not name.startswith("state.") and name not in listed:
            raise HwmError(f"{path} holds {name}, of which {about_path.name} says nothing")

    def part(prefix: str) -> dict[str, Tensor]:
        names = [*listed, *(name for name in tensors if name not in listed)]  # in the order of the description
        return {name.removeprefix(prefix): _widened(tensors[name]) for name in names if name.startswith(prefix)}

    given, out = Tensors(part("in."), f"in.* of {path}"), part("out.")
    if not out:
        raise HwmError(f"{path} holds no outputs (tensors named out.*) to compare with")
    entries = {name: listed[f"out.{name}"] for name in out}
    for name, value in out.items():
        if value.is_floating_point() and not 0 <= entries[name].atol < math.inf:
            raise HwmError(f"{about_path.name} gives no tolerance (atol) for out.{name}")
    tolerance = {name: entries[name].atol for name, value in out.items() if value.is_floating_point()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    every = {name: entry.every for name, entry in entries.items()}
    return Case(path.stem, family, config, part("state."), given, out, tolerance, shapes, every)


def _described(path: Path, of: str) -> tuple[str, dict[str, Any], dict[str, _Entry]]:
    """Family, config, and what is said of each input and output, in a description of the file `of`."""
    try:
        about = json.loads(path.read_bytes())
        family, config, listed = str(about["family"]), dict(about["config"]), dict(about["tensors"])
        entries = {
            name: _Entry(tuple(e["shape"]), str(e["dtype"]), int(e.get("every", 1)), float(e.get("atol", math.nan)))
            for name, e in listed.items()
        }
    except (OSError, ValueError) as error:
        raise HwmError(f"cannot read {path}, which says what is in {of}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise HwmError(
            f"{path} does not describe a case: it needs family, config and tensors, and of each tensor its "
            f"shape and dtype ({type(error).__name__}: {error})"
        ) from error
    for name, entry in entries.items():
        if entry.every < 1 or (entry.every > 1 and not name.startswith("out.")):
            raise HwmError(f"{path} says of {name} that each number out of {entry.every} is there; only outputs may be "
                           "thinned, and by 1 or more")  # fmt: skip
    return family, config, entries


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() and x.itemsize < 4 else x


def _kind(of: tuple[tuple[int, ...], str]) -> str:
    return f"{of[1]} {of[0]}"


def compare(case: Case, runtime: Runtime = IN_FLOAT32) -> tuple[Any, list[Compared]]:
    """Our model of a case, and every recorded output beside ours.

    An output that cannot be computed is a problem of that output and does not keep the others from being compared.

    Args:
        runtime: where and in which number format ours are computed.

    Raises:
        HwmError: the family is unknown, or no model can be made of the case.
    """
    family, case = find_family(case.family), case.on(runtime.device)
    model = family.build(case.config, case.weights).to(runtime.device)
    ours = family.outputs(model, case)
    with torch.no_grad(), exact(), runtime.autocast():
        return model, [_compare(case, name, ours.get(name), type(model)) for name in case.out]


def _compare(case: Case, name: str, ours: Callable[[], Tensor] | None, kind: type) -> Compared:
    """One output of a case, computed by a model of some class, beside the recorded one."""
    expected, nan = case.out[name], math.nan
    tolerance = case.tolerance[name] if expected.is_floating_point() else 0.0
    if ours is None:
        return Compared(name, nan, nan, tolerance, f"no output of {case.family!r} has this name")
    try:
        with watched(kind) as called:
            found = ours().cpu()
    except HwmError as problem:
        return Compared(name, nan, nan, tolerance, str(problem))
    except Exception as problem:  # whatever is wrong with one output, the others are worth knowing
        return Compared(name, nan, nan, tolerance, f"{type(problem).__name__}: {problem}")
    by = path_of(called, ours)
    if not by:
        past = f"computed by none of {', '.join(PUBLIC)}, and the replay does not say by what"
        return Compared(name, nan, nan, tolerance, past)
    if found.shape != case.shapes[name] or found.is_floating_point() != expected.is_floating_point():
        kinds = ((tuple(found.shape), found.dtype), (case.shapes[name], expected.dtype))
        words = " instead of ".join(_kind((shape, str(dtype).removeprefix("torch."))) for shape, dtype in kinds)
        return Compared(name, nan, nan, tolerance, words, by)
    if not expected.numel():
        return Compared(name, 0.0, 0.0, tolerance, by=by)
    there = expected.double().flatten()
    error = (found.double().flatten()[:: case.every[name]] - there).abs().max().item()
    return Compared(name, error, error / max(there.abs().max().item(), 1e-300), tolerance, by=by)


def table(rows: Iterable[Compared]) -> str:
    """Compared outputs as text: a line each."""
    rows = list(rows)
    width, wide = (
        max(len(title), *map(len, texts))
        for title, texts in (("output", [row.name for row in rows]), ("by", [row.by for row in rows]))
    )
    lines = [f"  {'output':<{width}}  {'error':>9}  {'relative':>9}  {'allowed':>9}  by"]
    for row in rows:
        numbers = (f"{x:>9.2e}" if x else f"{'0':>9}" for x in (row.error, row.relative, row.tolerance))
        found = row.problem or ("ok" if row.passed else "WRONG")
        lines.append(f"  {row.name:<{width}}  {'  '.join(numbers)}  {row.by:<{wide}}  {found}")
    return "\n".join(lines)
