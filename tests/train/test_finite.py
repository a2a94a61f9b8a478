"""Updates that are not finite: left out in float16, the end of a run otherwise, and found out without waiting."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm import devices
from hwm.errors import HwmError
from hwm.train.checkpoint import load_model, read_progress, step_folders
from hwm.train.finite import LossScale
from hwm.train.loggers import read_log
from hwm.train.optim import heeds, optimizers
from tests.pretend.device import pretending
from tests.train.test_sharding import QUIET, together
from tests.train.test_trainer import Stops, assert_same_run
from tests.train.toy import Toy, make_trainer, mixture

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]
HALF: dict[str, Any] = {"dtype": "float16", "log_every": 1}


def spoil(monkeypatch: pytest.MonkeyPatch, made: Any, *steps: int, by: float = math.nan) -> None:
    """Let the loss of some updates not be finite, and so their gradients."""
    real = Toy.loss

    def loss(self: Toy, batch: Any) -> Any:
        value, metrics = real(self, batch)
        return (value * by if made.step in steps and self.training else value), metrics

    monkeypatch.setattr(Toy, "loss", loss)


def kept(made: Any) -> list[torch.Tensor]:
    """All that an update changes: weights, optimizer and average."""
    state = [v for o in made.optimizers for s in o.state.values() for v in s.values()]
    average = made.average.weights.values() if made.average else []
    return [torch.as_tensor(v).clone() for v in (*made.module.parameters(), *state, *average)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_float16_learns(data: Path, tmp_path: Path, optimizer: str) -> None:
    fast: dict[str, Any] = {"model": {"noise": 0.0, "dim": 16}, "lr": 0.03, "val_every": 0, "save_every": 0}
    make_trainer(data, tmp_path, steps=60, optimizer=optimizer, **fast, **HALF).run()
    lines = [line for line in read_log(tmp_path) if "loss" in line]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert {line["loss_scale"] for line in lines} == {2.0**16}
    assert lines[0]["gradient_norm"] < 10, "of gradients as they are, and not times the scale"


def test_float16_sees_what_float32_sees(data: Path, tmp_path: Path) -> None:
    """Scaled, clipped and averaged alike: the run is that of float32 but for rounding."""
    options: dict[str, Any] = {"steps": 6, "accumulate": 2, "clip": 0.05, "lr": 1e-3}
    make_trainer(data, tmp_path / "whole", **options).run()
    make_trainer(data, tmp_path / "half", **options, **HALF).run()
    for a, b in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "half"), strict=True):
        for key in ("loss", "gradient_norm", "val_loss"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=5e-3), (a["step"], key)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_that_overflows_is_left_out(data: Path, tmp_path: Path, monkeypatch, optimizer: str) -> None:
    t = make_trainer(data, tmp_path, steps=6, optimizer=optimizer, **HALF)
    spoil(monkeypatch, t, 2, by=math.inf)
    batches = t._batches()
    states = []
    for t.step in range(4):
        t.update(batches)
        states.append(kept(t))
    same = [all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) for a, b in pairwise(states)]
    assert same == [False, True, False]
    assert t.scale.value == 2.0**15


def test_a_run_in_float16_resumes_with_its_scale(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(LossScale, "BEGINS", 2.0**24)  # too much: the first updates are left out
    monkeypatch.setattr(LossScale, "PATIENCE", 5)
    make_trainer(data, tmp_path / "whole", steps=16, **HALF).run()
    halves = tmp_path / "halves"
    first = make_trainer(data, halves, steps=16, **HALF)
    first.world = Stops(first.world, 9)  # type: ignore[assignment]
    first.run()
    saved = read_progress(step_folders(halves)[-1])["loss_scale"]
    assert saved[0] < 2.0**24
    assert saved[1] % 5, "in the middle of counting"
    make_trainer(data, halves, steps=16, **HALF).run()
    assert_same_run(tmp_path / "whole", halves, 16)
    scales = [line["loss_scale"] for line in read_log(halves) if "loss_scale" in line]
    assert max(scales[5:]) > min(scales), "it grows again"
    assert all(math.isfinite(v) for line in read_log(halves) for v in line.values())


def test_what_stays_bad_in_float16_ends_the_run(data: Path, tmp_path: Path, monkeypatch) -> None:
    t = make_trainer(data, tmp_path, steps=40, val_every=0, **HALF)
    spoil(monkeypatch, t, *range(3, 40))
    with pytest.raises(HwmError, match=r"loss became nan at update 19\. The batch is in .*bad_batch_00000019"):
        t.run()  # 16 halvings
    assert all(v.isfinite().all() for v in load_model(tmp_path).state_dict().values())


def test_a_scale_grows_and_falls() -> None:
    scale = LossScale(on=True)
    for _ in range(2 * scale.PATIENCE):
        assert scale.heed(True)
    assert scale.value == 4 * scale.BEGINS
    for _ in range(100_000):
        scale.heed(True)
    assert scale.value == scale.LARGEST
    assert all(scale.heed(False) for _ in range(24))
    assert (scale.value, scale.heed(False), scale.heed(True)) == (1, False, True)
    assert [LossScale(on=False).heed(x) for x in (True, False)] == [True, False]


def test_nobody_waits_for_an_update_before_the_next_is_under_way(data: Path, tmp_path: Path, monkeypatch) -> None:
    t, order = make_trainer(data, tmp_path, steps=4, accumulate=2, log_every=0, val_every=0, save_every=0), []
    t.held_out = None
    loss, read = Toy.loss, devices.Late.read
    monkeypatch.setattr(Toy, "loss", lambda self, batch: (order.append(t.step), loss(self, batch))[1])
    monkeypatch.setattr(devices.Late, "read", lambda self: (order.append("read"), read(self))[1])
    t.run()
    assert order == [0, 0, 1, 1, "read", 2, 2, "read", 3, 3, "read", "read"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("format", "waits"), [("bfloat16", 0), ("float16", 1)])
def test_the_host_waits_for_no_pass_or_step(
    data: Path, tmp_path: Path, optimizer: str, format: str, waits: int
) -> None:
    """What was found of an update is read when the card has the next to go on with; with a loss scale, before."""
    with pretending("cuda") as card:
        t = make_trainer(
            data, tmp_path, steps=9, accumulate=3, dtype=format, optimizer=optimizer, device="cuda", ema=0.9
        )
        batches = t._batches()
        for t.step in range(2):
            t.update(batches)
        card.forget()
        for t.step in range(2, 4):
            t.update(batches)
        assert sum(card.waits.values()) == 2 * waits, card.waits
        assert all("finite.py" in where for where in card.waits), card.waits


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_a_bad_update_leaves_all_as_it_was_until_it_is_found_out(
    data: Path, tmp_path: Path, monkeypatch, optimizer: str
) -> None:
    t = make_trainer(data, tmp_path, steps=9, optimizer=optimizer, ema=0.0)
    spoil(monkeypatch, t, 3)
    batches = t._batches()
    for t.step in range(3):
        t.update(batches)
    before = kept(t)
    if t.heedful:
        t.step = 3
        t.update(batches)  # which is found out at the next
        assert all(torch.equal(a, b) for a, b in zip(before, kept(t), strict=True))
    t.step = 4 if t.heedful else 3
    with pytest.raises(HwmError, match="loss became nan at update 3"):
        t.update(batches)
    assert all(torch.equal(a, b) for a, b in zip(before, kept(t), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("format", [torch.float32, torch.bfloat16])
def test_a_look_at_what_was_found_changes_no_bit_of_a_good_update(
    data: Path, optimizer: str, format: torch.dtype
) -> None:
    def after(heeding: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        toy = Toy.Config().build(mixture(data).spec)
        made = optimizers(toy, optimizer, 1e-2, 0.1, (0.9, 0.95), format)
        assert all(heeds(o, torch.device("cpu")) for o in made)
        for step in range(3):
            toy(mixture(data).batch(0, step, 4))[0].backward()
            for o in made:
                if heeding:
                    o.found_inf = torch.zeros(())  # type: ignore[attr-defined]
                o.step()
                o.zero_grad()
        return [*toy.parameters(), *(v for o in made for s in o.state.values() for v in s.values())]

    assert all(torch.equal(a, b) for a, b in zip(after(False), after(True), strict=True))


@pytest.mark.parametrize("due", ["save", "validate", "end"])
def test_what_was_found_is_read_before_it_matters(data: Path, tmp_path: Path, monkeypatch, due: str) -> None:
    every = {"log_every": 0, "val_every": 4 if due == "validate" else 0, "save_every": 4 if due == "save" else 0}
    t = make_trainer(data, tmp_path, steps=4 if due == "end" else 9, **every)
    spoil(monkeypatch, t, 3)
    with pytest.raises(HwmError, match="loss became nan at update 3"):
        t.run()
    assert t.step == 4, "before the next update"
    assert not step_folders(tmp_path)


@pytest.mark.parametrize("shard", [0, 1])
def test_processes_agree_on_what_is_left_out(data: Path, tmp_path: Path, shard: int) -> None:
    """One process's loss is not finite, though its gradients are: all leave the update out, and go on as one."""
    options = {**QUIET, **HALF, "shard": shard, "lr": 0.03, "val_every": 0}
    together(2, data, tmp_path / "run", batch_size=2, steps=30, spoilt=[[1, 2]], **options)
    lines = [line for line in read_log(tmp_path / "run") if "loss_scale" in line]
    assert "loss" not in lines[2], "infinite"
    assert [line["loss_scale"] for line in lines] == [2.0**16] * 2 + [2.0**15] * 28
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
