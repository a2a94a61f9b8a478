"""Text is read and written as UTF-8, whatever the language that a machine is set to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import hwm

ROOT = Path(hwm.__path__[0])


def reads_text(call: ast.Call) -> bool:
    """Whether a call opens a file as text, as far as its words tell: more than ruff's PLW1514 can know of types."""
    if not isinstance(call.func, ast.Attribute):
        return isinstance(call.func, ast.Name) and call.func.id == "open"
    mode = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    return (
        (call.func.attr == "read_text" and not call.args)
        or (call.func.attr == "write_text" and len(call.args) == 1)
        or (call.func.attr == "open" and isinstance(mode, str) and bool(re.fullmatch("[rwaxt+]{1,3}", mode)))
    )


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT).with_suffix("")))
def test_the_encoding_of_text_is_named(file: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call)]
    unnamed = [c.lineno for c in calls if reads_text(c) and "encoding" not in [k.arg for k in c.keywords]]
    assert not unnamed, f"{file}: lines {unnamed} open text without encoding='utf-8'"
