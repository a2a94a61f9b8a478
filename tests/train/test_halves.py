"""Weights in half precision for an update's passes: the same numbers as autocast's, with fewer casts."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hwm.config import Trainable
from hwm.devices import Runtime
from hwm.models.masked_hwm import MaskedHWM
from hwm.train import trainer as module
from hwm.train.checkpoint import load_model
from hwm.train.config import TrainConfig
from hwm.train.halves import Halves
from hwm.train.lora import adapt
from hwm.train.trainer import Trainer
from tests.conftest import make_store
from tests.models.test_registry import FAMILIES, build, clip, opened
from tests.train.test_trainer import assert_same_run
from tests.train.toy import mixture

CPU = torch.device("cpu")
SUMMED = {"cosmos_ar"}
"""Families whose blocks cast what several products read to the format of their weights, once: gradients of these
products are then summed in half precision."""


class Casts(TorchDispatchMode):
    """Counts copies of tensors in another number format."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += func is torch.ops.aten._to_copy.default and out.dtype != args[0].dtype
        return out


def passes(name: str, format: str, halved: bool) -> tuple[Trainable, list[torch.Tensor], int]:
    """Two passes of a family: the model with its gradients, the losses, and how often was cast."""
    torch.manual_seed(0)
    model, runtime = opened(build(name)), Runtime(CPU, format)
    halves, losses = Halves(model, runtime, "none", processes=1 if halved else 2), []
    with Casts() as casts, halves.used():
        for _ in range(2):
            with runtime.autocast():
                loss, _ = model(clip(model))
            loss.backward()
            halves.collect()
            losses.append(loss.detach())
    return model, losses, casts.count


@pytest.mark.parametrize("format", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_are_those_of_autocast_and_casts_are_fewer(name: str, format: str) -> None:
    plain, losses, before = passes(name, format, halved=False)
    model, same, after = passes(name, format, halved=True)
    assert torch.equal(torch.stack(losses), torch.stack(same))
    for (key, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert (a.grad is None) == (b.grad is None), key
        if a.grad is not None and name in SUMMED:
            assert (a.grad - b.grad).norm() <= 2**-8 * a.grad.norm(), key
        elif a.grad is not None:
            assert torch.equal(a.grad, b.grad), key
    assert after < 0.75 * before


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_is_the_same_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    monkeypatch.setattr(module, "peak_flops", lambda device, dtype: 1e9)
    data = mixture(make_store(tmp_path / "store", [30, 20]).path)
    config = TrainConfig(
        steps=4, batch_size=2, accumulate=2, optimizer=optimizer, ema=0.9, lr=1e-2, warmup=1, dtype="bfloat16",
        log_every=1, val_every=2, val_batches=1, save_every=2,
    )  # fmt: skip
    used = Counter[str]()

    def train(run: str, processes: int) -> None:
        def make(*args: Any) -> Halves:
            halves = Halves(*args[:3], processes)
            used[run] += len(halves.places)
            return halves

        torch.manual_seed(0)
        monkeypatch.setattr(module, "Halves", make)
        Trainer(config, MaskedHWM.tiny().build(data.spec), data, data, tmp_path / run).run()

    train("halved", 1)
    train("plain", 2)
    assert used["halved"] > 0 == used["plain"]
    assert_same_run(tmp_path / "halved", tmp_path / "plain", 4)
    assert all(p.dtype == torch.float32 for p in load_model(tmp_path / "halved").parameters())


class Small(Trainable):
    """A layer that another shares its weight with, one that is frozen, one of another kind, and one that is no unit."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.block = nn.ModuleDict({k: nn.Linear(4, 4, bias=False) for k in ("a", "tied", "frozen")})
        self.block["tied"].weight = self.block["a"].weight
        self.block["frozen"].weight.requires_grad_(False)
        self.block["norm"] = nn.LayerNorm(4)
        self.outside = nn.Linear(4, 4)

    def units(self) -> list[nn.Module]:
        return [self.block]


def test_which_weights_have_a_copy_and_which_gradients_they_get() -> None:
    model = Small()
    before = dict(model.named_parameters(remove_duplicate=False))
    halves = Halves(model, Runtime(CPU, "bfloat16"), "none")
    with suppress(ZeroDivisionError), halves.used():
        inside = dict(model.named_parameters(remove_duplicate=False))
        assert {k for k in inside if inside[k] is not before[k]} == {
            f"block.{k}.weight" for k in ("a", "tied", "frozen")
        }
        assert inside["block.a.weight"] is inside["block.tied.weight"]
        x = torch.ones(2, 4, dtype=torch.bfloat16)
        for layer in ("a", "tied", "frozen"):
            x = model.block[layer](x)
        x.sum().backward()
        halves.collect()
        raise ZeroDivisionError
    assert all(p is before[k] for k, p in model.named_parameters(remove_duplicate=False)), "put back"
    assert model.block["a"].weight.grad is not None
    assert model.block["frozen"].weight.grad is None
    with halves.used():  # they follow the weights
        model.block["a"].weight.data.zero_()
    before["block.a.weight"].data.fill_(2.0)
    with halves.used():
        assert (model.block["a"].weight == 2).all()


def test_there_are_none_where_they_would_cost_more_than_they_save() -> None:
    for format, again, processes in (("float32", "none", 1), ("bfloat16", "full", 1), ("bfloat16", "none", 2)):
        assert not Halves(Small(), Runtime(CPU, format), again, processes).places


def test_low_rank_updates_and_what_they_are_beside() -> None:
    pytest.importorskip("peft")
    model = opened(build("masked_hwm"))
    adapt(model, 2)
    halves, runtime = Halves(model, Runtime(CPU, "bfloat16"), "none"), Runtime(CPU, "bfloat16")
    with halves.used(), runtime.autocast():
        loss, _ = model(clip(model))
        loss.backward()
        halves.collect()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all(".lora_" in n for n in trained)


def test_compiled_blocks_are_compiled_once() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model, runtime = opened(build("masked_hwm")), Runtime(CPU, "bfloat16")
    for unit in model.units():
        unit.forward = torch.compile(unit.forward, backend=backend)
    halves, counts = Halves(model, runtime, "none"), []
    for _ in range(3):
        with halves.used():
            with runtime.autocast():
                loss, _ = model(clip(model))
            loss.backward()
            halves.collect()
        counts.append(len(graphs))
    assert counts[0] == counts[-1] > 0
    torch._dynamo.reset()
