"""Whole commands on a card that is not there: nothing is refused, and `auto` finds the card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hwm import cli
from hwm.catalogue import RECIPES
from hwm.data.mixture import DataConfig
from hwm.interact.engine import Engine
from hwm.interact.session import Session, World, advance
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.masked_hwm import MaskedHWM
from hwm.recipes import Recipe
from hwm.train.checkpoint import save_model
from hwm.train.config import TrainConfig
from hwm.train.trainer import Trainer
from tests.evaluate import pan_world
from tests.pretend.device import pretending
from tests.pretend.tensors import Card


class Made(NamedTuple):
    tokenizer: str
    store: str
    model: str
    autoregressive: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tokenizer, a store with video, and models, made on the CPU."""
    root = tmp_path_factory.mktemp("made")
    tokenizer = pan_world.random_tokenizer(root / "tok")
    store = pan_world.record(root / "store", tokenizer, episodes=4, steps=12)
    for name, config in (("masked", MaskedHWM.tiny()), ("cosmos", CosmosAR.tiny())):
        save_model(root / name, config.build(store.data_spec()))
    return Made(*(str(root / name) for name in ("tok", "store", "masked", "cosmos")))


@pytest.fixture(params=["cuda", "mps"])
def card(request: pytest.FixtureRequest) -> Iterator[Card]:
    with pretending(request.param) as found:
        yield found


def hwm(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = cli.main(list(words))
    out = capsys.readouterr()
    assert status == 0, out.err
    assert "Error" not in out.err, out.err  # of pictures, without which a training goes on
    return out.out


def run_of(made: Made, shown: bool = False) -> Recipe:
    train = TrainConfig(
        steps=2, batch_size=2, accumulate=2, warmup=1, ema=0.9, val_every=2, val_batches=1, save_every=2, log_every=1,
    )  # fmt: skip
    data = DataConfig(stores=(made.store,), val_stores=(made.store,), steps=3)
    return Recipe(model=MaskedHWM.tiny(), data=data, train=train, tokenizer=made.tokenizer if shown else "")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_begins_and_goes_on(card, made, optimizer, tmp_path, capsys, monkeypatch):
    shown = (
        optimizer == "adamw" and card.kind == "cuda"
    )  # rollouts of held-out clips, once: they take longer than all the rest
    monkeypatch.setitem(RECIPES, "toy", lambda: run_of(made, shown))
    words = ("train", "toy", "--out", str(tmp_path / "run"), "--train.optimizer", optimizer)
    hwm(capsys, *words)
    assert "resuming" in hwm(capsys, *words, "--train.steps", "4")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["step"] for line in lines} == {1, 2, 3, 4}
    assert (tmp_path / "run" / "samples" / "step_00000004.png").exists() == shown


def test_a_card_without_bfloat16_trains_in_float16(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(RECIPES, "toy", lambda: run_of(made))
    with pretending("cuda", bfloat16=False):
        assert "float16" in hwm(capsys, "train", "toy", "--out", str(tmp_path / "run"))


def test_the_host_does_not_wait_in_an_update(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(RECIPES, "toy", lambda: run_of(made))
    seen: list[Counter[str]] = []
    run_update = Trainer.update

    def counted(self, batches):
        seen.append(Counter(card.waits))
        return run_update(self, batches)

    monkeypatch.setattr(Trainer, "update", counted)
    only_at_the_end = [word for what in ("val", "save", "log") for word in (f"--train.{what}-every", "0")]
    with pretending("cuda") as card:
        hwm(capsys, "train", "toy", "--out", str(tmp_path / "run"), "--train.steps", "5", *only_at_the_end)
    update = seen[4] - seen[3]
    assert not +update


def test_a_model_is_evaluated(card, made, tmp_path, capsys):
    words = ("--data", made.store, "--clips", "2", "--horizon", "2", "--report", str(tmp_path / "report.html"))
    scenarios = ("autoregressive", "temporally_teacher_forced")
    printed = hwm(capsys, "evaluate", made.model, *words, "--scenario", *scenarios, "--out", str(tmp_path / "r.json"))
    assert "perplexity" in printed
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["device"] in ("pretended card", "mps")


def test_tokens_are_evaluated(card, made, tmp_path, capsys):
    words = ("--data", made.store, "--clips", "2", "--horizon", "1", "--scenario", "fully_teacher_forced")
    hwm(capsys, "evaluate", made.autoregressive, *words, "--out", str(tmp_path / "r.json"))


@pytest.mark.parametrize("model", ["model", "autoregressive"])
def test_videos_are_generated(card, made, model, tmp_path, capsys):
    words = ("--data", made.store, "--clips", "1", "--horizon", "1", "--no-swaps", "--out", str(tmp_path / "videos"))
    hwm(capsys, "generate", getattr(made, model), *words)
    assert list((tmp_path / "videos").glob("*.mp4"))


@pytest.mark.parametrize("model", ["model", "autoregressive"])
def test_a_world_is_played_in(card, made, model):
    world = World.open(getattr(made, model), store=made.store)
    assert world.device.type == card.kind
    sessions = [Session(world) for _ in range(2)]
    for session in sessions:
        session.reset()
    for _ in range(3):
        advance(sessions, [session.plan({}) for session in sessions])
    assert sessions[0].frames().shape == sessions[0].undo().shape
    assert sessions[1].play(sessions[1].replay()) is None
    assert len(sessions[1].video())


def test_players_are_computed_together(card, made):
    """By the threads that `hwm play` starts."""
    world = World.open(made.model, store=made.store)
    engine = Engine(world)
    try:
        sessions = [Session(world) for _ in range(2)]
        for session in sessions:
            engine.change(session, lambda s: s.reset()).result(timeout=60)
        shown = [engine.step(session, {}) for session in sessions]
        assert all(s.result(timeout=60) for s in shown)
    finally:
        engine.close()


def test_data_and_videos_are_encoded_and_decoded(card, made, tmp_path, capsys):
    video = next(Path(made.store).rglob("*.mp4"))
    latents, again = tmp_path / "a.safetensors", tmp_path / "a.mp4"
    hwm(capsys, "tokenizer", "encode", str(video), "--tokenizer", made.tokenizer, "--out", str(latents))
    hwm(capsys, "decode", str(latents), "--tokenizer", made.tokenizer, "--out", str(again))
    hwm(capsys, "encode", made.store, "--tokenizer", made.tokenizer, "--out", str(tmp_path / "store"))
    assert again.exists()
    assert (tmp_path / "store" / "meta.json").exists()
