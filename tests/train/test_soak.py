"""Two processes that are killed at random moments, again and again, end as if they never had been.

`make test` kills a few times, `make soak` fifty times each way.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hwm.train.checkpoint import step_folders
from hwm.train.loggers import read_log
from hwm.weights import load_tensors
from tests.conftest import make_store

PATIENCE = 1800  # on a busy machine; nothing here is timed
OPTIONS = {"batch_size": 2, "save_every": 2, "val_every": 3, "log_every": 1, "slow": 0.02}


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _leave_nothing_running() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:  # the number of one that has ended may be another's by now
            kill_all(process.pid)


def kill_all(pid: int) -> int:
    """Kill a process, and then its descendants, which torchrun begins in sessions of their own; how many those were."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text(encoding="utf-8").split())
    for each in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    return len(found) - 1


def begin(store: Path, run: Path, **options: object) -> subprocess.Popen[str]:
    """Two processes that train the toy, and torchrun, which begins them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.train.toy", str(store), str(run), json.dumps(OPTIONS | options)]
    output = subprocess.PIPE
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)
    STARTED.append(process)
    return process


def reached(run: Path) -> int:
    """The last update in the log; a line may be half written."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        return int(json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"])
    return 0


def kill(process: subprocess.Popen[str], run: Path, chance: random.Random) -> None:
    """Wait until it has gone on for some updates, and then for a moment; then kill all that belongs to it."""
    before, end = reached(run), time.monotonic() + PATIENCE
    stamp, after = time.time(), chance.randrange(1, 5)
    moved = False
    while not moved:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the run does not get there"
        log = run / "log.jsonl"
        # what a kill has undone is done again: the log may be shorter than it was
        fresh = log.exists() and log.stat().st_mtime > stamp and bool(step_folders(run))
        moved = fresh and (reached(run) >= before + after or reached(run) < before)
        time.sleep(0.002)
    time.sleep(chance.random() * 0.08)
    assert kill_all(process.pid) >= 2
    process.communicate()
    assert not (run / "hwm.json").exists(), "it came to its end before it was killed"


def check(tmp_path: Path, kills: int, shard: int, aside: bool = False) -> None:
    """The uninterrupted run writes its checkpoints while it waits, the killed one beside the training, if `aside`."""
    store, chance = make_store(tmp_path / "store", [30, 40]).path, random.Random(kills + shard)
    whole, run, steps = tmp_path / "whole", tmp_path / "killed", 10 * kills + 20
    process = begin(store, whole, steps=steps, shard=shard)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    for _ in range(kills):
        kill(begin(store, run, steps=steps, shard=shard, async_save=aside), run, chance)
        for folder in step_folders(run):  # each that is there is whole
            load_tensors(folder / "model.safetensors")
    last = begin(store, run, steps=steps, shard=shard, async_save=aside)
    output, _ = last.communicate(timeout=PATIENCE)
    assert last.returncode == 0, output
    assert "resuming" in output
    assert [line["step"] for line in read_log(run) if "loss" in line] == list(range(1, steps + 1))
    for key in ("loss", "val_loss", "gradient_norm"):
        mine, theirs = ([line[key] for line in read_log(r) if key in line] for r in (run, whole))
        assert mine == theirs, key
    left, right = (load_tensors(r / "model.safetensors") for r in (run, whole))
    assert left.keys() == right.keys()
    assert all(torch.equal(v, right[k]) for k, v in left.items())
    assert [p.name for p in step_folders(run)] == [p.name for p in step_folders(whole)]


def test_divided_weights_survive_kills(tmp_path: Path) -> None:
    check(tmp_path, kills=2, shard=0, aside=True)


@pytest.mark.soak
@pytest.mark.parametrize(("shard", "aside"), [(1, False), (0, False), (0, True)], ids=["ddp", "fsdp2", "fsdp2-async"])
def test_fifty_kills(tmp_path: Path, shard: int, aside: bool) -> None:
    check(tmp_path, kills=50, shard=shard, aside=aside)
