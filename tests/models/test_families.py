"""Families are no libraries: what two of them share lies in `hwm.nn`, in `hwm.objectives`, or in a file for all."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hwm.models

FOLDER = Path(hwm.models.__path__[0])
FILES = sorted(f.stem for f in FOLDER.glob("*.py") if f.stem != "__init__")
# what every family may build on
FOR_ALL = {"base", "caches", "heads", "masked", "masked_causal", "flow"}


def imported(name: str) -> set[str]:
    """The files of `hwm.models` that one of them imports, for types alone too."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hwm.models"):
            module = (node.module or "").removeprefix("hwm.models").strip(".")
            found |= {module} if module else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[2] for a in node.names if a.name.startswith("hwm.models.")}
    return found


def family(name: str) -> str:
    """A family's own files begin with the same word, as `hma_trunk` and `hma_continuous` do."""
    return name.split("_")[0]


@pytest.mark.parametrize("name", FILES)
def test_a_family_imports_no_other_familys_file(name: str) -> None:
    others = imported(name) - FOR_ALL
    if name in FOR_ALL:
        assert not others, f"{name} is for all families, and knows one"
    assert all(family(o) == family(name) for o in others), f"{name} imports {sorted(others)}"


def test_what_is_for_all_is_there() -> None:
    assert set(FILES) >= FOR_ALL
    assert imported("hma_continuous") >= {"base", "hma_trunk"}
