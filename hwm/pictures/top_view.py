"""Paths on a floor, seen from above, as SVG in the style of `hwm.pictures.plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwm.pictures.plot import Series, inline, settings, tree
from hwm.pictures.style import stand_in

COLUMNS = 4
"""Floors in a row."""


@dataclass(frozen=True)
class TopView:
    """A floor and lines on it.

    Attributes:
        title: above it.
        floor: x (columns,) and y (rows,) in metres, and which of the floor is free, (rows, columns) bool.
        lines: in metres; bands and gaps are not drawn.
    """

    title: str
    floor: tuple[np.ndarray, np.ndarray, np.ndarray]
    lines: Sequence[Series]


def top_views(views: Sequence[TopView]) -> str:
    """Floors side by side, x to the right and y up, a grid line a metre, as HTML.

    Raises:
        HwmError: Matplotlib is not installed.
    """
    rows = -(-len(views) // COLUMNS)
    with settings():
        from matplotlib.figure import Figure

        figure = Figure((2 * COLUMNS, 2.15 * rows), facecolor="none", layout="constrained")
        all_axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
        for axes, view in zip(all_axes, views, strict=False):
            x, y, free = view.floor
            axes.contourf(x, y, free.astype(float), levels=[0.5, 1.5], colors=[stand_in("line")])
            for line in view.lines:
                axes.plot(
                    line.x, line.y, color=stand_in(line.colour), linestyle=line.dash or "none",
                    marker=line.marker or None, markersize=4, linewidth=1.3,
                )  # fmt: skip
            axes.set_title(view.title, fontsize=7, color=stand_in("ink"), loc="left", pad=3, parse_math=False)
            axes.set_aspect("equal")
            axes.set_facecolor("none")
            axes.spines[:].set_visible(False)
            axes.set_xticks(np.arange(np.ceil(x[0]), x[-1]), [])
            axes.set_yticks(np.arange(np.ceil(y[0]), y[-1]), [])
            axes.tick_params(length=0)
            axes.grid(color=stand_in("card"), linewidth=0.6)
        for axes in list(figure.axes)[len(views) :]:
            axes.set_visible(False)
        root = tree(figure, {})
    root.set("role", "img")
    root.set("aria-label", "paths from above: " + ", ".join(view.title for view in views))
    return f'<div class="scroll small-charts">{inline(root)}</div>'
