"""Rankings and correlations, by closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hwm.interact.comparison import Comparison, ranks


def compare(
    model: np.ndarray, simulator: np.ndarray, note: str = "", episodes: tuple[str, ...] | None = None
) -> Comparison:
    policies = tuple("abcdef"[: len(model)])
    starts = tuple(f"start:{i}" for i in range(model.shape[1]))
    return Comparison("toy", "turn", "pixels", 20, 2.0, 0, policies, starts, episodes or starts, model, simulator, note)


def shown(comparison: Comparison) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(comparison.table())
    return capture.get()


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_ranks(values: list[int]) -> None:
    x = np.array(values)
    expected = [(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x]
    assert ranks(x).tolist() == expected


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_a_model_that_is_the_simulator_but_for_scale_agrees(seed: int, scale: float, shift: float) -> None:
    true = np.random.default_rng(seed).normal(size=(4, 5))
    c = compare(true * scale + shift, true)
    assert c.correlation() == pytest.approx(1)
    assert c.correlation("spearman", means=True) == pytest.approx(1)
    assert c.rankings_agree is True
    assert c.rank_violation() == 0
    assert all(p["agrees"] for p in c.pairs())
    backwards = compare(-true * scale + shift, true)
    assert backwards.correlation("spearman") == pytest.approx(-1)
    assert backwards.correlation(means=True) == pytest.approx(-1)
    assert backwards.rankings_agree is False
    assert backwards.ranking("model") == backwards.ranking("simulator")[::-1]
    means = true.mean(1)
    worst = np.abs(means[:, None] - means).max(1).mean()
    assert backwards.rank_violation() == pytest.approx(worst)
    assert not any(p["agrees"] for p in backwards.pairs())


def test_two_that_are_swapped() -> None:
    true = np.tile([[3.0, 3.2], [1.0, 1.2], [0.5, 1.5]], 2)
    model = np.tile([[3.0, 3.2], [0.0, 0.0], [2.0, 2.2]], 2)
    c = compare(model, true)
    assert (c.ranking("model"), c.ranking("simulator")) == (["a", "c", "b"], ["a", "b", "c"])
    assert c.rank_violation() == pytest.approx((0 + 0.1 + 0.1) / 3)
    pairs = {tuple(p["policies"]): p for p in c.pairs()}
    assert [pairs[k]["agrees"] for k in (("a", "b"), ("a", "c"), ("b", "c"))] == [True, True, False]
    assert [pairs[k]["clear"] for k in (("a", "b"), ("a", "c"), ("b", "c"))] == [True, True, False]
    assert pairs["b", "c"]["simulator"] == pytest.approx(0.1)
    assert pairs["b", "c"]["simulator_stderr"] == pytest.approx(np.std([0.5, -0.3] * 2, ddof=1) / 2)
    assert "does NOT rank" in c.verdict()
    assert "wrong about b and c" in c.verdict()
    assert "2 differ clearly" in c.verdict()
    assert "2 of these the right way" in c.verdict()
    assert shown(c).index("a ") < shown(c).index("b ")


def test_starts_that_only_the_model_knows_are_left_out() -> None:
    rng = np.random.default_rng(0)
    model, true = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    holes = true.copy()
    holes[:, [1, 4]] = np.nan
    whole, part = compare(model[:, [0, 2, 3, 5]], true[:, [0, 2, 3, 5]]), compare(model, holes)
    for of in ("pearson", "spearman"):
        assert part.correlation(of) == whole.correlation(of)
    assert part.mean("model") == whole.mean("model")
    assert part.pairs() == whole.pairs()
    assert part.json()["starts_in_simulator"] == 4
    assert part.json()["policies"]["a"]["simulator"][1] is None


def test_without_a_simulator_nothing_is_claimed() -> None:
    model = np.array([[1.0, 2.0, 4.0], [0.0, 1.0, 1.0]])
    c = compare(model, np.full((2, 3), np.nan), "it cannot run here")
    plain = json.loads(json.dumps(c.json(), allow_nan=False))
    assert plain["ranking_model"] == ["a", "b"]
    assert plain["policies"]["a"]["model_mean"] == pytest.approx(7 / 3, abs=1e-4)
    assert plain["policies"]["a"]["simulator_mean"] is None
    for key in ("ranking_simulator", "rankings_agree", "pearson", "spearman_of_means", "rank_violation"):
        assert plain[key] is None, key
    assert plain["pairs"] == []
    assert "it cannot run here" in plain["verdict"]
    assert "2.333" in shown(c)


def test_starts_of_one_room_count_as_one() -> None:
    true = np.array([[2.0, 2.5, 3.0], [1.0, 1.4, 1.9]])
    apart = compare(true, true)
    rooms = ("x", "y", "z")
    again = compare(np.repeat(true, 9, 1), np.repeat(true, 9, 1), episodes=tuple(np.repeat(rooms, 9)))
    assert [pair["clear"] for pair in apart.pairs()] == [True]
    for one, other in zip(apart.pairs(), again.pairs(), strict=True):
        assert other == one
    single = compare(true, true, episodes=("x",) * 3)
    assert not single.pairs()[0]["clear"]
    assert "± n/a" in shown(single)


def test_one_start_has_no_standard_error() -> None:
    c = compare(np.array([[1.0], [2.0], [0.0]]), np.array([[1.0], [3.0], [0.5]]))
    plain = json.loads(json.dumps(c.json(), allow_nan=False))
    assert plain["rankings_agree"] is True
    assert plain["policies"]["b"]["simulator_stderr"] is None
    assert not any(p["clear"] for p in plain["pairs"])
    assert plain["pearson"] == pytest.approx(np.corrcoef([1, 2, 0], [1, 3, 0.5])[0, 1], abs=1e-4)
    equal = compare(np.ones((3, 2)), np.arange(6.0).reshape(3, 2))
    assert equal.correlation() is None
    assert compare(np.eye(2), np.eye(2)).correlation(means=True) is None
    shown(equal)
