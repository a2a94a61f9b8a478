"""Recorded cases: those of public implementations, and self-made ones.

Of those of public implementations the small ones are in `recorded` beside this file. Large ones are not part of the
project: the environment variable HWM_PARITY names a folder with them, by default `shared/parity` beside the clone.
Tests that need one skip where there is none, and `report` makes pytest say how many did.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from hwm.convert.cases import read_case
from hwm.convert.recorded import Case

SMALL = Path(__file__).parent / "recorded"
LARGE = Path(os.environ.get("HWM_PARITY") or Path(__file__).parents[2] / "shared" / "parity")
MISSING = "no large recorded cases"


def large_folder() -> Path:
    """The folder of large recorded cases; skips the test where there is none."""
    if not LARGE.is_dir():
        pytest.skip(f"{MISSING}: no folder {LARGE}")
    return LARGE


def recorded_path(name: str) -> Path:
    """The file of a recorded case, the large one of two of the same name; skips the test where there is none."""
    paths = [folder / f"{name}.safetensors" for folder in (LARGE, SMALL)]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        pytest.skip(f"{MISSING}: no file {paths[0]}")
    return found


def recorded(name: str) -> Case:
    """A recorded case; skips the test where there is none."""
    return read_case(recorded_path(name))


def report(terminal: Any) -> None:
    """A line at the end of pytest's output on the tests that had no recorded case to run on."""
    skipped = [found for found in terminal.stats.get("skipped", ()) if MISSING in str(found.longrepr)]
    if skipped:
        terminal.write_line(
            f"{len(skipped)} SKIPPED for want of large recorded cases in {LARGE}: set HWM_PARITY to their folder. "
            f"The small ones in {SMALL.parent.name}/{SMALL.name} are always there.",
            yellow=True,
        )


def write_case(
    path: Path,
    family: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    out: Mapping[str, Tensor],
    atol: float,
) -> Path:
    """A case of one's own making, with one tolerance for all outputs of floats."""
    parts = {"in.": given, "out.": out}
    tensors = {prefix + name: x.contiguous() for prefix, part in parts.items() for name, x in part.items()}
    about = {name: {"shape": list(x.shape), "dtype": str(x.dtype).split(".")[1]} for name, x in tensors.items()}
    for name, x in tensors.items():
        if name.startswith("out.") and x.is_floating_point():
            about[name]["atol"] = atol  # type: ignore[assignment]
    save_file(tensors | {f"state.{name}": x.contiguous() for name, x in weights.items()}, path)
    path.with_suffix(".json").write_text(
        json.dumps({"family": family, "config": dict(config), "tensors": about}), encoding="utf-8"
    )
    return path
