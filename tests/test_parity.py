"""What is said where large recorded cases are missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import parity


def skipped(reason: str) -> SimpleNamespace:
    """A report as pytest makes it of a skipped test."""
    return SimpleNamespace(longrepr=("tests/test_x.py", 3, f"Skipped: {reason}"))


def reported(reports: list[SimpleNamespace]) -> list[str]:
    lines: list[str] = []
    parity.report(SimpleNamespace(stats={"skipped": reports}, write_line=lambda line, **how: lines.append(line)))
    return lines


def test_tests_without_their_case_are_counted_and_the_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parity, "LARGE", tmp_path / "none")
    reasons = []
    for ask in (lambda: parity.recorded("genie-plain"), parity.large_folder):
        with pytest.raises(pytest.skip.Exception) as found:
            ask()
        reasons.append(str(found.value))
    [line] = reported([skipped(reason) for reason in (*reasons, "no headless OpenGL")])
    assert line.startswith("2 SKIPPED for want of large recorded cases")
    assert "HWM_PARITY" in line
    assert str(tmp_path / "none") in line
    assert reported([skipped("no headless OpenGL")]) == []


def test_a_small_case_stands_in_for_the_large_one_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parity, "LARGE", tmp_path)
    small = parity.recorded_path("genie-threevocab")
    assert small.parent == parity.SMALL
    large = tmp_path / small.name
    large.write_bytes(b"")
    assert parity.recorded_path("genie-threevocab") == large
