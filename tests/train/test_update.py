"""What an update and a validation are made of: randomness, modes, averages, and whose data and statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwm.commands.training import train_recipe
from hwm.data.mixture import DataConfig
from hwm.models.flow_hwm import FlowHWM
from hwm.models.next_block import NextBlock
from hwm.recipes import Recipe
from hwm.train.checkpoint import load_model
from hwm.train.config import TrainConfig
from hwm.train.loggers import read_log
from hwm.train.trainer import Trainer
from hwm.types import LatentSpec
from tests.conftest import make_store
from tests.pretend.device import pretending
from tests.train.toy import make_trainer, mixture

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]


def test_each_update_draws_anew_and_the_same_when_repeated(data: Path, tmp_path: Path) -> None:
    """Masks and noise of an update follow from the seed, the update and the process, and from nothing before."""

    def drawn(run: str, *, seed: int = 0, rank: int = 0, before: int = 0) -> list[float]:
        t, found = make_trainer(data, tmp_path / run, steps=9, seed=seed), list[float]()
        t.world = replace(t.world, rank=rank)
        loss = t.module.loss
        t.module.loss = lambda batch: (found.append(torch.rand(()).item()), loss(batch))[1]  # type: ignore[method-assign]
        batch = t.data.batch(0, 0, 4)
        torch.rand(before)
        for t.step in range(4):
            t.update(iter([batch]))
        return found

    one = drawn("one")
    assert one == drawn("again", before=7)
    others = [drawn("seed", seed=1), drawn("rank", rank=1)]
    assert len({*one, *others[0], *others[1]}) == 12


def test_the_average_follows_every_update(data: Path, tmp_path: Path) -> None:
    t = make_trainer(data, tmp_path / "run", steps=5, ema=0.3)
    assert t.average is not None
    want = {k: v.clone() for k, v in t.module.state_dict().items()}
    batches = t._batches()
    for t.step in range(5):
        t.update(batches)
        decay = min(0.3, (1 + t.step) / (10 + t.step))
        for k, v in t.module.state_dict().items():
            want[k] = decay * want[k] + (1 - decay) * v if v.is_floating_point() else v.clone()
        for k, v in t.average.weights.items():
            torch.testing.assert_close(v, want[k])
    assert not torch.equal(want["hidden.weight"], t.module.state_dict()["hidden.weight"])


def test_updates_are_in_training_mode_after_a_validation_too(data: Path, tmp_path: Path) -> None:
    t, modes = make_trainer(data, tmp_path / "run", steps=3), list[tuple[bool, bool]]()
    loss = t.module.loss
    t.module.loss = lambda batch: (modes.append((t.module.training, torch.is_grad_enabled())), loss(batch))[1]  # type: ignore[method-assign]
    batches = t._batches()
    t.update(batches)
    t.validate()
    t.update(batches)
    assert modes == [(True, True), (False, False), (False, False), (True, True)]


def test_validation_is_what_the_module_says_of_the_held_out_clips(data: Path, tmp_path: Path) -> None:
    """Without dropout, corruption or smoothing, and with the same draws each time."""
    held_out = make_store(tmp_path / "held_out", [9, 12], seed=3).path
    plain = NextBlock.Config(past=2, horizon=1, dim=16, depth=2, heads=2)
    torch.manual_seed(0)
    model = replace(plain, mlp_drop=0.5, max_corrupt=0.9, label_smoothing=0.3).build(mixture(data).spec)
    config = TrainConfig(steps=3, batch_size=4, val_every=0, val_batches=3, warmup=1, lr=1e-2)
    t = Trainer(config, model, mixture(data), mixture(held_out), tmp_path / "run")
    t.run()
    other = plain.build(mixture(data).spec)
    other.load_state_dict(model.state_dict())
    losses = []
    for i, batch in enumerate(mixture(held_out).fixed(4, 3)):
        torch.manual_seed(i)
        losses.append(other.eval().loss(batch)[0].item())
    model.train()
    assert t.validate()["val_loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    logged = [line["val_loss"] for line in read_log(tmp_path / "run") if "val_loss" in line]
    assert logged == [pytest.approx(sum(losses) / 3, rel=1e-4)]


@pytest.mark.parametrize("continuous", [False, True])
def test_a_run_is_normalised_by_training_data_and_validated_on_held_out(tmp_path: Path, continuous: bool) -> None:
    latent = {"latent": LatentSpec((2, 2), channels=3), "dtype": "float32"} if continuous else {}
    stores = {n: make_store(tmp_path / n, [9, 12], prefix=n, seed=s, **latent) for n, s in (("train", 0), ("held", 9))}
    model = FlowHWM.tiny() if continuous else NextBlock.Config(past=2, horizon=1, dim=16, depth=1, heads=2)
    recipe = Recipe(
        model=model,
        data=DataConfig(stores=(str(stores["train"].path),), val_stores=(str(stores["held"].path),), steps=3),
        train=TrainConfig(steps=2, batch_size=4, val_batches=2, warmup=1),
        tokenizer="",
    )
    train_recipe(recipe, tmp_path / "run")
    training, held_out = recipe.data.open(), recipe.data.open(validation=True)
    made = load_model(tmp_path / "run")
    assert made.spec == training.spec
    assert made.spec.actions["toy"].mean == stores["train"].statistics[0] != stores["held"].statistics[0]
    assert bool(made.spec.latent_mean) == continuous
    means = {}
    for name, clips in (("training", training), ("held_out", held_out)):
        losses = []
        for i, batch in enumerate(clips.fixed(4, 2)):
            torch.manual_seed(i)
            losses.append(made.validation_loss(batch)[0].item())
        means[name] = sum(losses) / len(losses)
    logged = next(line["val_loss"] for line in read_log(tmp_path / "run") if "val_loss" in line)
    assert logged == pytest.approx(means["held_out"], rel=1e-4)
    assert logged != pytest.approx(means["training"], rel=1e-4)


def test_an_update_is_done_in_as_few_passes_as_the_card_has_memory_for(data: Path, tmp_path: Path, capsys) -> None:
    """And in those when it is resumed, whatever is free then."""
    options = {"steps": 4, "batch_size": 2, "accumulate": 6, "fit": True, "device": "cuda", "dtype": "bfloat16"}
    found = []
    for gigabytes in (1e-6, 0.5, 40):
        with pretending("cuda", memory=int(gigabytes * 2**30)):
            t = make_trainer(data, tmp_path / "new", **options)
        found.append((t.config.batch_size, t.config.accumulate))
    assert found == [(1, 12), (1, 12), (12, 1)]
    assert "12 clips a pass, 1 passes an update" in capsys.readouterr().out
    made = make_trainer(data, tmp_path / "run", **{**options, "device": "cpu"}, val_every=0)
    assert (made.config.batch_size, made.config.accumulate) == (2, 6), "nobody knows what is free"
    made.step = 2
    made.save()
    with pretending("cuda", memory=40 * 2**30):
        again = make_trainer(data, tmp_path / "run", **options)._fitted
        assert again(replace(made.config, batch_size=4, accumulate=3)).batch_size == 2
        assert again(replace(made.config, batch_size=4, accumulate=4)).batch_size == 16
