"""Several robots at once: a row each, and charts of what random actions cost."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from hwm.errors import HwmError
from hwm.evaluate.robots import FIGURES, by_robot, controllability, save, summary, table
from tests.evaluate.toy_results import results

SVG = "{http://www.w3.org/2000/svg}"


def test_a_row_is_the_means_of_its_robot() -> None:
    one, other = results(), results(4, embodiment="legs", store="walks", steps_per_second=2.5)
    other.figures["autoregressive"]["ce"] = None
    rows = by_robot([one, other])
    assert [(r["embodiment"], r["store"], r["clips"], r["steps_per_second"]) for r in rows] == [
        ("arm", "arms", 6, 10.0), ("legs", "walks", 4, 2.5),
    ]  # fmt: skip
    found, figures = rows[0], one.figures["autoregressive"]
    for name in ("psnr", "ssim", "delta_psnr", "accuracy"):
        assert found[name] == pytest.approx(figures[name].mean(), abs=1e-5)  # type: ignore[union-attr]
    assert found["perplexity"] == pytest.approx(np.exp(figures["ce"].mean()), abs=1e-5)  # type: ignore[union-attr]
    assert found["gain"] == pytest.approx(figures[f"gain_{one.rival()}"].mean(), abs=1e-5)  # type: ignore[union-attr]
    assert found["lpips"] is rows[1]["perplexity"] is None
    assert found.keys() == {"embodiment", "store", "clips", "steps_per_second", *FIGURES}


def test_figures_that_nobody_has_are_left_out() -> None:
    both = table([results(), results(4, embodiment="legs")])
    assert both.headings == ("robot", "arm", "legs")
    headings = [cells[0].plain for cells, _ in both.rows]
    assert headings[:4] == ["store", "clips", "steps per second", "PSNR in dB"]
    assert "perplexity" in headings
    assert "LPIPS" not in headings
    assert both.rows[1][0][2].plain == "4"


def test_distances_between_sets_are_figures_too() -> None:
    one = results(distances={"autoregressive": {"fvd": 12.5, "fvd_copy": 30.0, "fvd_examples": 6.0}})
    assert [r["fvd"] for r in by_robot([one, results()])] == [12.5, None]
    assert "12.50" in [cells[1].plain for cells, _ in table([one, results()]).rows]


def test_one_evaluation_is_written_as_before(tmp_path: Path) -> None:
    one = results()
    assert summary([one]) == one.json()
    both = json.loads(save(tmp_path / "new" / "r.json", [one, results(4)]).read_text(encoding="utf-8"))
    assert [len(both["by_robot"]), len(both["stores"])] == [2, 2]
    assert both["stores"][0]["psnr"] == one.json()["psnr"]


def test_what_random_actions_cost_is_drawn_for_each_robot(tmp_path: Path) -> None:
    every = [results(), results(4, embodiment="<legs>")]
    root = ET.fromstring(controllability(tmp_path / "c.svg", every).read_text(encoding="utf-8"))
    for chart, r in enumerate(every):
        # higher is further up: what is drawn is what was measured
        marks = [root.findall(f".//{SVG}g[@id='line-{chart}-{i}']//{SVG}use") for i in range(2)]
        assert [len(m) for m in marks] == [3, 3]
        heights = [[-float(m.attrib["y"]) for m in line] for line in marks]
        figures = [r.mean(name) for name in ("psnr", "psnr_random_actions")]
        assert np.corrcoef(np.ravel(heights), np.ravel(figures))[0, 1] > 0.999  # type: ignore[arg-type]
    text = "".join(root.itertext())
    assert "random actions" in text
    assert "true actions" in text
    assert "<legs> (arms), 10 steps a second" in text


def test_without_random_actions_there_is_nothing_to_draw(tmp_path: Path) -> None:
    without = results()
    del without.figures["autoregressive"]["psnr_random_actions"]
    with pytest.raises(HwmError, match="leave out --no-swaps"):
        controllability(tmp_path / "c.svg", [without])
    assert not (tmp_path / "c.svg").exists()
