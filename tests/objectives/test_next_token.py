"""Drawing the next token: which values are drawn from, how often, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hwm.errors import HwmError
from hwm.objectives.next_token import NextTokenSampler, draw, keep_likely

GREEDY = NextTokenSampler(temperature=0.0)


def test_top_k_and_top_p_keep_the_likely() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.3, 0.4]]).log()

    def kept(top_p: float = 1.0, top_k: int = 0) -> list[list[int]]:
        return [row.isfinite().nonzero().flatten().tolist() for row in keep_likely(logits, top_p, top_k)]

    assert kept() == [[0, 1, 2, 3, 4]] * 2
    assert kept(top_k=2) == [[0, 1], [3, 4]]
    assert kept(top_p=0.5) == [[0, 1], [3, 4]]
    assert kept(top_p=0.8) == [[0, 1, 2], [2, 3, 4]]
    assert kept(top_p=1e-9) == [[0], [4]]
    assert kept(top_p=0.9, top_k=2) == [[0, 1], [3, 4]]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(40_000, -1)
    for sampler, expected in (
        (NextTokenSampler(1.0, 1.0), logits[0].softmax(-1)),
        (NextTokenSampler(2.0, 1.0), (logits[0] / 2).softmax(-1)),
        (NextTokenSampler(1.0, 1.0, 2), torch.cat([logits[0, :2].softmax(-1), torch.zeros(2)])),
    ):
        drawn = draw(logits, sampler, torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn.bincount(minlength=4) / 40_000, expected, rtol=0, atol=0.01)
    assert (draw(logits, GREEDY) == 0).all()


@pytest.mark.parametrize("fields", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_samplers_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(HwmError, match="must be at least 0, top_p"):
        NextTokenSampler(**fields)
