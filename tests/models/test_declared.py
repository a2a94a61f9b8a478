"""What a world model of anybody says of itself: what it must, and what becomes of what it does not say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwm.config import REGISTRY
from hwm.config import Config as AnyConfig
from hwm.errors import HwmError
from hwm.interact.limits import Limits
from hwm.interact.session import Session, World, advance
from hwm.interact.starts import Start
from hwm.models.base import WorldModel
from hwm.models.caches import split, stack
from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import Batch, Prediction
from tests.interact.conftest import Painter, a_start
from tests.models.toys import toy_spec


class Summing(WorldModel):
    """The next ids are the sum of all ids before them; the cache is the sum so far."""

    name = "summing"

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        past: int = 50

    def __init__(self, config: Any, spec: Any) -> None:
        super().__init__(config, spec)
        self.unused, self.rows = nn.Parameter(torch.zeros(1)), list[int]()

    def keep(self, total_BHW: Tensor) -> Any:
        return {"total": [total_BHW], "of": "ids"}

    def kept(self, cache: Any) -> Tensor:
        total: Tensor = cache["total"][0]
        return total

    def predict(self, batch: Batch, *, cache: Any = None, **_: Any) -> Prediction:
        self.rows.append(len(batch.latents))
        total_BHW = batch.latents.sum(1) if cache is None else self.kept(cache) + batch.latents[:, -1]
        return Prediction((total_BHW % (self.spec.latent.vocab or 1))[:, None], cache=self.keep(total_BHW))


class Declared(Summing):
    cache_axis = 0


class Own:
    """A cache that nobody but its model understands."""

    def __init__(self, total: Tensor) -> None:
        self.total = total


class Opaque(Summing):
    def keep(self, total_BHW: Tensor) -> Any:
        return Own(total_BHW)

    def kept(self, cache: Any) -> Tensor:
        return cache.total  # type: ignore[no-any-return]


class Overriding(Opaque):
    def stack_caches(self, caches: Any) -> Any:
        return Own(torch.cat([cache.total for cache in caches]))

    def split_cache(self, cache: Any, count: int) -> list[Any]:
        return [Own(row) for row in cache.total.split(1)]


def world_of(kind: type[Summing], past: int = 50) -> World:
    spec = toy_spec()
    limits = {name: Limits.of_spec(action) for name, action in spec.actions.items()}
    return World(kind(kind.Config(past=past), spec), Painter(spec), limits)


def start(seed: int) -> Start:
    """A start of few steps, so that the window holds all that follow."""
    return a_start(world_of(Summing, past=6), seed)


@pytest.mark.parametrize(
    ("kind", "rows"), [(Summing, [1, 1, 1]), (Opaque, [1, 1, 1]), (Declared, [3]), (Overriding, [3])]
)
def test_no_player_is_shown_the_memory_of_another(kind: type[Summing], rows: list[int]) -> None:
    world = world_of(kind)
    still = np.zeros((1, 2, 3), np.float32)
    sessions = [Session(world) for _ in range(3)]
    alone = [Session(world) for _ in sessions]
    for i, (session, other) in enumerate(zip(sessions, alone, strict=True)):
        session.reset(start(i), seed=i)
        other.reset(start(i), seed=i)
    for _ in range(4):
        world.model.rows.clear()  # type: ignore[operator,union-attr]
        advance(sessions, [still] * 3)
        assert world.model.rows == rows
        for session in alone:
            advance([session], [still])
    assert [s.hashes for s in sessions] == [s.hashes for s in alone]
    assert len({s.hashes[-1] for s in sessions}) == 3


def test_a_cache_of_unknown_kind_is_not_shared_but_refused() -> None:
    class Wrong(Opaque):
        cache_axis = 0

    world = world_of(Wrong)
    sessions = [Session(world) for _ in range(2)]
    for i, session in enumerate(sessions):
        session.reset(start(i))
    with pytest.raises(HwmError, match=r"a cache holds a Own, .*overrides `stack_caches` and `split_cache`"):
        advance(sessions, [np.zeros((1, 2, 3), np.float32)] * 2)


class Pair(NamedTuple):
    a: Tensor
    b: tuple[int, str, None]


def test_trees_come_apart_and_together_again() -> None:
    def make(i: int) -> Any:
        return {"x": [torch.full((2, 1, 3), i), Pair(torch.full((4, 1), i), (5, "s", None))], "n": 1.5}

    parts = [make(i) for i in range(3)]
    joined = stack(parts, 1)
    assert joined["x"][0].shape == (2, 3, 3)
    again = split(joined, 3, 1)
    for part, other in zip(parts, again, strict=True):
        assert torch.equal(part["x"][0], other["x"][0])
        assert isinstance(other["x"][1], Pair)
        assert torch.equal(part["x"][1].a, other["x"][1].a)
        assert (other["x"][1].b, other["n"]) == ((5, "s", None), 1.5)
    again[0]["x"][0].zero_()
    assert int(again[1]["x"][0].min()) == 1, "each has its own memory"
    assert int(joined["x"][0][:, 1].min()) == 1


@pytest.mark.parametrize(
    ("caches", "message"),
    [
        ([torch.zeros(1), None], "caches differ: NoneType, Tensor in one place"),
        ([(1,), (2,)], "caches differ in one place: 1, 2"),
        ([{"a": 1}, {"b": 1}], "caches differ in one place"),
        ([(1, 2), (1,)], "caches differ in one place"),
        ([{1}, {1}], "a cache holds a set"),
    ],
)
def test_caches_that_cannot_be_joined(caches: list[Any], message: str) -> None:
    with pytest.raises(HwmError, match=message):
        stack(caches, 0)


def test_a_tensor_without_a_row_for_each_is_refused() -> None:
    with pytest.raises(HwmError, match=r"a tensor of shape \(4, 2\) in a cache has no axis 0 of 2 rollouts"):
        split((torch.zeros(2, 2), torch.zeros(4, 2)), 2, 0)


def test_what_is_not_declared_says_what_to_declare() -> None:
    model = world_of(Summing).model
    with pytest.raises(HwmError, match=r"summing does not say how caches .* `cache_axis`"):
        model.stack_caches([{}, {}])
    assert model.split_cache(None, 2) == [None, None]
    assert model.sampler is None
    assert model.sampler_with(()) is None
    with pytest.raises(HwmError, match=r"summing has no sampler to change: .* field `sampler`"):
        model.sampler_with(["steps=3"])


def test_a_sampler_changes_by_words_and_by_fields() -> None:
    class Sampling(Summing):
        @dataclass(frozen=True, kw_only=True)
        class Config(Summing.Config):
            sampler: MaskGITSampler = field(default_factory=lambda: MaskGITSampler(steps=5))

    model = Sampling(Sampling.Config(), toy_spec())
    assert model.sampler == model.sampler_with([]) == MaskGITSampler(steps=5)
    for changes in (["temperature=0.5"], {"temperature": 0.5}):
        assert model.sampler_with(changes) == MaskGITSampler(steps=5, temperature=0.5)
    for wrong in (["steps=many"], {"steps": "many"}):
        with pytest.raises(HwmError, match="steps takes int"):
            model.sampler_with(wrong)


def test_a_family_without_its_parts_is_refused_when_it_is_defined() -> None:
    with pytest.raises(HwmError, match=r"'lossless' .* must define `loss`"):

        class Lossless(Summing, name="lossless"):
            @dataclass(frozen=True, kw_only=True)
            class Config(Summing.Config):
                pass

    with pytest.raises(HwmError, match=r"'silent' .* must define `predict`"):

        class Silent(WorldModel, name="silent"):
            @dataclass(frozen=True, kw_only=True)
            class Config(WorldModel.Config):
                pass

            def loss(self, batch: Batch) -> Any:
                raise NotImplementedError

    with pytest.raises(HwmError, match=r"Pastless.Config of the model 'pastless' must subclass WorldModel.Config"):

        class Pastless(Summing, name="pastless"):
            @dataclass(frozen=True, kw_only=True)
            class Config(AnyConfig):  # type: ignore[assignment]
                pass

            def loss(self, batch: Batch) -> Any:
                raise NotImplementedError

    assert not {"lossless", "silent", "pastless"} & set(REGISTRY)
