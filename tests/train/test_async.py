"""Checkpoints that are written beside the training are those that are written while it waits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm import weights as files
from hwm.config import REGISTRY
from hwm.errors import CheckpointError
from hwm.train import checkpoint, trainer
from hwm.train.checkpoint import step_folders
from hwm.train.loggers import read_log
from hwm.weights import load_tensors
from tests.conftest import make_store
from tests.train.test_checkpoint import full_disk
from tests.train.test_sharding import PATIENCE, command_of, together
from tests.train.toy import Toy, make_trainer

EVERY = {"save_every": 1, "val_every": 0, "keep": 0}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(REGISTRY, Toy.name, Toy)
    monkeypatch.setattr(trainer, "peak_flops", lambda device, dtype: 1e9)
    return make_store(tmp_path / "store", [30, 40]).path


def same(one: Path, other: Path) -> None:
    """Whether two runs left the same files with the same tensors."""
    left, right = ({p.relative_to(r): load_tensors(p) for p in r.rglob("*.safetensors")} for r in (one, other))
    assert left.keys() == right.keys()
    for name, tensors in left.items():
        assert tensors.keys() == right[name].keys()
        assert all(torch.equal(v, right[name][k]) for k, v in tensors.items()), name


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_updates_go_on_while_a_checkpoint_of_before_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    make_trainer(data, tmp_path / "waiting", steps=4, ema=ema, **EVERY).run()
    made = make_trainer(data, tmp_path / "aside", steps=4, ema=ema, async_save=True, **EVERY)
    real, seen = checkpoint.save_tensors, list[tuple[int, int]]()

    def slowly(path: Path, tensors: Any) -> None:
        begun, end = made.step, time.monotonic() + 0.2
        while time.monotonic() < end and made.step == begun:
            time.sleep(0.001)
        seen.append((begun, made.step))
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "save_tensors", slowly)
    made.run()
    assert any(after > before for before, after in seen), "nothing went on beside"
    assert len(step_folders(tmp_path / "aside")) == 4
    same(tmp_path / "waiting", tmp_path / "aside")


def test_shards_are_written_beside(data: Path, tmp_path: Path) -> None:
    for name, aside in (("waiting", False), ("aside", True)):
        together(2, data, tmp_path / name, batch_size=2, steps=5, shard=0, async_save=aside, **EVERY)
    assert len(step_folders(tmp_path / "aside")) == 5
    same(tmp_path / "waiting", tmp_path / "aside")


def test_a_full_disk_is_told_of_and_leaves_the_last_good_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(data, tmp_path / "run", steps=8, async_save=True, save_every=2, val_every=0)
    real = made.save

    def save() -> None:
        if made.step == 4:
            made.aside.wait()  # the one before is not to be spoilt
            monkeypatch.setattr(files, "save_file", full_disk)
        real()

    monkeypatch.setattr(made, "save", save)
    with pytest.raises(CheckpointError, match=r"step 4 could not be written .*No space left.*step_00000002"):
        made.run()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("aside", [False, True])
def test_a_full_disk_under_fsdp2(data: Path, tmp_path: Path, aside: bool) -> None:
    options: dict[str, Any] = {"batch_size": 2, "save_every": 2, "val_every": 0, "shard": 0, "async_save": aside}
    options["model"] = {"dim": 64, "noise": 0.0}  # its files are too large, the log is not
    with pytest.raises(AssertionError, match=r"step 4 could not be written .*File too large.*step_00000002"):
        together(2, data, tmp_path / "run", steps=8, small={"3": 50_000}, **options)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    together(2, data, tmp_path / "run", steps=8, **options)
    together(2, data, tmp_path / "whole", steps=8, **options)
    same(tmp_path / "whole", tmp_path / "run")


def test_slurms_signal_saves_under_fsdp2(data: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", {"batch_size": 2, "save_every": 0, "val_every": 0, "shard": 0, "async_save": True}
    command = command_of(2, data, run, steps=1000, slow=0.05, **options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + PATIENCE
    while not (run / "log.jsonl").exists() or len((run / "log.jsonl").read_text(encoding="utf-8").splitlines()) < 3:
        assert time.monotonic() < end, "the run does not get there"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    workers = [
        int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    ]
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGUSR1)
    output, _ = process.communicate(timeout=PATIENCE)
    done = int(step_folders(run)[-1].name.removeprefix("step_"))
    assert f"stopped at update {done}; the same command goes on from there" in output
    assert max(line["step"] for line in read_log(run)) == done
    assert "resuming" in together(2, data, run, steps=done + 1, **options)
