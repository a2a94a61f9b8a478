"""Checkpoints and commands of earlier versions, whose fields have other names today."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm import cli
from hwm.commands import training
from hwm.commands.training import todays_options
from hwm.config import Config, config_from_json, to_json
from hwm.errors import HwmError
from hwm.models.flow_hwm import FlowHWM
from hwm.models.masked_hwm import MaskedHWM
from hwm.recipes import find_recipe
from hwm.tokenizers.cosmos import CosmosImage
from hwm.train.checkpoint import load_model, save_model
from tests.models.toys import toy_spec

OLD: dict[str, tuple[Config, dict[str, Any]]] = {
    "masked_hwm": (replace(MaskedHWM.tiny(), past=3, window_stride=2, learned_steps=1), {"hop": 2}),
    "flow_hwm": (
        replace(FlowHWM.tiny(), condition_dropout=0.3, logit_normal_mean=-1.0, self_consistency=0.5),
        {"drop": 0.3, "middle": -1.0, "spans": 0.5, "hop": 1},
    ),
    "cosmos_image": (CosmosImage.tiny(), {"judges": to_json(CosmosImage.tiny().loss_weights)}),
}
"""Configs, and what fields of them an earlier version wrote under other names."""


def as_it_was(config: Config, old: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in to_json(config).items() if k not in {config.todays_name(n) for n in old}} | old


@pytest.mark.parametrize("name", OLD)
def test_old_names_of_fields_are_read_with_a_note(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, old = OLD[name]
    assert all(config.todays_name(before) != before for before in old)
    assert config_from_json(as_it_was(config, old)) == config
    noted = capsys.readouterr().err
    assert all(f"{before} is now {config.todays_name(before)}" in noted for before in old)
    assert config_from_json(to_json(config)) == config
    assert not capsys.readouterr().err


def test_a_field_under_both_names_is_refused() -> None:
    config, old = OLD["masked_hwm"]
    with pytest.raises(HwmError, match="both 'hop' and 'window_stride'"):
        config_from_json(to_json(config) | old)


def test_a_checkpoint_of_old_names_is_loaded(tmp_path: Path) -> None:
    config, old = OLD["masked_hwm"]
    model = config.build(toy_spec())
    save_model(tmp_path, model)
    meta = json.loads((tmp_path / "hwm.json").read_text(encoding="utf-8"))
    (tmp_path / "hwm.json").write_text(json.dumps(meta | {"config": as_it_was(config, old)}), encoding="utf-8")
    again = load_model(tmp_path)
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_old_names_of_options_are_taken_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.hop", "2", "--model.past=4", "--model.hop=3", "--train.lr", "1", "--out", "--model.x"]
    todays = ["--model.window-stride", "2", "--model.past=4", "--model.window-stride=3", *words[4:]]
    assert todays_options(words, MaskedHWM.Config()) == todays
    assert "--model.hop is now --model.window-stride" in capsys.readouterr().err
    nested = todays_options(["--model.judges.squared", "4"], CosmosImage.Config())
    assert nested == ["--model.loss-weights.squared", "4"]


@pytest.mark.parametrize(
    ("words", "compiled"),
    [
        (["--train.compile"], True),
        (["--train.compile", "--out", "there"], True),
        (["--train.no-compile"], False),
        (["--train.compile", "True"], True),
        (["--train.compile", "auto"], "auto"),
        ([], "auto"),
    ],
)
def test_what_was_a_flag_still_is_one(words: list[str], compiled: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(training, "train_recipe", lambda recipe, out, init, **_: taken.append(recipe.train.compile))
    training.train(["masked_hwm_toy", *words])
    assert taken == [compiled]


@pytest.mark.parametrize("words", [["--train.batch-size", "auto"], ["--train.batch-size=auto"], ["--train.fit"]])
def test_a_batch_can_be_left_to_the_memory(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(training, "train_recipe", lambda recipe, out, init, **_: taken.append((recipe.train, str(out))))
    training.train(["masked_hwm_toy", "--train.accumulate", "2", *words, "--out", "there"])
    own = find_recipe("masked_hwm_toy")().train
    assert taken == [(replace(own, accumulate=2, fit=True), "there")]


def test_a_command_of_old_options_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "masked_hwm_toy", "--model.hop", "99", "--out", str(tmp_path)]) == 2
    noted = capsys.readouterr().err
    assert "--model.hop is now --model.window-stride" in noted
    assert "window_stride=99" in noted
