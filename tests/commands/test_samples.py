"""What a run shows of itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwm.commands import samples
from hwm.commands.training import train_recipe
from hwm.loading import load_tokenizer
from hwm.recipes import find_recipe
from hwm.tokenizers.tiny import TinyTokenizer
from hwm.train.loggers import Logger
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


def test_an_interruption_ends_a_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "draw_curves", interrupted)
    with pytest.raises(KeyboardInterrupt):
        samples.show_progress(None)(1, None, run)
