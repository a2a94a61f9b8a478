"""Means and standard deviations of several parts of the data together, and whether they suit the actions of a store.

Shape suffixes: N rows, K actions a step, A action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwm.data.arrays import Array
from hwm.data.store import Store
from hwm.nn.actions import CLAMP

SAMPLE = 4096
"""Steps that are looked at, spread evenly."""
MOST_CLAMPED = 1e-3
"""Share of the actions above which there is something to say: of normal ones, 6 in ten million are clamped."""
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def pooled(parts: Sequence[tuple[int, Sequence[float], Sequence[float]]]) -> Statistics:
    """(mean, std) over all parts, of the (count, mean, std) of each part; a value a dimension.

    The variance is the mean one within parts plus that of their means (Chan, Golub and LeVeque 1983). What has the same
    constant value in all parts has a standard deviation of exactly 0.
    """
    counts, means, stds = (np.array(x, np.float64) for x in zip(*parts, strict=True))
    share, offset = counts / counts.sum(), means - means[0]
    mean = share @ offset
    std = np.sqrt(share @ (stds**2 + (offset - mean) ** 2))
    return tuple((means[0] + mean).tolist()), tuple(std.tolist())


def clamped(actions_NKA: Array, statistics: Statistics) -> np.ndarray:
    """Share of each dimension's actions that models clamp when they normalise them by these statistics, (A,)."""
    rows = np.unique(np.linspace(0, len(actions_NKA) - 1, SAMPLE).round().astype(int))
    mean, std = (np.array(x) for x in statistics)
    distance_NKA = (np.asarray(actions_NKA[rows], np.float64) - mean) / np.where(std > 0, std, 1.0)
    share_A: np.ndarray = (np.abs(distance_NKA) > CLAMP).mean((0, 1))
    return share_A


def warning(store: Store, statistics: Statistics) -> str | None:
    """What there is to say, if anything, of normalising a store's actions by these statistics."""
    share_A = clamped(store.actions, statistics)
    if share_A.mean() <= MOST_CLAMPED:
        return None
    worst = int(share_A.argmax())
    return (
        f"warning: {share_A.mean():.2%} of the actions of {store.path} lie more than {CLAMP:g} standard deviations "
        "from the mean they are normalised by, and models clamp them (most of all "
        f"{store.header.action_names[worst]!r}, {share_A[worst]:.0%}); if its units are not those of the other data, "
        "call its robot by another name with --embodiment"
    )
