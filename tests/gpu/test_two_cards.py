"""Two processes with a card each, by NCCL, beside one: where there are two cards.

What is run is what the tests of training and of models run in two processes on a CPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hwm.config import REGISTRY
from hwm.train.loggers import read_log
from tests.conftest import ROOT, make_store
from tests.gpu.beside import error, flat
from tests.models.test_registry import FAMILIES
from tests.train.test_sharding import QUIET, together, weights
from tests.train.toy import Toy, make_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize("shard", [1, 0], ids=["ddp", "fsdp2"])
def test_two_cards_are_one(shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP and FSDP2: the same global batches, so the same losses and weights but for the order of sums."""
    monkeypatch.setitem(REGISTRY, Toy.name, Toy)
    data, one, two = make_store(tmp_path / "store", [30, 40]).path, tmp_path / "one", tmp_path / "two"
    make_trainer(data, one, batch_size=4, steps=4, device="cuda", **QUIET).run()
    together(2, data, two, batch_size=2, steps=4, shard=shard, device="cuda", **QUIET)
    for a, b in zip(read_log(one), read_log(two), strict=True):
        for key in ("loss", "gradient_norm", "val_loss"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=2e-3), (a["step"], key)
    assert error(flat(weights(two)), flat(weights(one))) < 2e-3
    make_trainer(data, two, batch_size=4, steps=5, device="cuda", **QUIET).run()  # two cards to one


def test_every_family_is_the_same_on_two_cards_under_fsdp2() -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.models.sharded"]
    done = subprocess.run(
        [sys.executable, *command, "cuda"], capture_output=True, text=True, timeout=300, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in FAMILIES:
        assert f"{name}: sharded like whole" in done.stdout
