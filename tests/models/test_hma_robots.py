"""HMA on stores of several robots, and a further robot taught to what they left: by all weights or by its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.commands.training import train_recipe
from hwm.data.mixture import DataConfig
from hwm.errors import HwmError
from hwm.loading import load
from hwm.models.hma_continuous import HMAContinuous
from hwm.models.hma_discrete import HMADiscrete
from hwm.recipes import Recipe
from hwm.train.checkpoint import read_meta
from hwm.train.config import TrainConfig
from hwm.types import LatentSpec
from tests.conftest import make_store

Run = Callable[..., dict[str, Tensor]]
KINDS = pytest.mark.parametrize("kind", [HMADiscrete, HMAContinuous])


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Train on stores of some robots, and get the weights."""

    def train(kind: Any, name: str, robots: dict[str, tuple[str, ...]], init: str = "", **train: Any) -> Any:
        latent = (
            LatentSpec((4, 4), channels=3) if kind is HMAContinuous else LatentSpec((2, 2), vocab=25, levels=(5, 5))
        )
        paths = []
        for robot, actions in robots.items():
            path = tmp_path / f"{kind.name}_{robot}"
            if not path.exists():
                make_store(path, [9] * 5, prefix=robot, embodiment=robot, action_names=actions, latent=latent)
            paths.append(str(path))
        episodes = train.pop("episodes", 0)
        config = {"steps": 6, "batch_size": 4, "lr": 1e-2, "warmup": 1, "log_every": 0, "save_every": 3, "threads": 1}
        recipe = Recipe(
            model=kind.tiny(),
            data=DataConfig(stores=tuple(paths), steps=5, episodes=episodes),
            train=TrainConfig(**(config | train)),
        )
        module = train_recipe(recipe, tmp_path / name, str(tmp_path / init) if init else None)
        return {k: v.clone() for k, v in module.state_dict().items()}

    return train


TWO = {"arm": ("x", "y"), "legs": ("a", "b", "c")}
HAND = {"hand": ("thumb",)}


def of_robot(name: str) -> bool:
    return ".hand." in name


@KINDS
def test_a_third_robot_is_taught_by_all_weights_or_by_its_own(kind: Any, run: Run, tmp_path: Path) -> None:
    both = run(kind, "both", TWO)
    assert set(load(tmp_path / "both").spec.actions) == {"arm", "legs"}
    tuned = run(kind, "tuned", HAND, "both", episodes=2)
    alone = run(kind, "alone", HAND, "both", episodes=2, only=("fresh",))
    stem = run(kind, "stem", HAND, "both", episodes=2, only=("trunk.stems.*",))
    assert set(load(tmp_path / "tuned").spec.actions) == {"hand"}
    shared = [k for k in alone if not of_robot(k)]
    assert len(shared) > 20
    assert all(torch.equal(alone[k], both[k]) and torch.equal(stem[k], both[k]) for k in shared)
    moved = [k for k in shared if not torch.equal(tuned[k], both[k])]
    assert len(moved) > 0.8 * len(shared)
    own = {k for k in alone if of_robot(k)}
    begun = replace(kind.tiny()).build(load(tmp_path / "tuned").spec).state_dict()
    assert own <= begun.keys()
    # the same first weights in all three: what differs was taught
    assert any(not torch.equal(alone[k], stem[k]) for k in own if ".told." in k)
    assert any(not torch.equal(alone[k], tuned[k]) for k in own)


@KINDS
def test_tuning_of_a_part_goes_on_where_it_was(kind: Any, run: Run) -> None:
    run(kind, "both", TWO)
    options = {"only": ("fresh",), "ema": 0.9, "episodes": 2}
    whole = run(kind, "whole", HAND, "both", **options)
    run(kind, "halves", HAND, "both", **options, minutes=1e-9)  # one update, and the time is up
    halves = run(kind, "halves", HAND, "both", **options)
    assert all(torch.equal(whole[k], halves[k]) for k in whole)
    with pytest.raises(HwmError, match="does not train that way"):
        run(kind, "halves", HAND, "both", episodes=2, steps=8, only=("trunk.stems.*",))


def test_statistics_are_those_of_the_first_episodes(run: Run, tmp_path: Path) -> None:
    run(HMADiscrete, "few", HAND, episodes=2)
    few = read_meta(tmp_path / "few")["spec"]["actions"]["hand"]
    whole = DataConfig(stores=(str(tmp_path / "hma_discrete_hand"),), steps=5).open().spec.actions["hand"]
    assert few["mean"] != list(whole.mean)
