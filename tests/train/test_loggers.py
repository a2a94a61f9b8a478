"""The log of a run, and the line that a person sees."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch

from hwm.devices import peak_flops, peak_memory
from hwm.errors import HwmError
from hwm.train.loggers import Logger, read_log
from hwm.train.progress import Meter, clock

CPU = torch.device("cpu")


def test_lines_after_the_checkpoint_are_dropped_on_resuming(tmp_path: Path) -> None:
    first = Logger(tmp_path, (), {}, 0)
    for step in range(1, 6):
        first.log(step, {"loss": step / 3})
    first.close()
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"no": "step"}\n{"step": 2, "lo')
    second = Logger(tmp_path, (), {}, 3)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    second.log(4, {"loss": 0.5})
    second.close()
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["loss"] == pytest.approx(1 / 3, abs=1e-6)
    Logger(tmp_path, (), {}, 0).close()  # begun anew
    assert read_log(tmp_path) == []


def test_lines_are_there_before_the_run_ends(tmp_path: Path) -> None:
    logger = Logger(tmp_path, (), {}, 0)
    logger.log(1, {"loss": 1.0})
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))["loss"] == 1.0
    logger.close()


def test_no_log_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "nothing") == []


def test_other_loggers_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            got.append((name, value, step))

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    Logger(tmp_path, ("tensorboard",), {}, 0).log(7, {"loss": 1.5, "lr": 0.1})
    assert got == [("loss", 1.5, 7), ("lr", 0.1, 7)]


def test_loggers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HwmError, match="no logger called 'tensorbord'; did you mean tensorboard"):
        Logger(tmp_path, ("tensorbord",), {}, 0)
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(HwmError, match=r"pip install humanoid-world-models\[track\]"):
            Logger(tmp_path, (name,), {}, 0)


def test_a_meter_measures_what_passed_since_its_last_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    now = [100.0]
    monkeypatch.setattr("hwm.train.progress.time.perf_counter", lambda: now[0])
    meter = Meter(100, 10, tokens=50, device=CPU, flops=3e9, peak=6e9)
    now[0] += 20
    first = meter.line(20, {"loss": 1.0})
    assert (first["seconds"], first["tokens_per_second"], first["utilisation"]) == (2.0, 25.0, 0.25)
    with meter.paused():
        now[0] += 1000  # validation
    now[0] += 10
    second = meter.line(40, {"loss": 0.5})
    assert (second["seconds"], second["loss"]) == (0.5, 0.5)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("update 20/100  loss 1.0000  25 tokens/s  25% of peak")
    assert out[0].endswith("0:02:40 left")


def test_the_time_left_is_of_recent_updates_and_of_pauses_as_so_far(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    now = [100.0]
    monkeypatch.setattr("hwm.train.progress.time.perf_counter", lambda: now[0])
    meter = Meter(1000, 0, tokens=50, device=CPU)
    for step in range(10, 110, 10):
        now[0] += 400.0 if step in (10, 100) else 20.0  # the first updates, and something else that the machine did
        meter.line(step, {"loss": 1.0})
        if step == 50:
            with meter.paused():
                now[0] += 100
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(clock(990 * 40.0) + " left")
    assert lines[-1].endswith(clock(900 * (2.0 + 100 / 100)) + " left")


def test_a_silent_meter_says_nothing(capsys) -> None:
    meter = Meter(2, 0, tokens=1, device=CPU, show=False)
    assert meter.line(2, {"loss": 1.0})["loss"] == 1.0
    meter.note("words")
    meter.close()
    assert capsys.readouterr().out == ""


def test_clocks_and_measures() -> None:
    assert clock(3 * 3600 + 5 * 60 + 9.9) == "3:05:09"
    assert peak_flops(CPU, "float32", size=64, seconds=0.01) > 1e6
    assert 1e7 < peak_memory(CPU) < 1e12
