"""Means and standard errors of results, against their formulas, and what is said where there are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from hwm.evaluate.metrics import METRICS, Metric, psnr
from hwm.evaluate.results import ONE_EPISODE, quoted
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


def test_which_way_is_better_is_declared_with_the_metric() -> None:
    metrics = {**METRICS, "lpips": Metric(psnr, lower_is_better=True), "lpips_like": Metric(psnr)}
    r = results(metrics=metrics)
    for name, winner in (("lpips", 0.2), ("lpips_like", 0.3)):
        rows = {name: [0.2], f"{name}_copy": [0.3], f"{name}_reconstruction": [0.0]}
        assert r.best(rows, 0) == {name if winner == 0.2 else f"{name}_copy"}, "a ceiling does not compete"
    ties = {"psnr": [3.0], "psnr_copy": [3.0005], "psnr_copy_reconstruction": [1.0], "psnr_reconstruction": [9.0]}
    assert r.best(ties, 0) == {"psnr", "psnr_copy"}
    assert r.best({"ssim_reconstruction_reference": [0.1], "ssim_copy_reconstruction_reference": [0.2]}, 0) == {
        "ssim_copy_reconstruction_reference"
    }
    assert r.best({"accuracy": [0.1], "accuracy_copy": [0.05]}, 0) == {"accuracy"}
    assert r.json()["metrics"]["lpips"] == {"lower_is_better": True}


def test_tables_show_every_metric_and_mark_its_best() -> None:
    r = results(metrics={**METRICS, "absolute_error": Metric(psnr, lower_is_better=True, places=4)})
    for end, value in (("", 0.25), ("_copy", 0.125), ("_copy_reconstruction", 0.5)):
        r.figures["autoregressive"][f"absolute_error{end}"] = np.full((6, 3), value)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(r.table())
    lines = [line.split() for line in shown.get().splitlines()]
    at = lines.index(["absolute", "error,", "lower", "is", "better"])
    assert lines[at + 1] == ["prediction", "0.2500", "0.2500", "0.2500"]
    assert lines[at + 2] == ["last", "camera", "frame", "repeated", *["0.1250*"] * 3]
    assert lines[at + 3] == ["its", "reconstruction", "repeated", "0.5000", "0.5000", "0.5000"]


def test_a_long_name_costs_no_digits_of_the_figures() -> None:
    r = results(steps=8, metrics={**METRICS, "absolute_error": Metric(psnr, lower_is_better=True)})
    r.figures["autoregressive"] |= {f"psnr{end}": np.full((6, 8), 21.44) for end in ("", "_copy")}
    r.figures["autoregressive"]["absolute_error"] = np.full((6, 8), 0.25)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(r.table())
    assert "…" not in shown.get()
    assert ["prediction", *["21.44*"] * 6] in [line.split() for line in shown.get().splitlines()]


def test_figures_are_quoted_with_their_own_decimals() -> None:
    assert [quoted("perplexity", v) for v in (1.0, 170.88, 264_245.1)] == ["1.0", "170.9", "264,245"]
    names = {"psnr": "0.12", "psnr_copy": "0.12", "ssim_copy": "0.123", "accuracy": "0.123", "ce": "0.12"}
    assert {name: quoted(name, 0.12345) for name in names} == names
