"""Data parallelism: what no batch trains is known before, and looked for in every pass only where it has to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hwm.config import REGISTRY
from hwm.data.clips import Clips
from hwm.data.mixture import Mixture, loader
from hwm.data.store import Store
from hwm.errors import HwmError
from hwm.models.hma_discrete import HMADiscrete
from hwm.models.masked_hwm import MaskedHWM
from hwm.models.next_block import NextBlock
from hwm.train.parallel import Parallel, never_trained
from tests.conftest import make_store
from tests.models.toys import toy_batch, toy_spec
from tests.train.toy import Toy, mixture

UNUSED = {"unused.weight", "unused.bias"}


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def toy(data: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setitem(REGISTRY, Toy.name, Toy)
    torch.manual_seed(0)
    return Toy.Config().build(mixture(data).spec)


def test_looking_leaves_no_trace(toy: Toy, data: Path) -> None:
    before = {k: v.clone() for k, v in toy.state_dict().items()}
    toy.eval()
    assert never_trained(toy, mixture(data).examples(), nullcontext) == UNUSED
    assert all(torch.equal(v, before[k]) for k, v in toy.state_dict().items()), "statistics of a batch norm"
    assert not toy.training
    assert all(p.grad is None for p in toy.parameters())


def test_what_depends_on_chance_is_not_known(toy: Toy, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Toy.loss, []

    def fickle(self: Toy, batch: Any) -> Any:
        calls.append(batch)
        loss, metrics = real(self, batch)
        return loss + (self.unused.bias.sum() if len(calls) % 2 else 0), metrics

    monkeypatch.setattr(Toy, "loss", fickle)
    assert never_trained(toy, mixture(data).examples(), nullcontext) is None


def test_families_that_train_the_same_weights_at_every_batch() -> None:
    """With one robot nothing has to be looked for; with two it has, as a batch is of one of them."""
    two = toy_spec()
    one = toy_spec()
    one = type(one)(one.latent, {"arm": one.actions["arm"]})
    for kind in (MaskedHWM, NextBlock, HMADiscrete):
        model = kind.tiny().build(one)
        steps = model.config.past + model.config.horizon
        never = never_trained(model, [toy_batch(one, steps)], nullcontext)
        assert never is not None
        assert not any("actions" in name for name in never)
        model = kind.tiny().build(two)
        batches = [toy_batch(two, steps, embodiment=e) for e in two.actions]
        assert never_trained(model, batches, nullcontext) is None


def test_passes_are_searched_only_where_batches_differ(group: None, toy: Toy) -> None:
    known, unknown = Parallel(toy, UNUSED), Parallel(toy, None)
    assert (known.find_unused_parameters, unknown.find_unused_parameters) == (False, True)
    assert known.gradient_as_bucket_view


def test_training_what_was_thought_unused_is_told(group: None, toy: Toy, data: Path, monkeypatch) -> None:
    model, batch = Parallel(toy, UNUSED), next(mixture(data).examples())
    for _ in range(2):  # DDP complains at the second pass, if it was told wrong
        model(batch)[0].backward()
        model.check()
    real = Toy.loss
    monkeypatch.setattr(Toy, "loss", lambda s, b: (real(s, b)[0] + s.unused.bias.sum(), {}))
    model(batch)[0].backward()
    with pytest.raises(HwmError, match=r"unused\.bias was trained by this batch and by none that was tried"):
        model.check()


def test_there_is_an_example_of_each_embodiment(tmp_path: Path) -> None:
    stores = [make_store(tmp_path / n, prefix=n, embodiment=e).path for n, e in (("a", "x"), ("b", "y"), ("c", "x"))]
    found = list(Mixture([Clips(Store(s), 3) for s in stores]).examples())
    assert sorted(batch.embodiment for batch in found) == ["x", "y"]
    assert all(len(batch.latents) == 1 for batch in found)


def test_batches_for_a_gpu_are_in_page_locked_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: (pinned.append(self), self)[1])
    plain, locked = (next(loader(mixture(data), seed=0, start=0, size=2, pinned=p)) for p in (False, True))
    assert [len(plain.latents), len(locked.latents), len(pinned)] == [2, 2, 3], (
        "latents, actions, and those that follow"
    )
