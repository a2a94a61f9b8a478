"""Standard errors that know which values come from one episode."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwm.evaluate.uncertainty import T_QUANTILES, Estimate, estimate, estimates


def test_one_value_an_episode_gives_the_familiar_error() -> None:
    values = np.array([1.0, 2.0, 6.0, 11.0])
    found = estimate(values, list("abcd"))
    assert found == (5.0, pytest.approx(values.std(ddof=1) / 2), 4)  # s / root of N


def test_repeating_the_clips_of_an_episode_makes_nothing_more_certain() -> None:
    values = np.array([1.0, 2.0, 6.0])
    once, often = estimate(values, list("abc")), estimate(np.repeat(values, 20), list(np.repeat(list("abc"), 20)))
    assert often == pytest.approx(once)


def test_unequal_episodes_by_hand() -> None:
    # mean 3; the residuals of a sum to -1 - 2 = -3, those of b to 3
    assert estimate(np.array([2.0, 1.0, 6.0]), ["a", "a", "b"]) == (3.0, pytest.approx(math.sqrt(2 * 18) / 3), 2)


def test_the_error_is_the_spread_of_means_of_few_rooms() -> None:
    rng = np.random.default_rng(0)
    rooms = rng.normal(size=(4000, 8))  # many surveys of 8 rooms, of 12 clips each
    clips = rooms[:, :, None] + 0.3 * rng.normal(size=(4000, 8, 12))
    names = np.repeat(np.arange(8), 12)
    errors = np.array([estimate(survey.ravel(), names).error for survey in clips[:400]])
    assert np.sqrt((errors**2).mean()) == pytest.approx(clips.mean((1, 2)).std(), rel=0.06)


def test_columns_are_estimated_apart() -> None:
    values = np.array([[1.0, 10.0], [3.0, 10.0]])
    first, second = estimates(values, ["a", "b"])
    assert (first.mean, first.error, second.mean, second.error) == (2.0, pytest.approx(1.0), 10.0, 0.0)


def test_one_episode_has_no_error_and_proves_nothing() -> None:
    found = estimate(np.array([5.0, 5.1, 5.2]), ["a"] * 3)
    assert math.isnan(found.error)
    assert found.known_error is None
    assert not found.sure
    assert found.episodes == 1


def test_few_episodes_have_to_differ_more() -> None:
    assert not Estimate(2.5, 1.0, 5).sure  # t with 4 degrees of freedom: 2.776
    assert Estimate(-2.8, 1.0, 5).sure
    assert Estimate(2.5, 1.0, 50).sure
    assert not Estimate(1.9, 1.0, 50).sure


def test_quantiles() -> None:
    for freedom, quantile in enumerate(T_QUANTILES, 1):
        x = np.linspace(0, quantile, 20_001)
        scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
        density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        assert np.trapezoid(density, x) == pytest.approx(0.475, abs=1e-4), freedom


def test_values_without_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values of 2 episodes"):
        estimate(np.zeros(3), ["a", "b"])
