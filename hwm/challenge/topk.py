"""Top-k distributions over token ids, and the cross-entropy that may be computed from nothing else.

A submission to the compression track tells the 500 likeliest ids of every cell. Here the probability that is left over
is spread evenly over all other ids, so that a score depends on what was submitted and on nothing else; how the
challenge's own server treats an id outside the 500 is not public.

Shape suffixes: ... any leading axes, N cells, V vocabulary, L digits of an id, K the ids kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.objectives.maskgit import LOGITS_AT_ONCE
from hwm.types import split_digits

TOP = 500
TAIL_FLOOR = 1e-6
"""Least probability of all ids outside the kept ones together: what is left over of a sum of 500 float32 probabilities
cannot be told from zero below that."""


class Top(NamedTuple):
    """The likeliest ids of each cell, likeliest first.

    Attributes:
        ids: (..., K) int64.
        logp: (..., K) float32, natural logarithms of their probabilities among the whole vocabulary.
    """

    ids: Tensor
    logp: Tensor


def top(logits_NV: Tensor, levels: tuple[int, ...] = (), k: int = TOP) -> Top:
    """The `k` likeliest ids of each cell.

    With digits that are independent of one another, the ids' probabilities are products. Those of all 64,000 are never
    made: of two sorted lists, the sum of number i and number j can be among the k largest only if (i + 1) (j + 1) <= k,
    which leaves some 2,700 candidates a cell.

    Args:
        logits_NV: (N, V), or the logits of an id's digits side by side, (N, sum(levels)).
        levels: the digits' sizes, least significant first.

    Raises:
        HwmError: the vocabulary has fewer ids than that.
    """
    vocab = math.prod(levels) if levels else logits_NV.shape[-1]
    if not 1 <= k <= vocab:
        raise HwmError(f"the top {k} of a vocabulary of {vocab:,} ids: give a number between 1 and that")
    if not levels:
        logp, ids = logits_NV.float().log_softmax(-1).topk(k, -1)
        return Top(ids, logp)
    bases = accumulate(levels[:-1], lambda a, b: a * b, initial=1)
    found: Top | None = None
    for part_NL, base in zip(logits_NV.float().split(levels, -1), bases, strict=True):
        logp_NL, digit_NL = part_NL.log_softmax(-1).sort(-1, descending=True)
        one = Top(digit_NL * base, logp_NL)
        found = one if found is None else _product(found, one, k)
    assert found is not None
    return Top(found.ids[:, :k], found.logp[:, :k])


def _product(a_NI: Top, b_NJ: Top, k: int) -> Top:
    """The likeliest pairs of two independent parts of an id, each sorted."""
    i, j = _candidates(a_NI.ids.shape[-1], b_NJ.ids.shape[-1], k, a_NI.ids.device)
    logp_NC = a_NI.logp[:, i] + b_NJ.logp[:, j]
    logp_NK, best_NK = logp_NC.topk(min(k, logp_NC.shape[-1]), -1)
    return Top(a_NI.ids.gather(-1, i[best_NK]) + b_NJ.ids.gather(-1, j[best_NK]), logp_NK)


@lru_cache(maxsize=64)
def _candidates(size_i: int, size_j: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        i, j = torch.meshgrid(torch.arange(size_i), torch.arange(size_j), indexing="ij")
        wanted = (i + 1) * (j + 1) <= k
        return i[wanted].to(device), j[wanted].to(device)


def log_likelihood(logits_NV: Tensor, ids_N: Tensor, levels: tuple[int, ...] = ()) -> Tensor:
    """Log-probability (N,) of one id a cell under the full distribution."""
    parts = logits_NV.float().split(levels, -1) if levels else (logits_NV.float(),)
    digits = split_digits(ids_N, levels).unbind(-1) if levels else (ids_N,)
    each = [p.log_softmax(-1).gather(-1, d[:, None])[:, 0] for p, d in zip(parts, digits, strict=True)]
    return torch.stack(each).sum(0)


def top_cross_entropy(found: Top, truth: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Top-k cross-entropy of each cell in nats (...), and whether the truth is among the kept ids (...).

    -log p(truth) where it is kept; else -log of an even share of what is left over,
    max(1 - sum p, `TAIL_FLOOR`) / (vocab - K). Computed in float64.

    Args:
        truth: (...) ids.
        vocab: how many ids there are.
    """
    kept = found.ids.shape[-1]
    hit_K = found.ids == truth[..., None]
    inside = hit_K.any(-1)
    logp_K = found.logp.double()
    tail = (1 - logp_K.exp().sum(-1)).clamp_min(TAIL_FLOOR)
    outside = tail.log() - math.log(max(1, vocab - kept))
    own = torch.where(hit_K, logp_K, -math.inf).amax(-1)
    return -torch.where(inside, own, outside), inside


def in_rows(logits_NV: Tensor, vocab: int) -> Iterator[tuple[slice, Tensor]]:
    """Logits a bounded number of rows at a time, with where they lie."""
    rows = max(1, LOGITS_AT_ONCE // vocab)
    for start in range(0, logits_NV.shape[0], rows):
        yield slice(start, start + rows), logits_NV[start : start + rows]
