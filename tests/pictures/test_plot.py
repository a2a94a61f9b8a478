"""Charts: what is drawn is what was given."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from hwm.errors import HwmError
from hwm.pictures.plot import Series, line_chart, need_matplotlib, small_charts, svg_file

SVG = "{http://www.w3.org/2000/svg}"


def tree(chart: str) -> ET.Element:
    """A chart of a page as elements, without namespaces."""
    return ET.fromstring(chart)


def points(chart: ET.Element, of: str) -> tuple[list[tuple[float, float]], list[str]]:
    """Where the markers of a line are, and what they say."""
    marks = [(m, m.findtext("title") or "") for m in chart.iter("use") if (m.findtext("title") or "").startswith(of)]
    return [(float(m.get("x", "")), float(m.get("y", ""))) for m, _ in marks], [tip for _, tip in marks]


def words(chart: ET.Element) -> list[str]:
    return [e.text or "" for e in chart.iter("text")]


def test_points_lie_where_their_numbers_are() -> None:
    x, y, other = [1, 2, 5], [17.0, 19.5, 18.0], [18.0, 17.0, 19.5]
    chart = tree(
        line_chart([Series("one", x, y, "model", "-", "o"), Series("two", x, other, "copy", "--", "s")], "x", "y")
    )
    (one, _), (two, _) = points(chart, "one:"), points(chart, "two:")
    across, up = np.polyfit([p[0] for p in one], x, 1), np.polyfit([p[1] for p in one + two], y + other, 1)
    assert np.polyval(across, [p[0] for p in one]) == pytest.approx(x, abs=1e-3)
    assert np.polyval(up, [p[1] for p in one + two]) == pytest.approx(y + other, abs=1e-3)
    assert across[0] > 0 > up[0], "to the right, and upwards"
    # the numbers along the axis stand at their places too
    ticks = {e.text: e for e in chart.iter("text") if re.fullmatch(r"\d+\.\d", e.text or "")}
    for text, e in ticks.items():
        place = float(re.findall(r"[\d.]+", e.get("transform", "") + f" {e.get('x')} {e.get('y')}")[-1])
        found = float(np.polyval(up, float(e.get("y") or place)))
        assert found == pytest.approx(float(text), abs=0.15)
    assert len(ticks) >= 3


def test_points_say_what_they_are() -> None:
    chart = tree(line_chart([Series("<one>", [1, 2], [2.0, 3.25], "model", "-", "o")], "x", "y", unit="dB"))
    assert points(chart, "<one>")[1] == ["<one>: 2 dB at 1", "<one>: 3.25 dB at 2"]


def test_axes_and_lines_are_named() -> None:
    series = [Series("a & b", [1, 2], [1.0, 2.0], "model"), Series("$x$ <c>", [1, 2], [2.0, 1.0], "copy")]
    chart = line_chart(series, "step of 0.1 s", "PSNR <in> dB")
    found = words(tree(chart))
    assert {"a & b", "$x$ <c>", "step of 0.1 s", "PSNR <in> dB"} <= set(found)
    assert 'role="img"' in chart
    assert "PSNR &lt;in&gt; dB over step of 0.1 s: a &amp; b from 1.00 to 2.00" in chart


def test_steps_are_whole_and_large_numbers_short() -> None:
    found = words(tree(line_chart([Series("s", list(range(1, 9)), [1.0] * 8, "model")], "x", "y")))
    assert [t for t in found if re.fullmatch(r"\d", t)] == list("12345678")
    assert {"2k", "10k"} <= set(words(tree(line_chart([Series("s", [0, 10_000], [1.0, 2.0], "loss")], "x", "y"))))


def test_zero_is_within_where_it_is_asked_for() -> None:
    series = [Series("s", [1, 2], [7.0, 8.0], "model")]
    assert any(re.fullmatch(r"0(\.0)?", t) for t in words(tree(line_chart(series, "x", "y", zero=True))))
    assert not any(re.fullmatch(r"0(\.0)?", t) for t in words(tree(line_chart(series, "x", "y"))))


def test_a_band_is_as_wide_as_it_should_be() -> None:
    series = Series("s", [1, 2], [4.0, 6.0], "model", "-", "o", [0.5, float("nan")])
    chart = tree(line_chart([series], "x", "y"))
    (first, second), _ = points(chart, "s:")
    shape = next(e.get("href") for e in chart.iter("use") if "opacity: 0.16" in e.get("style", ""))
    band = next(e for e in chart.iter("path") if f"#{e.get('id')}" == shape)
    corners = {(round(float(a), 1), float(b)) for a, b in re.findall(r"([\d.]+) (-?[\d.]+)", band.get("d", ""))}
    heights = [b for a, b in corners if a == round(first[0], 1)]
    unit = (first[1] - second[1]) / 2
    assert max(heights) - min(heights) == pytest.approx(unit, rel=0.02)


def test_charts_survive_odd_data() -> None:
    assert "nothing" in line_chart([Series("none", [1, 2], [None, float("nan")], "model")], "x", "y")
    one = line_chart([Series("one", [1], [2.0], "model", marker="D", error=[float("nan")])], "x", "y")
    assert "nan" not in one
    assert "inf" not in one
    gaps = tree(line_chart([Series("s", [1, 2, 3], [1.0, None, 3.0], "model", "-", "o")], "x", "y"))
    assert [tip for _, tip in zip(*points(gaps, "s"), strict=True)] == ["s: 1 at 1", "s: 3 at 3"]
    with pytest.raises(HwmError, match="no colour 'pink'"):
        line_chart([Series("s", [1], [1.0], "pink")], "x", "y")


def test_charts_of_a_page_take_its_colours_and_keep_out_of_each_others_way() -> None:
    series = [Series("s", [1, 2], [1.0, 2.0], "model", "-", "o")]
    chart = line_chart(series, "x", "y")
    assert "var(--model)" in chart
    assert "var(--quiet)" in chart
    assert not re.search(r"#abc0|http|<style>.*var|<metadata", chart)
    named, used = set(re.findall(r' id="([^"]+)"', chart)), set(re.findall(r'href="#([^"]+)"', chart))
    assert named == used, "no id is left that another chart may have with another meaning"
    assert chart == line_chart(series, "x", "y"), "the same numbers are the same file"


def test_a_picture_fetches_nothing_and_follows_into_the_dark() -> None:
    text = svg_file([("one", [Series("s", [1, 2], [1.0, 2.0], "model")]), ("two", [])], "x", "y")
    root = ET.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert "var(--model)" in text
    assert "fill: var(--card)" in text, "paper of its own"
    assert text.count("http") == 1  # the name of the format
    assert {"one", "two"} <= {e.text for e in root.iter(f"{SVG}text")}


def test_small_charts_have_their_names_edges_and_times() -> None:
    seconds = np.arange(900) / 30
    values = {f"JOINT_{i}": np.sin(seconds + i) for i in range(6)}
    html = small_charts(values, dict.fromkeys(values, (-1.25, 1.5)), seconds)
    found = words(tree(html))
    assert all(found.count(name) == 1 for name in values)
    assert found.count("-1.25") == found.count("1.5") == 6
    assert found.count("time in s") == 4, "below the lowest chart of each column"
    lines = [e.get("d", "") for e in tree(html).iter("path") if "stroke: var(--model)" in e.get("style", "")]
    assert len(lines) == 6
    assert all(20 < line.count("L") < 150 for line in lines)
    assert "JOINT_0 from -1 to 1" in html


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (
        need_matplotlib,
        lambda: line_chart([Series("s", [1], [1.0], "model")], "x", "y"),
        lambda: svg_file([], "x", "y"),
        lambda: small_charts({"a": np.zeros(2)}, {"a": (0, 1)}, np.arange(2)),
    ):
        with pytest.raises(HwmError, match=r"pip install .*\[eval\]"):
            draw()
