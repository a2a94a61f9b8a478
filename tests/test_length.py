"""Code that is short enough to be read: functions of less than 60 lines, files of less than 500."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hwm

ROOT = Path(hwm.__path__[0])


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT).with_suffix("")))
def test_functions_and_files_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno + 1 < 60, f"{node.name} is too long"
