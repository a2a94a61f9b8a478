"""Curves as inline SVG: axes, grid, legend, and nothing that needs a script or a second file.

Colours are CSS variables of the page (`--model`, `--copy`, ...), so that a chart follows the page into the dark; lines
differ in dashes and markers too, for those who do not tell colours apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 44

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend.
        x, y: its points; points whose y is None or nan are left out.
        colour: name of a CSS variable of the page, without dashes.
        dash: SVG dash pattern; empty for a solid line.
        marker: `circle`, `square`, `diamond` or empty.
        error: half the height of a band around the line, at each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    dash: str = ""
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


def line_chart(series: Sequence[Series], x_label: str, y_label: str, *, zero: bool = False, unit: str = "") -> str:
    """A chart with its legend, as HTML.

    Args:
        zero: include 0 in the y axis, and draw it as a line.
        unit: of y, for the tips that points show.
    """
    shown = [s for s in series if s.points()]
    if not shown:
        return '<p class="quiet">nothing to draw</p>'
    keys = "".join(f"<li>{_key(s)}{escape(s.name)}</li>" for s in shown)
    drawn = drawing(shown, x_label, y_label, zero=zero, unit=unit)
    return f'<div class="chart">{drawn}<ul class="legend">{keys}</ul></div>'


def svg_file(charts: Sequence[tuple[str, Sequence[Series]]], x_label: str, y_label: str, *, zero: bool = False) -> str:
    """Charts side by side under their titles, with one legend, as a picture by itself (an SVG file)."""
    legend = list({s.name: s for _, series in charts for s in series if s.points()}.values())
    width, top = WIDTH * len(charts), 30
    height = top + HEIGHT + 24 * len(legend)
    style = Path(__file__).with_name("page.css").read_text()
    variables = style[style.index(":root") : style.index("* {")]
    lines = [line for line in style.splitlines() if line.startswith(".chart ")]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><style>{variables}{" ".join(lines[1:])}</style>'
        f'<rect width="{width}" height="{height}" style="fill:var(--card)"/>'
    ]
    for i, (title, series) in enumerate(charts):
        shown = [s for s in series if s.points()]
        inner = drawing(shown, x_label, y_label, zero=zero).replace(
            "<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', 1
        )
        parts.append(f'<text class="label" x="{i * WIDTH + LEFT}" y="20">{escape(title)}</text>')
        parts.append(f'<g transform="translate({i * WIDTH} {top})">{inner}</g>')
    for i, s in enumerate(legend):
        parts.append(f'<g transform="translate({LEFT} {top + HEIGHT + 24 * i})">{_key(s)}')
        parts.append(f'<text class="label" x="38" y="11">{escape(s.name)}</text></g>')
    return "".join([*parts, "</svg>\n"])


def drawing(shown: Sequence[Series], x_label: str, y_label: str, *, zero: bool = False, unit: str = "") -> str:
    """A chart of series that have points, without its legend, as an SVG element; see `line_chart`."""
    xs = [x for s in shown for x, _, _ in s.points()]
    ys = [v for s in shown for _, y, e in s.points() for v in (y - e, y + e)] + ([0.0] if zero else [])
    x_ticks, y_ticks = ticks(min(xs), max(xs), 12, whole=True), ticks(min(ys), max(ys), 6)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def px(x: float) -> float:
        inner = WIDTH - LEFT - RIGHT - 16
        return LEFT + 8 + (x - x_low) / (x_high - x_low) * inner if len(set(xs)) > 1 else LEFT + 8 + inner / 2

    def py(y: float) -> float:
        return TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_describe(shown, x_label, y_label))}">'
    ]
    decimals = _decimals(y_ticks)
    for y in y_ticks:
        kind = "axis" if zero and y == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y:.{decimals}f}</text>')
    for x in x_ticks:
        if x_low <= x <= x_high:
            parts.append(
                f'<text class="tick" x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{short(x)}</text>'
            )
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    centre, middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + bottom) / 2
    parts.append(f'<text class="label" x="{centre}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text class="label" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        f"{escape(y_label)}</text>"
    )
    for s in shown:
        parts += _draw(s, px, py, decimals + 1, unit)
    return "".join([*parts, "</svg>"])


def _draw(s: Series, px: Scale, py: Scale, decimals: int, unit: str) -> list[str]:
    """One line, its band and its markers."""
    points, out = s.points(), []
    stroke = f'style="stroke:var(--{s.colour});fill:none"'
    if s.error is not None:
        upper = [f"{px(x):.1f},{py(y + e):.1f}" for x, y, e in points]
        lower = [f"{px(x):.1f},{py(y - e):.1f}" for x, y, e in reversed(points)]
        out.append(f'<polygon style="fill:var(--{s.colour});opacity:.16" points="{" ".join(upper + lower)}"/>')
    dash = f' stroke-dasharray="{s.dash}"' if s.dash else ""
    line = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y, _ in points)
    out.append(f'<polyline class="line"{dash} {stroke} points="{line}"/>')
    if s.marker:
        for x, y, _ in points:
            tip = f"<title>{escape(s.name)}: {y:.{decimals}f} {escape(unit)} at {short(x)}</title>"
            out.append(_marker(s.marker, px(x), py(y), s.colour, tip))
    return out


def _marker(kind: str, x: float, y: float, colour: str, tip: str = "") -> str:
    style = f'style="fill:var(--{colour})"'
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" {style}>{tip}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind == "diamond" else ""
    return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"{turn} {style}>{tip}</rect>'


def _key(s: Series) -> str:
    """The sample of a line that the legend shows."""
    dash = f' stroke-dasharray="{s.dash}"' if s.dash else ""
    mark = _marker(s.marker, 14, 6, s.colour) if s.marker else ""
    line = f'<line class="line" x1="0" x2="28" y1="6" y2="6"{dash} style="stroke:var(--{s.colour})"/>'
    return f'<svg class="key" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">{line}{mark}</svg>'


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """At most about `most` round numbers that span low..high (as whole numbers, those within it)."""
    span = max(high - low, 1e-9 if not whole else 1.0)
    if span < 1e-6:
        low, high, span = low - 0.5, high + 0.5, 1.0
    raw = span / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, float(round(step)))
        first = math.ceil(low / step) * step
        count = int((high - first) / step + 1e-9) + 1
        values = [first + i * step for i in range(max(0, count))]
        return values if values and values[0] <= low + step / 2 else [low, *values]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _decimals(values: Sequence[float]) -> int:
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    return next(d for d in range(9) if d == 8 or abs(round(step, d) - step) < 1e-9 * max(1.0, step))


def short(value: float) -> str:
    """A number in a few characters: 12, 0.5, 20k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % size == 0) or abs(value) >= 1e6:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"


def _describe(series: Sequence[Series], x_label: str, y_label: str) -> str:
    ends = "; ".join(f"{s.name} from {s.points()[0][1]:.2f} to {s.points()[-1][1]:.2f}" for s in series)
    return f"{y_label} over {x_label}: {ends}"
