"""Charts: what is drawn is what was given."""

from __future__ import annotations

import re

import pytest

from hwm.pictures.plot import Series, line_chart, short, svg_file, ticks


def test_ticks() -> None:
    assert ticks(1, 8, 12, whole=True) == list(range(1, 9))
    assert ticks(0, 10_000, 6, whole=True) == [0, 2000, 4000, 6000, 8000, 10000]
    assert ticks(-0.2, 0.31, 6)[0] <= -0.2
    assert ticks(-0.2, 0.31, 6)[-1] >= 0.31
    assert 0.0 in ticks(-0.2, 0.31, 6)
    assert ticks(3, 3, 5)[0] < 3 < ticks(3, 3, 5)[-1]
    assert [short(v) for v in (0.5, 12, 2000, 20_000, 1_500_000)] == ["0.5", "12", "2k", "20k", "1.5M"]


def test_charts_survive_odd_data() -> None:
    assert "nothing" in line_chart([Series("none", [1, 2], [None, float("nan")], "model")], "x", "y")
    one = line_chart([Series("<one>", [1], [2.0], "model", marker="diamond", error=[float("nan")])], "x", "y & z")
    assert "&lt;one&gt;" in one
    assert "y &amp; z" in one
    assert "nan" not in one
    assert "inf" not in one


@pytest.mark.parametrize("low", [-3.0, 0.0, 1e-4, 17.2])
def test_points_lie_inside_the_chart(low: float) -> None:
    chart = line_chart([Series("s", [1, 2, 3], [low, low + 1, low + 0.3], "model", marker="circle")], "x", "y")
    places = re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', chart.split("</svg>")[0])
    assert len(places) == 3
    assert all(50 <= float(x) <= 446 and 0 <= float(y) <= 246 for x, y in places)


def test_a_picture_fetches_nothing_and_follows_into_the_dark() -> None:
    text = svg_file([("one", [Series("s", [1, 2], [1.0, 2.0], "model")])], "x", "y")
    assert "prefers-color-scheme: dark" in text
    assert "--model" in text
    assert text.count("http") == 1  # the name of the format
