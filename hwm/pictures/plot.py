"""Charts as SVG, drawn by Matplotlib: inline for pages, or as a file by themselves.

Colours are CSS variables of the page (`--model`, `--copy`, ...), so that a chart follows the page into the dark; lines
differ in dashes and markers too, for those who do not tell colours apart. Points say their values when pointed at.
"""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from hwm.errors import HwmError
from hwm.pictures.style import stand_in, variables, with_variables

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 2.9
"""Inches of one chart, without its legend."""

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
SMALL_COLUMNS, SMALL_POINTS = 4, 150
"""Charts in a row of `small_charts`, and most points of each."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend.
        x, y: its points; points whose y is None or nan are left out.
        colour: name of a CSS variable of the page, without dashes.
        dash: Matplotlib's line style, such as "--".
        marker: Matplotlib's marker, such as "o"; empty for none.
        error: half the height of a band around the line, at each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    dash: str = "-"
    marker: str = ""
    error: Sequence[float] | None = None

    def points(self) -> list[tuple[float, float, float]]:
        """(x, y, error) where there is a value."""
        errors = self.error if self.error is not None else [0.0] * len(self.x)
        return [
            (x, y, e if math.isfinite(e) else 0.0)
            for x, y, e in zip(self.x, self.y, errors, strict=True)
            if y is not None and math.isfinite(y)
        ]


Chart = tuple[str, Sequence[Series]]
"""Title and lines."""


def need_matplotlib() -> None:
    """Raise `HwmError` where charts cannot be drawn; for commands to ask before long work."""
    if not find_spec("matplotlib"):
        raise HwmError("charts need Matplotlib: pip install 'humanoid-world-models[eval]'")


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, *, zero: bool = False, log: bool = False, unit: str = ""
) -> str:
    """A chart with its legend, as HTML.

    Args:
        zero: include 0 in the y axis, and draw it as a line.
        log: the x axis is logarithmic, with a mark at each point.
        unit: of y, for the tips that points show.

    Raises:
        HwmError: Matplotlib is not installed.
    """
    shown = [s for s in series if s.points()]
    if not shown:
        return '<p class="quiet">nothing to draw</p>'
    with settings():
        root = tree(_figure([("", shown)], x_label, y_label, zero, log), _tips([("", shown)], unit))
    root.set("role", "img")
    root.set("aria-label", _describe(shown, x_label, y_label))
    return f'<div class="chart">{inline(root)}</div>'


def svg_file(charts: Sequence[Chart], x_label: str, y_label: str, *, zero: bool = False, unit: str = "") -> str:
    """Charts side by side under their titles, with one legend, as a picture by itself (an SVG file).

    Raises:
        HwmError: Matplotlib is not installed.
    """
    drawn = [(title, [s for s in series if s.points()]) for title, series in charts]
    with settings():
        figure = _figure(drawn, x_label, y_label, zero)
        figure.set_facecolor(stand_in("card"))
        root = tree(figure, _tips(drawn, unit))
    style = ET.Element(f"{{{SVG}}}style")
    style.text = variables()
    root.insert(0, style)
    return _text(root) + "\n"


def small_charts(
    values: Mapping[str, np.ndarray], limits: Mapping[str, tuple[float, float]], seconds: np.ndarray
) -> str:
    """Many curves over the same time, each in a small chart of its own under its name, as HTML.

    Args:
        values: name -> (N,).
        limits: name -> lower and upper edge of its chart.
        seconds: (N,) of the points.

    Raises:
        HwmError: Matplotlib is not installed.
    """
    rows = -(-len(values) // SMALL_COLUMNS)
    at = np.unique(np.linspace(0, len(seconds) - 1, min(len(seconds), SMALL_POINTS)).round().astype(int))
    high = 0.62 * rows + 0.4
    with settings():
        from matplotlib.figure import Figure

        figure = Figure((2 * SMALL_COLUMNS, high), facecolor="none")
        grid = dict(left=0.05, right=0.99, bottom=0.38 / high, top=1 - 0.16 / high, wspace=0.32, hspace=0.85)
        all_axes = figure.subplots(rows, SMALL_COLUMNS, squeeze=False, sharex=True, gridspec_kw=grid).flat
        for axes, (name, y) in zip(all_axes, values.items(), strict=False):
            low, top = limits[name]
            _plain(axes)
            axes.set_title(name, fontsize=7, color=stand_in("ink"), loc="left", pad=3, parse_math=False)
            axes.set_yticks([low, top], [f"{low:.3g}", f"{top:.3g}"], fontsize=6)
            axes.set_ylim(low, top)
            axes.plot(seconds[at], y[at], color=stand_in("model"), linewidth=0.9, clip_on=False)
        for i, axes in enumerate(figure.axes):
            axes.set_visible(i < len(values))
            if i + SMALL_COLUMNS >= len(values):  # nothing below it
                axes.tick_params(labelbottom=True, labelsize=6)
                axes.set_xlabel("time in s", fontsize=6.5, color=stand_in("quiet"), labelpad=1)
        root = tree(figure, {})
    root.set("role", "img")
    root.set("aria-label", "; ".join(f"{k} from {v.min():.3g} to {v.max():.3g}" for k, v in values.items()))
    return f'<div class="scroll small-charts">{inline(root)}</div>'


@contextmanager
def settings() -> Iterator[None]:
    """Matplotlib's own settings and not the user's, with text that stays text."""
    need_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", fonttype="none", hashsalt="hwm")
        matplotlib.rc("font", size=8.5, **{"sans-serif": ["DejaVu Sans"]})
        yield


def _plain(axes: Axes) -> None:
    """Axes of a bottom line and a grid of heights, in the colours of the page."""
    axes.set_facecolor("none")
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(stand_in("quiet"))
    axes.grid(axis="y", color=stand_in("line"), linewidth=0.8, clip_on=False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=stand_in("quiet"))


def _figure(charts: Sequence[Chart], x_label: str, y_label: str, zero: bool, log: bool = False) -> Figure:
    """Charts side by side with one legend below."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter, MaxNLocator

    names = list({s.name: None for _, series in charts for s in series})
    size = WIDTH * len(charts), HEIGHT + 0.18 * len(names)
    figure = Figure(size, facecolor="none", layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07))
    handles = {}
    for number, (title, series) in enumerate(charts):
        axes = figure.add_subplot(1, len(charts), number + 1)
        _plain(axes)
        axes.set_title(title, color=stand_in("ink"), loc="left", fontsize=9, parse_math=False)
        axes.set_xlabel(x_label, color=stand_in("ink"), fontsize=9, parse_math=False)
        axes.set_ylabel(y_label, color=stand_in("ink"), fontsize=9, parse_math=False)
        if zero:
            axes.axhline(0, color=stand_in("quiet"), linewidth=1, clip_on=False)
        for i, s in enumerate(series):
            handles[s.name] = _draw(axes, s, f"line-{number}-{i}")
        if log:
            marks = sorted({x for s in series for x, _, _ in s.points()})
            axes.set_xscale("log")
            axes.set_xticks(marks, [f"{x:.3g}" for x in marks])
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.ticklabel_format(axis="y", useOffset=False)
    legend = figure.legend(
        handles.values(), handles, loc="outside lower left", frameon=False, labelcolor=stand_in("ink"), handlelength=3.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw(axes: Axes, s: Series, key: str) -> Artist:
    """One line, its band and its markers; gives what the legend shows."""
    x, y, error = (np.array(column) for column in zip(*s.points(), strict=True))
    colour = stand_in(s.colour)
    if s.error is not None:
        axes.fill_between(x, y - error, y + error, color=colour, alpha=0.16, linewidth=0, clip_on=False)
    style = dict(linestyle=s.dash, marker=s.marker or None, markersize=4, linewidth=1.5, clip_on=False)
    (line,) = axes.plot(x, y, color=colour, gid=key, **style)  # type: ignore[arg-type]
    return line


def _tips(charts: Sequence[Chart], unit: str) -> dict[str, list[str]]:
    """What the points of a line say, by the line's key."""
    return {
        f"line-{number}-{i}": [f"{s.name}: {y:.4g} {unit}".rstrip() + f" at {x:g}" for x, y, _ in s.points()]
        for number, (_, series) in enumerate(charts)
        for i, s in enumerate(series)
        if s.marker
    }


def tree(figure: Figure, tips: Mapping[str, Sequence[str]]) -> ET.Element:
    """A figure as SVG elements without what nobody asks for, its points with their tips."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    root = ET.fromstring(file.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        if (link := element.attrib.pop(f"{{{LINK}}}href", None)) is not None:
            element.set("href", link)
        points = element.findall(f".//{{{SVG}}}use") if element.get("id", "") in tips else []
        for point, tip in zip(points, tips.get(element.get("id", ""), ()), strict=False):
            ET.SubElement(point, f"{{{SVG}}}title").text = tip
    named = set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values())))
    for element in root.iter():
        if element.get("id") not in named | tips.keys():
            element.attrib.pop("id", None)
    return root


def _text(root: ET.Element) -> str:
    ET.register_namespace("", SVG)
    return with_variables(ET.tostring(root, encoding="unicode")).replace("'DejaVu Sans'", "system-ui")


def inline(root: ET.Element) -> str:
    """As part of a page, in which ids of several charts would meet and a size of its own would not give way."""
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    return re.sub(r' (?:xmlns(?::\w+)?="[^"]*"|id="line-[\d-]+")', "", _text(root))


def _describe(series: Sequence[Series], x_label: str, y_label: str) -> str:
    ends = "; ".join(f"{s.name} from {s.points()[0][1]:.2f} to {s.points()[-1][1]:.2f}" for s in series)
    return f"{y_label} over {x_label}: {ends}"
