"""Statistics of several stores together: those of all their steps, and a word where they suit a store badly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwm import cli
from hwm.commands.training import train_recipe
from hwm.data.clips import Clips
from hwm.data.mixture import DataConfig, Mixture
from hwm.data.statistics import clamped, pooled
from hwm.data.store import Store
from hwm.data.writer import Writer
from hwm.models.next_block import NextBlock
from hwm.nn.actions import standardised
from hwm.recipes import Recipe
from hwm.train.config import TrainConfig
from hwm.types import LatentSpec
from tests.conftest import make_arrays, make_header, make_store


def shifted(path: Path, steps: int, mean: float, scale: float, *, seed: int = 0, **header) -> Store:
    """A store whose first dimension lies about a mean, and whose second is constant."""
    writer = Writer(path, make_header(**header))
    actions, latents = make_arrays(writer.header, steps, seed)
    actions[..., 0] = actions[..., 0] * scale + mean
    actions[..., 1] = 0.1
    values = latents * scale + mean if latents.dtype.kind == "f" else latents
    writer.add(path.name, actions, values)
    return writer.finish()


@pytest.mark.parametrize("first", ["small", "large"])
def test_a_mixture_is_normalised_by_all_of_its_stores(tmp_path: Path, first: str) -> None:
    stores = {"small": shifted(tmp_path / "small", 8, 50.0, 0.1), "large": shifted(tmp_path / "large", 120, -2.0, 3.0)}
    other = shifted(tmp_path / "other", 40, 1000.0, 9.0, embodiment="other")
    chosen = [stores.pop(first), *stores.values(), other]
    spec = Mixture([Clips(s, 3) for s in chosen]).spec
    action, every = spec.actions["toy"], np.concatenate([s.actions for s in chosen[:2]]).astype(np.float64)
    assert action.mean == pytest.approx(every.mean((0, 1)))
    assert action.std[0] == pytest.approx(every[..., 0].std())
    assert action.std[1] == 0, "constant in both stores, at one value"
    assert (spec.actions["other"].mean, spec.actions["other"].std) == other.statistics, "of another robot: its own"


def test_a_dimension_that_only_differs_between_stores_is_not_constant() -> None:
    mean, std = pooled([(3, (0.1, 2.0), (0.0, 0.0)), (1, (0.1, 6.0), (0.0, 0.0))])
    assert mean == (0.1, 3.0)
    assert std == (0.0, pytest.approx(3**0.5))


def test_a_longer_stride_counts_the_same_actions(tmp_path: Path) -> None:
    a, b = shifted(tmp_path / "a", 30, 5.0, 1.0), shifted(tmp_path / "b", 60, 0.0, 1.0, actions_per_step=1)
    found = Mixture([Clips(a, 3), Clips(b, 3, stride=2)]).spec.actions["toy"]
    every = np.concatenate([a.actions.reshape(-1, 2), b.actions.reshape(-1, 2)]).astype(np.float64)
    assert found.mean == pytest.approx(every.mean(0))
    assert found.std[0] == pytest.approx(every[:, 0].std())


def test_latents_of_a_mixture_are_normalised_by_all_of_its_stores(tmp_path: Path) -> None:
    latent = LatentSpec((2, 2), channels=3)
    a = shifted(tmp_path / "a", 10, 4.0, 0.5, latent=latent, dtype="float32")
    b = shifted(tmp_path / "b", 90, 0.0, 2.0, latent=latent, dtype="float32", embodiment="other")
    every = np.concatenate([np.asarray(s.latents, np.float64) for s in (a, b)])
    for order in ((a, b), (b, a)):
        spec = Mixture([Clips(s, 2) for s in order]).spec
        assert spec.latent_mean == pytest.approx(every.mean((0, 2, 3)))
        assert spec.latent_std == pytest.approx(every.std((0, 2, 3)))


def test_statistics_of_one_store_are_as_they_were(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    action = DataConfig(stores=(str(store.path),)).open().spec.actions["toy"]
    assert (action.mean, action.std) == store.statistics
    twice = Mixture([Clips(store, 2), Clips(store, 3)]).spec.actions["toy"]
    assert (twice.mean, twice.std) == (store.statistics[0], pytest.approx(store.statistics[1]))


def test_the_share_that_is_clamped_is_that_of_the_models(tmp_path: Path) -> None:
    store = shifted(tmp_path / "s", 50, 4.0, 1.0)
    batch, spec = Clips(store, 50).batch([0]), store.data_spec().actions["toy"]
    near = ((0.0, 0.1), (1.0, 0.0))
    x, _ = standardised(batch.actions, type(spec)(2, spec.names, *near))
    assert clamped(store.actions, near) == pytest.approx((x.abs() >= 5).double().mean((0, 1, 2)).numpy())
    assert 0 < clamped(store.actions, near)[0] < 1


def test_training_tells_of_stores_that_are_clamped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large, far = shifted(tmp_path / "large", 200, 0.0, 1.0), shifted(tmp_path / "far", 3, 1e4, 1.0)
    held_out = shifted(tmp_path / "held_out", 9, -1e6, 1.0)
    model = NextBlock.Config(past=2, horizon=1, dim=16, depth=1, heads=2)

    def said(*stores: Store, val: tuple[str, ...] = ()) -> str:
        data = DataConfig(stores=tuple(str(s.path) for s in stores), val_stores=val)
        run = tmp_path / f"run{len(stores)}{len(val)}"
        train_recipe(Recipe(model=model, data=data, train=TrainConfig(steps=1, batch_size=2), tokenizer=""), run)
        return capsys.readouterr().err

    assert "clamp" not in said(large)
    told = said(large, far, val=(str(held_out.path),))
    assert f"50.00% of the actions of {far.path} lie more than 5 standard deviations" in told
    assert "'left', 100%" in told
    assert str(held_out.path) in told
    assert str(large.path) not in told


def test_encoding_tells_of_statistics_that_do_not_suit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films = make_store(tmp_path / "films", [4], video=True, latent=None)
    train, far = shifted(tmp_path / "train", 20, 0.0, 1.0), shifted(tmp_path / "far", 20, 500.0, 1.0)
    for statistics, clamps in ((train, False), (far, True)):
        out = tmp_path / f"encoded{clamps}"
        words = ["encode", films.path, "--tokenizer", "pixels-32x32", "--out", out, "--statistics", statistics.path]
        assert cli.main([str(word) for word in words]) == 0
        assert ("models clamp them" in capsys.readouterr().err) == clamps
