"""Weights divided among processes: the run is that of one process, and goes on in any number of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm.config import REGISTRY
from hwm.errors import CheckpointError, HwmError
from hwm.train import trainer
from hwm.train.checkpoint import load_model, step_folders
from hwm.train.loggers import read_log
from hwm.weights import load_tensors
from tests.conftest import make_store
from tests.train.toy import Toy, make_trainer

PATIENCE = 900
QUIET: dict[str, Any] = {"model": {"noise": 0.0}, "accumulate": 2, "lr": 2e-4, "warmup": 0, "floor": 1.0}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(REGISTRY, Toy.name, Toy)
    monkeypatch.setattr(trainer, "peak_flops", lambda device, dtype: 1e9)
    return make_store(tmp_path / "store", [30, 40]).path


def command_of(processes: int, data: Path, run: Path, **options: Any) -> list[str]:
    """What trains the toy in so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*command, "-m", "tests.train.toy", str(data), str(run), json.dumps(options)]


def together(processes: int, data: Path, run: Path, **options: Any) -> str:
    """What so many processes print that train the toy to the end."""
    done = subprocess.run(command_of(processes, data, run, **options), capture_output=True, text=True, timeout=PATIENCE)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.allclose(value, b[name], atol=2e-5), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_with_half_each_are_one_and_go_on_as_one(data: Path, tmp_path: Path, optimizer: str) -> None:
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    made = make_trainer(data, one, batch_size=4, steps=4, optimizer=optimizer, **QUIET)
    begun = {k: v.clone() for k, v in made.module.state_dict().items()}
    made.run()
    output = together(2, data, two, batch_size=2, steps=4, shard=0, optimizer=optimizer, **QUIET)
    assert output.count("update 4/4") == 1
    for a, b in zip(read_log(one), read_log(two), strict=True):
        for key in ("loss", "accuracy", "gradient_norm"):
            if key in a:  # six digits are logged
                assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
    same(weights(one), weights(two))
    assert not torch.allclose(weights(two)["hidden.weight"], begun["hidden.weight"], atol=1e-4), "nothing was learnt"
    shards = list(step_folders(two)[-1].glob("state/shards/*.safetensors"))
    assert len(shards) == 2
    assert sum(f.stat().st_size for f in shards) < 1.5 * sum(
        f.stat().st_size for f in (step_folders(one)[-1] / "state").glob("*.safetensors")
    ), "each process writes its own part"

    # divided to one, and one to divided
    shutil.copytree(one, again)
    make_trainer(data, one, batch_size=4, steps=6, optimizer=optimizer, **QUIET).run()
    make_trainer(data, two, batch_size=4, steps=6, optimizer=optimizer, **QUIET).run()
    same(weights(one), weights(two))
    assert "resuming" in together(2, data, again, batch_size=2, steps=6, shard=0, optimizer=optimizer, **QUIET)
    same(weights(one), weights(again))
    assert type(load_model(again)) is Toy


def test_four_processes_keep_two_copies(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path / "one", batch_size=4, steps=3, **QUIET).run()
    together(4, data, tmp_path / "four", batch_size=1, steps=2, shard=2, activation_checkpoint="full", **QUIET)
    # resumed by another number of processes
    together(2, data, tmp_path / "four", batch_size=2, steps=3, shard=2, **QUIET)
    same(weights(tmp_path / "one"), weights(tmp_path / "four"))


def test_what_cannot_be_divided_is_said(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"2 processes cannot be divided into groups of 3"):
        together(2, data, tmp_path / "run", steps=1, shard=3)
    with pytest.raises(HwmError, match=r"train\.shard must not be negative"):
        make_trainer(data, tmp_path / "run", steps=1, shard=-1)


def test_shards_of_another_model_are_not_resumed(data: Path, tmp_path: Path) -> None:
    together(2, data, tmp_path / "run", batch_size=2, steps=2, shard=0, **QUIET)
    with pytest.raises(CheckpointError, match="another model configuration"):
        make_trainer(data, tmp_path / "run", steps=4, model={"dim": 16})
    with pytest.raises(CheckpointError, match="trained with 1 optimizers and this run has 2"):
        make_trainer(data, tmp_path / "run", steps=4, optimizer="muon", model={"noise": 0.0})
    shard = next((step_folders(tmp_path / "run")[-1] / "state" / "shards").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        make_trainer(data, tmp_path / "run", steps=4, model={"noise": 0.0})
