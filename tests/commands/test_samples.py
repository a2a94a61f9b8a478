"""What a run shows of itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hwm.commands import samples
from hwm.train.loggers import Logger


@pytest.fixture
def run(tmp_path: Path) -> Path:
    log = Logger(tmp_path, (), {}, 0)
    for step in (10, 20, 30):
        log.log(step, {"loss": 5 - step / 10} | ({"val_loss": 4.5} if step == 20 else {}))
    log.close()
    return tmp_path


def test_the_curve_is_that_of_the_log(run: Path) -> None:
    assert samples.curve(run) == [(10, 4.0, None), (20, 3.0, 4.5), (30, 2.0, None)]
    samples.show_progress(None)(30, None, run)
    page = (run / "curves.html").read_text()
    assert "training loss" in page
    assert "held-out loss: 4.5 at 20" in page


def test_a_run_goes_on_without_charts(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    samples._can_draw.cache_clear()
    show = samples.show_progress(None)
    for step in (20, 30):
        show(step, None, run)
    samples._can_draw.cache_clear()
    assert not (run / "curves.html").exists()
    assert capsys.readouterr().err.count("no curves.html: charts need Matplotlib: pip install") == 1
