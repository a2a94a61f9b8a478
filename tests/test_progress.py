"""Progress of long work, on a terminal and in a file."""

from __future__ import annotations

import io
import sys

import pytest

from hwm.progress import bar, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("hwm.progress.time.monotonic", lambda: now[0])
    passed = []
    for item in track(iter("abcd"), 4, "spelling", scale=2, unit="letters"):
        passed.append(item)
        now[0] += 10
    assert passed == list("abcd")
    assert capsys.readouterr().out.splitlines() == [
        "spelling: 2/4, 0.2 letters/s, 20 s left",
        "spelling: 4/4, 0.2 letters/s, 0 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert list(track(range(3), 3, "counting", unit="numbers")) == [0, 1, 2]
    assert "counting" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_nothing_to_do_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], 0, "resting")) == []
    assert capsys.readouterr().out == ""


def test_errors_pass_through() -> None:
    def items():
        yield 1
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        list(track(items(), 2, "failing"))


def test_a_bar_moves_on_and_hides_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in (True, False):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with bar("counting", 3, "numbers", wanted) as advance:
            advance(1)
            advance(2)
        assert ("3/3" in terminal.getvalue()) == wanted
