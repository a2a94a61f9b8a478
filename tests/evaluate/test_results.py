"""Means and standard errors of results, against their formulas, and what is said where there are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from hwm.evaluate.results import ONE_EPISODE
from hwm.evaluate.uncertainty import Estimate
from hwm.evaluate.words import cautions, findings, verdict
from tests.evaluate.toy_results import results


def test_means_and_errors_of_clips_of_different_episodes() -> None:
    r = results(clips=6, steps=3)
    x = r.figures["autoregressive"]["psnr"]
    assert r.mean("psnr") == pytest.approx(x.mean(0))
    assert [each.error for each in r.by_step("psnr")] == pytest.approx(x.std(0, ddof=1) / 6**0.5)
    assert r.overall("psnr") == pytest.approx((x.mean(), x.mean(1).std(ddof=1) / 6**0.5, 6))
    assert r.json()["psnr_stderr"] == pytest.approx(x.std(0, ddof=1) / 6**0.5, abs=1e-5)


def test_errors_are_clustered_by_episode() -> None:
    r = results(clips=6, steps=3, episodes=np.array(list("aaabbc")))
    x = r.figures["autoregressive"]["psnr"]
    rest = x - x.mean(0)
    sums = np.stack([rest[:3].sum(0), rest[3:5].sum(0), rest[5]])
    expected = np.sqrt(3 / 2 * (sums**2).sum(0)) / 6
    assert [each.error for each in r.by_step("psnr")] == pytest.approx(expected)
    assert r.overall("psnr").error == pytest.approx(np.sqrt(3 / 2 * (sums.mean(1) ** 2).sum()) / 6)
    assert (r.json()["episodes"], r.json()["episodes_moving"]) == (3, 3)


def test_moving_clips_have_episodes_of_their_own() -> None:
    moving = np.array([True, True, False, False, True, False])
    r = results(clips=6, episodes=np.array(list("abbbac")), moving=moving)
    x = r.figures["autoregressive"]["psnr"][moving].mean(1)
    a = x[0] + x[2] - 2 * x.mean()
    assert r.overall("psnr", moving=True) == pytest.approx((x.mean(), np.sqrt(2 * 2 * a**2) / 3, 2))
    assert r.json()["episodes_moving"] == 2


def test_of_one_episode_nothing_is_certain_and_that_is_said() -> None:
    r = results(clips=40, episodes=np.array(["a"] * 40))
    figures = r.figures["autoregressive"]
    for name in ("gain_copy", "gain_copy_reconstruction", "delta_psnr"):
        figures[name] = np.full((40, 3), 2.0)
    assert np.isnan(r.overall("psnr").error)
    plain = json.loads(json.dumps(r.json(), allow_nan=False))
    assert plain["psnr_stderr"] is plain["delta_psnr_stderr"] is None
    assert ONE_EPISODE in cautions(r)
    assert verdict(r).tone == "even"
    console = Console(width=300)
    with console.capture() as shown:
        console.print(r.table())
    assert ONE_EPISODE in shown.get()


def test_verdicts_count_rooms_and_not_clips() -> None:
    rng = np.random.default_rng(0)
    rooms = np.repeat(["a", "b", "c", "d", "e"], 20)
    gain = np.repeat([2.0, -0.8, 1.6, -0.4, 0.9], 20)[:, None] + 0.1 * rng.normal(size=(100, 3))
    alone, clustered = results(clips=100), results(clips=100, episodes=rooms)
    for r in (alone, clustered):
        for name in ("gain_copy", "gain_copy_reconstruction", "delta_psnr"):
            r.figures["autoregressive"][name] = gain
    assert (verdict(alone).tone, verdict(clustered).tone) == ("good", "even")
    assert findings(alone)[0].tone == "good"
    assert findings(clustered)[0].tone == "even"
    assert clustered.overall("delta_psnr").error > 3 * alone.overall("delta_psnr").error


def test_nothing_moves() -> None:
    r = results(clips=4, moving=np.zeros(4, bool))
    assert r.mean("psnr", moving=True) is r.by_step("psnr", moving=True) is r.overall("psnr", moving=True) is None
    assert isinstance(r.overall("psnr"), Estimate)
