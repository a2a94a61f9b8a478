"""Drawing the next token: which values are drawn from, how often, and what cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    "fields", [{"temperature": -1.0}, {"temperature": math.inf}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}]
)
def test_samplers_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(HwmError, match="must be at least 0, top_p"):
        NextTokenSampler(**fields)


@given(st.integers(1, 12), st.integers(0, 13), st.floats(0.01, 1), st.integers(0, 1000))
def test_as_few_values_are_kept_as_hold_the_share(values: int, top_k: int, top_p: float, seed: int) -> None:
    logits = torch.randn(2, 3, values, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cut = keep_likely(logits, 1.0, top_k)
    assert (cut.isfinite().sum(-1) == (min(top_k, values) or values)).all()
    found, p = keep_likely(logits, top_p, top_k), cut.softmax(-1)
    kept = found.isfinite()
    assert torch.equal(found[kept], logits[kept])
    assert (p.masked_fill(~kept, 1).amin(-1) >= p.masked_fill(kept, 0).amax(-1)).all(), "the likeliest"
    held = p.masked_fill(~kept, 0).sum(-1)
    assert (held >= top_p - 1e-9).all()
    assert (held - p.masked_fill(~kept, 1).amin(-1) < top_p + 1e-9).all(), "and one fewer would not do"


def test_values_are_drawn_for_each_place_by_itself() -> None:
    certain = torch.full((2, 3, 5), -1e9)
    wanted = torch.tensor([[0, 4, 2], [1, 1, 3]])
    certain.scatter_(-1, wanted[..., None], 0.0)
    for sampler in (GREEDY, NextTokenSampler(), NextTokenSampler(top_k=1, top_p=1.0)):
        assert torch.equal(draw(certain, sampler), wanted)


def test_by_default_the_tail_beyond_four_fifths_is_never_drawn() -> None:
    logits = torch.tensor([0.5, 0.35, 0.1, 0.05]).log().expand(5000, 4)
    share = draw(logits, NextTokenSampler(), torch.Generator().manual_seed(0)).bincount(minlength=4) / 5000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.35, 0, 0]) / 0.85, atol=0.02, rtol=0)
