"""What a run shows of itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwm import cli
from hwm.commands import samples
from hwm.commands.training import train_recipe
from hwm.loading import load_tokenizer
from hwm.recipes import find_recipe
from hwm.tokenizers.tiny import TinyTokenizer
from hwm.train.loggers import Logger
from hwm.types import Tokenizer
from tests.conftest import make_store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    log = Logger(tmp_path, (), {}, 0)
    for step in (10, 20, 30):
        log.log(step, {"loss": 5 - step / 10} | ({"val_loss": 4.5} if step == 20 else {}))
    log.close()
    return tmp_path


def test_the_curve_is_that_of_the_log(run: Path) -> None:
    assert samples.curve(run) == [(10, 4.0, None), (20, 3.0, 4.5), (30, 2.0, None)]
    samples.show_progress(None)(30, None, run)
    page = (run / "curves.html").read_text(encoding="utf-8")
    assert "training loss" in page
    assert "held-out loss: 4.5 at 20" in page


def test_a_run_goes_on_without_charts(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    samples._can_draw.cache_clear()
    show = samples.show_progress(None)
    for step in (20, 30):
        show(step, None, run)
    samples._can_draw.cache_clear()
    assert not (run / "curves.html").exists()
    assert capsys.readouterr().err.count("no curves.html: charts need Matplotlib: pip install") == 1


def test_pictures_that_cannot_be_made_do_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def decode(self: TinyTokenizer, latents: torch.Tensor) -> torch.Tensor:
        asked.append(len(latents))
        raise RuntimeError("out of order")

    monkeypatch.setattr(TinyTokenizer, "decode", decode)
    tiny = load_tokenizer("tiny")
    store = make_store(tmp_path / "store", [14, 14], latent=tiny.latent, tokenizer=tiny.id)
    recipe = find_recipe("masked_hwm_toy")()
    recipe = replace(
        recipe,
        model=replace(recipe.model, dim=16, depth=1, heads=2, past=3),
        data=replace(recipe.data, stores=(str(store.path),), val_stores=(str(store.path),), steps=4),
        train=replace(recipe.train, steps=2, batch_size=2, val_every=1, val_batches=1, threads=1),
    )
    train_recipe(recipe, tmp_path / "run")
    said = capsys.readouterr().err
    assert len(asked) == 2, "tried at each validation"
    assert [said.count(f"no pictures at update {n}: RuntimeError: out of order") for n in (1, 2)] == [1, 1]
    assert [line[0] for line in samples.curve(tmp_path / "run")] == [2]


def test_the_tokenizer_that_is_named_shows_the_rollouts_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, seen = load_tokenizer("tiny"), list[str]()
    store = make_store(tmp_path / "store", [14, 14], latent=tiny.latent, tokenizer=tiny.id)
    nameless = make_store(tmp_path / "nameless", [14, 14], latent=tiny.latent, tokenizer="")

    def show(rollouts: tuple[object, Tokenizer] | None, dtype: str) -> Callable[..., None]:
        seen.append(rollouts[1].id if rollouts else "")
        return lambda step, model, run: None

    monkeypatch.setattr(samples, "show_progress", show)
    small = "--model.dim 16 --model.depth 1 --model.heads 2 --model.past 3 --data.steps 4 --train.threads 1"
    small += " --train.steps 1 --train.batch-size 2 --train.val-every 1 --train.val-batches 1"

    def train(recipe: str, place: Path, *words: str) -> int:
        data = [
            "--data.stores",
            str(place),
            "--data.val-stores",
            str(place),
            "--out",
            str(tmp_path / f"run{len(seen)}"),
        ]
        return cli.main(["train", recipe, *data, *words])

    for place in (store.path, nameless.path):
        for words in ([], ["--tokenizer", "tiny"], ["--tokenizer=tiny"]):
            assert train("masked_hwm_toy", place, *small.split(), *words) == 0
    assert seen == [tiny.id] * 6
    capsys.readouterr()
    assert train("masked_hwm_toy", store.path, *small.split(), "--tokenizer", "pixels-64x64") == 2
    said = capsys.readouterr().err
    assert "--tokenizer pixels-64x64 is pixels-64x64, to which the data mean nothing" in said
    assert f"they are latents of {tiny.id}. Leave the option out" in said
    assert train("tiny_tokenizer", store.path, "--tokenizer", "tiny") == 2
    assert "is no world model" in capsys.readouterr().err
    assert not (tmp_path / "run6").exists(), "nothing was begun"


def test_held_out_stores_that_do_not_go_with_the_data_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the recipe, which nobody asked for, too; without any a run does without."""
    tiny = load_tokenizer("tiny")
    mine = make_store(tmp_path / "mine", [14, 14], latent=tiny.latent, tokenizer=tiny.id)
    words = ["train", "masked_hwm_toy", "--data.stores", str(mine.path), "--out", str(tmp_path / "run")]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "held-out data has actions of 'sim_g1' that the training data does not have" in said
    assert "Held out are mini_heldout: name stores that go with yours by --data.val-stores" in said
    small = "--model.dim 16 --model.depth 1 --model.heads 2 --model.past 3 --data.steps 4 --train.steps 1"
    assert cli.main([*words, *small.split(), "--train.threads", "1", "--data.val-stores"]) == 0


def test_an_interruption_ends_a_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "draw_curves", interrupted)
    with pytest.raises(KeyboardInterrupt):
        samples.show_progress(None)(1, None, run)
