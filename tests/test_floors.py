"""The floors of the house hold: imports are as pyproject.toml says, and models and tokenizers bring nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_each_floor_imports_only_from_those_below_it_and_no_files_in_a_circle() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed (extra `dev`)")
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Contracts: 2 kept, 0 broken." in done.stdout


@pytest.mark.parametrize("rooms", ["hwm.models, hwm.tokenizers", "hwm.models.masked_hwm, hwm.tokenizers.cosmos"])
def test_models_and_tokenizers_bring_neither_the_compiler_nor_the_verbs(rooms: str) -> None:
    """What takes longest to import is not imported with them: torch's compiler, plots, the servers, other rooms."""
    heavy = ("torch._dynamo", "matplotlib", "pyarrow", "fastapi", "mujoco", "hwm.train", "hwm.evaluate", "hwm.interact")
    code = f"import sys, {rooms}; print(*(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
