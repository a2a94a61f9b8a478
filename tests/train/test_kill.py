"""Training that is killed again and again, at no particular moment, ends as if it never had been."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hwm.config import REGISTRY
from hwm.train import trainer
from hwm.train.checkpoint import step_folders
from hwm.train.loggers import read_log
from tests.conftest import make_store
from tests.train.toy import Toy, make_trainer

STEPS, KILLS, PATIENCE = 100, 10, 900


def life(store: Path, run: Path, now: Any, aside: bool) -> None:
    """Train to the end, if nothing comes between. It saves and validates every other update, so that much of what it
    does is what a kill could spoil.

    Args:
        now: a shared number: the update that the run is at, from the first on.
        aside: whether checkpoints are written beside the training.
    """
    REGISTRY[Toy.name] = Toy
    torch.set_num_threads(1)
    trainer.peak_flops = lambda device, dtype: 1e9  # type: ignore[assignment]  no time to measure it
    made = make_trainer(store, run, steps=STEPS, accumulate=2, async_save=aside)
    update = made.update

    def counted(batches: Any) -> Any:
        now.value = made.step + 1
        time.sleep(0.005)
        return update(batches)

    made.update = counted  # type: ignore[method-assign]
    made.run()


def test_ten_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    # forked off a process in which everything is imported: each begins at once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.test_kill"])
    store, chance = make_store(tmp_path / "store", [30, 40]).path, random.Random(0)

    def begin(run: Path, aside: bool = False) -> tuple[Any, Any]:
        now = context.RawValue("i", 0)  # without a lock, which a killed process might hold
        process = context.Process(target=life, args=(store, run, now, aside))
        process.start()
        return process, now

    whole, run = tmp_path / "whole", tmp_path / "killed"
    uninterrupted, its_own = begin(whole)
    reached: list[int] = []
    begun: list[int] = []
    for i in range(KILLS):
        process, now = begin(run, aside=i % 2 == 1)
        end, after = time.monotonic() + PATIENCE, chance.randrange(6)
        first = 0
        while not first or now.value < first + after:
            first = first or now.value
            assert process.is_alive(), "it ended by itself"
            assert time.monotonic() < end, "the run does not get there"
            time.sleep(0.001)
        time.sleep(chance.random() * 0.03)  # about as long as an update takes, with what it logs and saves
        process.kill()
        process.join()
        assert process.exitcode == -9
        begun.append(first)
        reached.append(now.value)
    assert 1 < reached[-1] < STEPS
    assert len(set(begun)) > 3, "it went on from several checkpoints"
    assert all(b <= r + 1 for b, r in zip(begun[1:], reached, strict=False))
    last, now = begin(run)
    for process in (last, uninterrupted):
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert now.value == its_own.value == STEPS

    assert [line["step"] for line in read_log(run) if "loss" in line] == list(range(1, STEPS + 1))
    for key in ("loss", "val_loss", "gradient_norm"):
        logs = [[line[key] for line in read_log(r) if key in line] for r in (whole, run)]
        assert logs[0] == logs[1], key
    assert [p.name for p in step_folders(run)] == [p.name for p in step_folders(whole)]
    left, right = tensors(whole), tensors(run)
    assert left.keys() == right.keys()
    assert len(left) == 2 * 3 + 1  # two checkpoints of average, raw weights and optimizer, and the result
    for name, mine in left.items():
        assert mine.keys() == right[name].keys()
        assert all(torch.equal(v, right[name][k]) for k, v in mine.items()), name


def tensors(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All that is saved of a run, a file each."""
    return {str(p.relative_to(run)): load_file(p) for p in sorted(run.rglob("*.safetensors"))}
