"""Recorded cases: those of public implementations, which lie beside the project and not in it, and self-made ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from hwm.convert.cases import Case, read_case

FOLDER = Path(__file__).parents[2] / "shared" / "parity"


def recorded_path(name: str) -> Path:
    """The file of a recorded case; skips the test where there is none."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"the recorded outputs of the public implementation ({name}) are not here")
    return path


def recorded(name: str) -> Case:
    """A recorded case; skips the test where there is none."""
    return read_case(recorded_path(name))


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
    path.with_suffix(".json").write_text(json.dumps({"family": family, "config": dict(config), "tensors": about}))
    return path
