"""`hwm bench`: figures that hang together."""

from __future__ import annotations

import json

import pytest
import torch

from hwm import cli
from hwm.commands.training import count_parameters
from hwm.nn.attention import attend
from hwm.recipes import find_recipe
from hwm.train.flops import count_flops


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


@pytest.mark.parametrize("keys", [5, 20, 200])  # written out in two ways, and by a kernel
def test_attention_is_counted_whichever_way_it_is_computed(keys: int) -> None:
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (6, keys, keys))
    product = 2 * (2 * 3 * 6 * keys * 8)
    with torch.no_grad(), count_flops() as counter:
        attend(q, k, v)
    assert counter.get_total_flops() == 2 * product
    with count_flops() as counter:
        attend(q, k, v).sum().backward()
    assert counter.get_total_flops() in (6 * product, 7 * product)  # the kernel makes the scores once more


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for args, why in (
        (["bench"], "say which recipe"),
        (["bench", "masked_hwm_mini", "--steps", "0"], "steps must be at least 1"),
    ):
        assert cli.main(args) == 2
        assert why in capsys.readouterr().err
