"""Device and number format of every verb that computes: taken where they are asked for, and told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from hwm import cli
from hwm.commands import demo
from hwm.interact.session import Session, World
from hwm.interact.starts import start_of_file
from hwm.models.genie import Genie
from hwm.recipes import RECIPES, Recipe
from hwm.train.checkpoint import save_model
from tests.commands.test_next_token import published
from tests.commands.test_tokens import film
from tests.evaluate import pan_world
from tests.parity import recorded_path
from tests.pretend.device import pretending
from tests.pretend.tensors import Kind

FEW = "--clips 2 --horizon 2"
VERBS = {
    "evaluate": f"{{model}} --data {{store}} {FEW} --json",
    "generate": f"{{model}} --data {{store}} {FEW} --out {{out}}",
    "evaluate cosmos-ar": "{cosmos} --data {store} --clips 2 --json --out {out}",
    "evaluate cosmos-ar only": "{cosmos} --data {store} --clips 2 --json --only-eval",
    "encode": "{store} --tokenizer {tokenizer} --out {out}",
    "tokenizer encode": "{film} --tokenizer {tokenizer} --out {out}.safetensors",
    "decode": "{latents} --tokenizer {tokenizer} --out {out}.mp4",
    "tokenizer report": "{film} --tokenizer {tokenizer} --frames 3 --json",
    "presets": "--model {model} --store {store} --clips 2 --seconds 0.1 --json",
    "policies": "--model {model} --store {store} --policies random --episodes 1 --steps 2 --no-simulator --json",
    "challenge compression": "--model {model} --data {store} --clips 1 --top 5 --json --out {out}",
    "challenge sampling": "--model {model} --data {store} --clips 1 --known 12 --target 15 --json --out {out}",
    "view": "{plain} --out {out}.png",
    "export": "lerobot {plain} --out {out}",
}
"""Verb -> its words for a small piece of work; what stands after a second word of lower case tells apart two of one."""

ALSO = {"play": "--no-open", "demo": "--out {out}", "convert check": "{out}.safetensors"}
"""Further verbs that compute, with words that lead to where the device is chosen."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    tokenizer = pan_world.random_tokenizer(root / "tok")
    store = pan_world.record(root / "store", tokenizer, episodes=2, steps=12)
    plain = pan_world.record(root / "plain", tokenizer, episodes=1, steps=4, video=False)
    save_model(root / "genie", replace(Genie.tiny(), past=3).build(store.data_spec()))
    vocab = store.data_spec().latent.vocab
    assert vocab is not None
    published(root / "cosmos", vocab)
    film(root / "film.mp4", 9)
    encode = ["tokenizer", "encode", str(root / "film.mp4"), "--tokenizer", str(root / "tok")]
    assert cli.main([*encode, "--out", str(root / "l.safetensors")]) == 0
    return SimpleNamespace(
        model=root / "genie", store=store.path, plain=plain.path, tokenizer=root / "tok", cosmos=root / "cosmos",
        film=root / "film.mp4", latents=root / "l.safetensors",
    )  # fmt: skip


@pytest.fixture
def formats() -> Iterator[set[torch.dtype]]:
    """The types of what linear layers and convolutions give meanwhile."""
    found: set[torch.dtype] = set()

    def note(module: nn.Module, given: Any, made: Any) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            found.add(made.dtype)

    handle = register_module_forward_hook(note)
    yield found
    handle.remove()


def words_of(verb: str, made: SimpleNamespace, out: Path) -> list[str]:
    named = (VERBS | ALSO)[verb].format(**vars(made), out=out).split()
    return [*verb.removesuffix(" only").removesuffix(" store").split(), *named]


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_asked_for_is_what_is_computed_in(made, verb, formats, tmp_path: Path, capsys) -> None:
    assert cli.main([*words_of(verb, made, tmp_path / "out"), "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert torch.bfloat16 in formats
    printed = capsys.readouterr().out
    if "--json" in VERBS[verb]:
        found = json.loads(printed)
        found = next(iter(found.values())) if verb == "presets" else found
        assert found["dtype"] == "bfloat16"
        assert "cpu" in found["device"].lower()


@pytest.mark.parametrize("verb", [*VERBS, *ALSO])
def test_a_device_that_is_not_there_is_told_before_any_work(made, verb, tmp_path: Path, capsys) -> None:
    nowhere = SimpleNamespace(**{k: tmp_path / "none" / v.name for k, v in vars(made).items()})
    assert cli.main([*words_of(verb, nowhere, tmp_path / "out"), "--device", "abacus"]) == 2
    assert "no device called 'abacus'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("verb", ["presets", "policies", "challenge compression", "challenge sampling",
                                  "tokenizer report", "view", "export", "check"])  # fmt: skip
def test_a_card_is_found_and_refuses_nothing(made, verb, kind: Kind, tmp_path: Path, capsys) -> None:
    """Beside the verbs of `tests/pretend/test_commands.py`."""
    check = ["convert", "check", *(str(recorded_path(name)) for name in ("genie-plain", "magvit2-two-levels"))]
    words = check if verb == "check" else words_of(verb, made, tmp_path / "out")
    with pretending(kind) as card:
        status = cli.main(words)
    assert status == 0, capsys.readouterr().err
    assert card.kernels["aten.convolution.default"] or card.kernels["aten.addmm.default"]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_pictures_of_ones_own_begin_a_session_on_a_card(made, kind: Kind) -> None:
    with pretending(kind):
        world = World.open(made.model, store=made.store)
        more = {"action": world.model.spec.actions["pan"], "embodiment": "pan"}
        session = Session(world)
        session.reset(start_of_file(made.film, world.tokenizer, world.model.config.past, **more))
        assert session.step({}).shape[-1] == 3
        assert session.replay().to_json()


@pytest.mark.parametrize("verb", ["encode", "decode", "tokenizer encode", "tokenizer report", "view", "export"])
def test_what_makes_data_is_in_float32_unless_another_format_is_asked_for(made, verb, formats, tmp_path, monkeypatch):
    monkeypatch.setattr("hwm.devices.faster_format", lambda device: "bfloat16")
    assert cli.main(words_of(verb, made, tmp_path / "out")) == 0
    assert formats == {torch.float32}


def test_what_shows_a_model_takes_what_the_machine_is_fast_at(made, formats, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("hwm.devices.faster_format", lambda device: "bfloat16")
    assert cli.main(words_of("evaluate", made, tmp_path / "out")) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"
    assert cli.main([*words_of("evaluate", made, tmp_path / "out"), "--dtype", "float32"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"


def test_large_models_compute_in_the_format_of_their_weights(made, formats, tmp_path: Path, monkeypatch, capsys):
    narrow = tmp_path / "narrow"
    shutil.copytree(made.cosmos, narrow)
    weights = torch.load(narrow / "model.pt", weights_only=True)["model"]
    torch.save({"model": {name: weight.bfloat16() for name, weight in weights.items()}}, narrow / "model.pt")
    entered: list[bool] = []
    plain = torch.autocast

    def autocast(*args: Any, enabled: bool = True, **more: Any) -> torch.autocast:
        entered.append(enabled)
        return plain(*args, enabled=enabled, **more)

    monkeypatch.setattr(torch, "autocast", autocast)
    words = ["evaluate", "cosmos-ar", str(narrow), "--data", str(made.store), "--clips", "2", "--json", "--only-eval"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"
    assert formats == {torch.bfloat16}
    assert set(entered) == {False}
    assert cli.main([*words, "--dtype", "float16"]) == 2
    assert "these weights are in bfloat16, which is what they compute in" in capsys.readouterr().err


def test_threads_are_taken(made, tmp_path: Path, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert cli.main([*words_of("evaluate", made, tmp_path), "--threads", "1"]) == 0
    assert asked == [1]


def test_the_demo_hands_on_where_and_how(made, tmp_path: Path, monkeypatch, capsys) -> None:
    toy: list[Recipe] = []

    def train(recipe: Recipe, run: Path) -> None:
        toy.append(recipe)

    recipe = RECIPES.find("masked_hwm_toy")
    monkeypatch.setattr("hwm.commands.training.train_recipe", train)
    monkeypatch.setattr("hwm.commands.samples.curve", lambda run: [(1, 2.0, None), (2, 1.0, None)])
    monkeypatch.setattr(demo, "COMMANDS", {"turn": {"TURN": 1.0}})
    words = ["--model", str(made.model), "--store", str(made.store), "--clips", "2", "--out", str(tmp_path / "demo")]
    assert cli.main(["demo", *words, "--device", "cpu", "--dtype", "bfloat16", "--threads", "1"]) == 0
    assert toy[0].train == replace(recipe().train, device="cpu", dtype="bfloat16", threads=1)
    report = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "CPU, bfloat16" in report
    assert "trained during this demo (cpu, bfloat16)" in report
    assert json.loads((tmp_path / "demo" / "figures.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
