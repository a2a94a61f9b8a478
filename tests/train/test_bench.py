"""`hwm bench`: figures that hang together."""

from __future__ import annotations

import json

import pytest

from hwm import cli
from hwm.commands.training import count_parameters
from hwm.recipes import find_recipe


def test_figures_hang_together(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--train.batch-size", "2", "--train.threads", "1", "--steps", "2"]
    assert cli.main(["bench", "masked_hwm_mini", "--json", *small]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == count_parameters("masked_hwm_mini")
    assert found["flops"] > 6 * 4e6 * 64  # every weight of the blocks sees every cell of a step, forth and back
    assert found["utilisation"] == pytest.approx(found["flops"] / found["seconds"] / found["peak"])
    assert 0 < found["utilisation"] < 1.5
    steps = find_recipe("masked_hwm_mini")().data.steps
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(2 * steps * 64)
    assert found["predict_seconds"] > 0
    assert cli.main(["bench", "tiny_tokenizer", "--train.activation-checkpoint", "full", *small]) == 0
    out = capsys.readouterr().out
    assert "tiny_tokenizer: 3,632,454 parameters, cpu, float32, 2 clips" in out
    assert "predicting" not in out


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for args, why in (
        (["bench"], "say which recipe"),
        (["bench", "masked_hwm_mini", "--steps", "0"], "steps must be at least 1"),
    ):
        assert cli.main(args) == 2
        assert why in capsys.readouterr().err
