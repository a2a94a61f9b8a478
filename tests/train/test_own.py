"""Training on own rollouts: which updates, on what, told apart, and the same in two runs or processes as in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm.data.clips import Clips
from hwm.data.mixture import Mixture
from hwm.data.store import Store
from hwm.errors import HwmError
from hwm.models.masked_hwm import MaskedHWM
from hwm.models.next_block import NextBlock
from hwm.objectives.maskgit import MaskGITSampler
from hwm.train.config import TrainConfig
from hwm.train.loggers import read_log
from hwm.train.own import LongerClips
from hwm.types import Batch
from tests.conftest import ROOT, make_store
from tests.train import toy
from tests.train.own_rollouts import make_trainer
from tests.train.test_trainer import PATIENCE, Stops, assert_same_run

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]
SHIPPED = MaskedHWM.Config(
    dim=16, depth=2, heads=2, unshared_layers=1, past=3, window_stride=2, learned_steps=1, parallel=True, reach=1,
    copy_previous=True, max_corrupt=0.1, mlp_drop=0.1,
)  # fmt: skip


def test_a_resumed_run_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    """Also with several passes an update, an average, and weights that are cast once an update."""

    def train(run: str, stop: int = 0) -> None:
        made = make_trainer([data], tmp_path / run, SHIPPED, steps=4, accumulate=2, ema=0.9, dtype="bfloat16")
        if stop:
            made.world = Stops(made.world, stop)  # type: ignore[assignment]
        made.run()

    train("whole")
    train("halves", stop=2)
    train("halves")
    assert_same_run(tmp_path / "whole", tmp_path / "halves", 4)
    kinds = ["own_loss" in line for line in read_log(tmp_path / "whole") if "lr" in line]
    assert set(kinds[:2]) == set(kinds[2:]) == {True, False}


def test_the_log_tells_the_two_losses_apart(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_trainer([data], tmp_path, steps=12)
    assert made.own is not None
    counts = [made.own.clips.count(update) for update in range(12)]
    made.run()
    lines = [line for line in read_log(tmp_path) if "lr" in line]
    assert [line.get("own_steps", 0) for line in lines] == counts
    assert {0, 1, 2, 3, 4} >= set(counts) > {0}
    for line in lines:
        names = {"loss", "accuracy"} if "loss" in line else {"own_loss", "own_accuracy", "own_steps"}
        assert names == {k for k in line if "loss" in k or "accuracy" in k or "own" in k}
    assert [line["step"] for line in read_log(tmp_path) if "val_loss" in line] == [3, 6, 9, 12]
    text = capsys.readouterr().out
    assert ("loss on own rollouts" in text) == ("own_loss" in lines[-1])


def test_the_share_and_the_numbers_of_steps_are_as_asked_for(data: Path) -> None:
    config = TrainConfig(own_rollouts=1 / 3, rollout_steps=6)
    clips = Mixture([Clips(Store(data), 3)])
    counts = torch.tensor([LongerClips(config, clips, group=2).count(update) for update in range(3000)])
    shares = counts.bincount(minlength=7) / 3000
    torch.testing.assert_close(shares, torch.tensor([6, 0, 1, 0, 1, 0, 1]) / 9, atol=0.03, rtol=0)


def test_other_updates_see_what_they_would_see_without(data: Path, tmp_path: Path) -> None:
    def clips(share: float) -> list[Batch]:
        made = make_trainer([data], tmp_path / str(share), own_rollouts=share, accumulate=2)
        batches = made._batches()
        return [next(batches) for _ in range(24)]

    with_own, without = clips(0.5), clips(0.0)
    pairs = [(a.latents, b.latents) for a, b in zip(with_own, without, strict=True)]
    alike = [torch.equal(a, b) if a.shape == b.shape else None for a, b in pairs]
    assert set(alike) == {True, None}
    assert alike[::2] == alike[1::2], "both passes of an update are of one kind"
    lengths = {len(b.latents[0]) for b in with_own}
    assert max(lengths) > 4
    assert all(b.actions.shape[1] == b.latents.shape[1] for b in with_own)
    assert all(b.following is not None for b in with_own[:1])


def test_own_steps_are_those_of_the_weights_at_hand_and_of_the_sampler_asked_for(data: Path, tmp_path: Path) -> None:
    """In evaluation mode, without gradient, and in the number format of the run."""
    made = make_trainer([data], tmp_path, SHIPPED, own_rollouts=1.0, rollout_sampler=("steps=3",), dtype="bfloat16")
    seen, predict, model = list[tuple[Any, ...]](), made.module.predict, made.module

    def watched(batch: Batch, *, sampler: MaskGITSampler, **given: Any) -> Any:
        states = (
            model.training,
            torch.is_grad_enabled(),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_enabled("cpu"),
        )
        seen.append((sampler.steps, *states))
        return predict(batch, sampler=sampler, **given)

    model.predict = watched  # type: ignore[method-assign]
    batches = made._batches()
    for made.step in range(3):
        made.update(batches)
        assert model.training
    assert set(seen) == {(3, False, False, torch.bfloat16, True)}
    assert made.own is not None
    assert len(seen) == sum(made.own.clips.count(update) for update in range(3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_weights_learn_of_own_rollouts(data: Path, tmp_path: Path, dtype: str) -> None:
    """Weights that are cast in a rollout, which has no gradient, are cast again where there is one."""
    moved = []
    for share in (0.0, 1.0):
        made = make_trainer([data], tmp_path / f"{share}", SHIPPED, own_rollouts=share, dtype=dtype, warmup=0)
        before = {k: v.clone() for k, v in made.module.state_dict().items()}
        batches = made._batches()
        for made.step in range(2):
            made.update(batches)
        moved.append({k for k, v in made.module.state_dict().items() if not torch.equal(v, before[k])})
    assert moved[0] == moved[1]
    assert len(moved[0]) > 10


@pytest.mark.parametrize("shard", [1, 0])
def test_two_processes_are_one(data: Path, tmp_path: Path, shard: int) -> None:
    """Each has a copy of the weights, or half of them; the rollout goes by whole ones."""
    make_trainer([data], tmp_path / "one").run()
    options = json.dumps({"batch_size": 2, "shard": shard})
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.train.own_rollouts"]
    done = subprocess.run(
        [sys.executable, *command, str(data), str(tmp_path / "two"), options],
        capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = ([line for line in read_log(tmp_path / run) if "lr" in line] for run in ("one", "two"))
    assert len([line for line in one if "own_loss" in line]) in range(1, 6)
    for a, b in zip(one, two, strict=True):
        for key in a.keys() & {"loss", "own_loss", "own_steps", "gradient_norm"}:
            assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)


def test_data_of_several_stores_is_mixed(data: Path, tmp_path: Path) -> None:
    """Their robots differ, and with them how many weights an update trains."""
    second = make_store(tmp_path / "second", [30], embodiment="other", seed=5).path
    made = make_trainer([data, second], tmp_path / "run", own_rollouts=1.0)
    batches, seen = made._batches(), set[str]()
    for made.step in range(6):
        batch = next(batches)
        seen.add(batch.embodiment)
        assert made.update(iter([batch]))["own_loss"].isfinite()
    assert len(seen) == 2


def test_what_cannot_be_trained_so_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with pytest.raises(HwmError, match="test_toy is no world model and rolls nothing out"):
        toy.make_trainer(data, run, own_rollouts=0.5)
    with pytest.raises(HwmError, match=r"own_rollouts is a share of the updates, 0 to 1, got 1\.5"):
        TrainConfig(own_rollouts=1.5)
    with pytest.raises(HwmError, match="rollout_steps must be at least 1, got 0"):
        TrainConfig(rollout_steps=0)
    with pytest.raises(HwmError, match="no field of MaskGITSampler called 'passes'"):
        make_trainer([data], run, rollout_sampler=("passes=3",))
    with pytest.raises(
        HwmError, match=r"no episode has the 43 steps .* clips of up to 40 steps more: lower --train.roll"
    ):
        make_trainer([data], run, rollout_steps=40)
    threes = replace(NextBlock.tiny(), clip_steps=3, window_stride=3)
    with pytest.raises(HwmError, match=r"next_block makes 3 steps at a time: --train\.rollout-steps 2 is too few"):
        make_trainer([data], run, threes, rollout_steps=2)
    monkeypatch.setattr(Store, "clip_steps", 3)
    make_trainer([data], run, threes)
    with pytest.raises(
        HwmError, match="encoded in clips of 3 steps that do not know of each other, and next_block goes"
    ):
        make_trainer([data], tmp_path / "other")
    monkeypatch.setattr(NextBlock, "heeds_prompt", False)
    with pytest.raises(HwmError, match="to say so with heeds_prompt = True"):
        make_trainer([data], run)
