"""Code that is short enough to be read: functions of less than 60 lines, files of less than 500."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hwm

ROOMS = ("data", "models", "nn", "objectives", "tokenizers", "train")
FILES = sorted(f for room in ROOMS for f in (Path(hwm.__path__[0]) / room).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_functions_and_files_are_short(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) < 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno + 1 < 60, f"{node.name} is too long"
