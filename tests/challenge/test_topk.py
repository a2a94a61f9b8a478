"""Top-k of whole and factorised vocabularies, and the cross-entropy that is computed of nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hwm.challenge.topk import TAIL_FLOOR, Top, in_rows, log_likelihood, top, top_cross_entropy
from hwm.data.onex.specs import COSMOS_LEVELS
from hwm.errors import HwmError
from hwm.objectives.maskgit import LOGITS_AT_ONCE
from hwm.types import split_digits


def all_ids(logits: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Log-probability of every id of a factorised vocabulary, one by one."""
    digits = split_digits(torch.arange(math.prod(levels)), levels)
    parts = [p.log_softmax(-1) for p in logits.split(levels, -1)]
    return torch.stack([p[:, digits[:, i]] for i, p in enumerate(parts)]).sum(0)


def draw(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 10**6), st.data())
def test_the_likeliest_products_are_those_of_all_products(levels: list[int], seed: int, data: st.DataObject) -> None:
    sizes = tuple(levels)
    k = data.draw(st.integers(1, math.prod(sizes)))
    logits = draw(seed, 3, sum(sizes))
    found, every = top(logits, sizes, k), all_ids(logits, sizes)
    best = every.topk(k, -1).values
    torch.testing.assert_close(found.logp, best, atol=1e-5, rtol=0)
    # the ids are those that these probabilities belong to, each once
    torch.testing.assert_close(every.gather(-1, found.ids), found.logp, atol=1e-5, rtol=0)
    assert all(len(set(row.tolist())) == k for row in found.ids)


def test_of_the_published_vocabulary_500_are_found_among_few_candidates() -> None:
    logits = draw(0, 4, sum(COSMOS_LEVELS), scale=1.0)
    found, every = top(logits, COSMOS_LEVELS), all_ids(logits, COSMOS_LEVELS)
    assert found.ids.shape == (4, 500)
    torch.testing.assert_close(found.logp, every.topk(500, -1).values, atol=1e-5, rtol=0)
    assert (found.logp[:, 1:] <= found.logp[:, :-1]).all()


def test_of_a_whole_vocabulary_they_are_its_largest() -> None:
    logits = draw(1, 5, 40)
    found = top(logits, k=7)
    assert torch.equal(found.ids, logits.argsort(-1, descending=True)[:, :7])
    torch.testing.assert_close(found.logp, logits.log_softmax(-1).gather(-1, found.ids))


@pytest.mark.parametrize(("levels", "k"), [((), 41), ((), 0), ((4, 5), 21)])
def test_more_ids_than_there_are_is_an_error(levels: tuple[int, ...], k: int) -> None:
    with pytest.raises(HwmError, match=rf"the top {k} of a vocabulary of"):
        top(torch.zeros(1, sum(levels) or 40), levels, k)


@pytest.mark.parametrize("levels", [(), (4, 5)])
def test_the_truth_has_the_likelihood_of_its_id(levels: tuple[int, ...]) -> None:
    vocab = math.prod(levels) if levels else 20
    logits, ids = draw(2, 6, sum(levels) if levels else vocab), torch.tensor([0, 3, 7, 11, 18, 19])
    every = all_ids(logits, levels) if levels else logits.log_softmax(-1)
    torch.testing.assert_close(log_likelihood(logits, ids, levels), every.gather(-1, ids[:, None])[:, 0])


@given(st.integers(1, 29), st.integers(0, 10**6))
def test_the_score_is_that_of_a_distribution_with_an_even_tail(k: int, seed: int) -> None:
    vocab, logits = 30, draw(seed, 4, 30, scale=1.0)
    found = top(logits, k=k)
    p = found.logp.double().exp()
    even = (1 - p.sum(-1, keepdim=True)) / (vocab - k)
    flat = even.expand(4, vocab).scatter(-1, found.ids, p)
    torch.testing.assert_close(flat.sum(-1), torch.ones(4, dtype=torch.float64))
    for truth in range(vocab):
        nll, inside = top_cross_entropy(found, torch.full((4,), truth), vocab)
        torch.testing.assert_close(nll, -flat[:, truth].log())
        assert torch.equal(inside, (found.ids == truth).any(-1))


def test_with_every_id_kept_it_is_the_cross_entropy() -> None:
    logits, truth = draw(3, 8, 12), torch.arange(8)
    nll, inside = top_cross_entropy(top(logits, k=12), truth, 12)
    assert inside.all()
    torch.testing.assert_close(nll.float(), torch.nn.functional.cross_entropy(logits, truth, reduction="none"))


def test_of_a_uniform_guess_it_is_the_logarithm_of_the_vocabulary() -> None:
    found = top(torch.zeros(5, 64_000))
    nll, _ = top_cross_entropy(found, torch.tensor([0, 1, 500, 40_000, 63_999]), 64_000)
    assert nll.tolist() == pytest.approx([math.log(64_000)] * 5, abs=1e-4)
    assert math.log(64_000) == pytest.approx(11.0666, abs=1e-4)


def test_a_sure_mistake_costs_what_the_floor_says_and_no_more() -> None:
    sure = Top(torch.tensor([[4, 2]]), torch.tensor([[0.0, -40.0]]))
    nll, inside = top_cross_entropy(sure, torch.tensor([7]), 10)
    assert not inside.any()
    assert nll.item() == pytest.approx(-math.log(TAIL_FLOOR / 8))


def test_rows_are_cut_up_without_loss_and_within_bounds() -> None:
    rows = LOGITS_AT_ONCE // 64_000
    logits = torch.arange(3 * rows - 7)[:, None].expand(-1, 2)
    parts = list(in_rows(logits, 64_000))
    assert torch.equal(torch.cat([part for _, part in parts]), logits)
    assert [len(part) for _, part in parts] == [rows, rows, rows - 7]
    assert all(torch.equal(logits[where], part) for where, part in parts)
