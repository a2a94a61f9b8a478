"""The demo from beginning to end, on a small world: its parts, their progress, and what the report shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwm import cli
from hwm.catalogue import RECIPES
from hwm.commands import demo
from hwm.commands.samples import curve
from hwm.models.genie import Genie
from hwm.recipes import find_recipe
from hwm.train.checkpoint import save_model
from tests.evaluate import pan_world


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A demo of a model of random weights on a small store, which the toy is trained on too, for a few updates."""
    tokenizer = pan_world.random_tokenizer(tmp_path / "tok")
    store = pan_world.record(tmp_path / "store", tokenizer, episodes=2, steps=12)
    save_model(tmp_path / "genie", replace(Genie.tiny(), past=3).build(store.data_spec()))
    toy = find_recipe("masked_hwm_toy")()
    small = toy.but(
        model=dict(dim=16, depth=1, heads=2, past=3, factorized=False),
        data=dict(stores=(str(store.path),), val_stores=(str(store.path),), steps=4, motion=0.0),
        train=dict(steps=12, warmup=2, log_every=3, val_every=6, val_batches=1, save_every=6, ema=0.5),
        tokenizer="",
    )
    monkeypatch.setitem(RECIPES, "masked_hwm_toy", lambda: small)
    monkeypatch.setattr(demo, "COMMANDS", {"left": {"TURN": 2.0}, "right": {"TURN": -2.0}})
    out = ["--out", str(tmp_path / "demo"), "--threads", "1", "--device", "cpu"]
    return ["demo", "--model", str(tmp_path / "genie"), "--store", str(store.path), "--clips", "2", *out]


def test_the_demo_evaluates_trains_and_reports(words: list[str], tmp_path: Path, capsys) -> None:
    assert cli.main(words) == 0
    said, out = capsys.readouterr().out, tmp_path / "demo"
    assert "commands: 2/2" in said
    assert "update 12/12" in said
    assert f"Open {out}/report.html" in said.replace("\n", "")
    assert len(list(out.glob("clip_*.mp4"))) == 2
    assert json.loads((out / "figures.json").read_text(encoding="utf-8"))["clips"] == 2

    points = curve(out / "toy")
    assert [step for step, _, _ in points] == [3, 6, 9, 12]
    assert points[-1][2] is not None
    assert points[1][2] is not None
    assert points[-1][2] < points[1][2], "the held-out loss falls"
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "CPU, float32" in report
    assert "trained during this demo (cpu, float32)" in report
    assert "held-out loss" in report
    assert all(command in report for command in ("left", "right"))


def test_the_demo_can_do_without_the_toy(words: list[str], tmp_path: Path) -> None:
    assert cli.main([*words, "--no-train"]) == 0
    assert "held-out loss" not in (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "demo" / "toy").exists()


def test_a_file_is_no_folder_for_a_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").touch()
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "is a file; give a folder with --out" in capsys.readouterr().err


def test_the_toy_shows_a_curve_within_the_time_of_a_demo() -> None:
    """At least six points of the held-out loss, and no more tokens than two cores without bfloat16 see in 90 s at half
    their speed, which is 9,000 tokens a core and second."""
    toy = find_recipe("masked_hwm_toy")()
    assert toy.train.steps // toy.train.val_every >= 6
    assert toy.data.expects is not None
    tokens = toy.train.steps * toy.train.batch_size * toy.train.accumulate * toy.data.steps
    tokens *= toy.data.expects.latent.cells
    assert tokens < 2 * 90 * 9000 / 2
