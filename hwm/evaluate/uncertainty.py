"""Means of figures, and how certain they are, where several values come from one recording.

Windows of one episode show one room and one ride: they resemble each other, and many of them are worth little more than
one. Standard errors are therefore clustered by episode. With x_i the values, m their mean over all N, and G episodes,

    SE^2 = G / (G - 1) * sum over episodes g of (sum over i in g of (x_i - m))^2 / N^2

which is the cluster-robust variance of a mean (Liang and Zeger, "Longitudinal data analysis using generalized linear
models", Biometrika 73(1), 1986) with the usual correction for few clusters. Where every episode gives one value it is
the familiar s^2 / N. Of a single episode nothing can be said, and the error is nan.

Shape suffixes: N values, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t distribution with 1, 2, ... degrees of freedom; beyond them 2 is taken."""


class Estimate(NamedTuple):
    """A mean, its standard error (nan where there are fewer than two episodes) and the number of episodes."""

    mean: float
    error: float
    episodes: int

    @property
    def margin(self) -> float:
        """Half the 95 % confidence interval, by the t distribution with one degree of freedom less than episodes."""
        freedom = self.episodes - 1
        return self.error * (T_QUANTILES[freedom - 1] if 0 < freedom <= len(T_QUANTILES) else 2.0)

    @property
    def sure(self) -> bool:
        """Whether the mean differs from 0 by more than `margin`; never, where there is no error to go by."""
        return math.isfinite(self.error) and abs(self.mean) > self.margin

    @property
    def known_error(self) -> float | None:
        """The standard error, or None where there is none, as JSON has it."""
        return self.error if math.isfinite(self.error) else None


def estimate(values_N: np.ndarray, episodes: Sequence[object] | np.ndarray) -> Estimate:
    """The mean of values, each of which is from the episode named beside it."""
    return estimates(np.asarray(values_N)[:, None], episodes)[0]


def estimates(values_NT: np.ndarray, episodes: Sequence[object] | np.ndarray) -> list[Estimate]:
    """The mean over N of each of T columns; none of a row is from another episode than the rest of it.

    Raises:
        ValueError: not as many episodes as values, or no values.
    """
    values_NT = np.asarray(values_NT, np.float64)
    if len(values_NT) != len(episodes) or not len(episodes):
        raise ValueError(f"{len(values_NT)} values of {len(episodes)} episodes")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(episodes))}
    groups, means_T = len(numbers), values_NT.mean(0)
    sums_GT = np.zeros((groups, values_NT.shape[1]))
    np.add.at(sums_GT, [numbers[name] for name in episodes], values_NT - means_T)
    if groups < 2:
        errors_T = np.full(len(means_T), np.nan)
    else:
        errors_T = np.sqrt(groups / (groups - 1) * (sums_GT**2).sum(0)) / len(values_NT)
    return [Estimate(float(m), float(e), groups) for m, e in zip(means_T, errors_T, strict=True)]
