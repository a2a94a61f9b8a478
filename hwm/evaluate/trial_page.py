"""The part of a report that is about the simulator as judge: paths from above, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from hwm.evaluate.drift import FLOOR, Ride
from hwm.pictures.page import section
from hwm.pictures.plot import Series
from hwm.pictures.top_view import TopView, top_views

SHOWN = 8
"""Rides that are drawn."""

WORDS = (
    "<p>The true simulator went through the same commands as the dream, so that all of it has a truth. Where the dream "
    "is was found by matching its pictures against views of the same world; how well the simulator's own pictures are "
    "found says how far to trust that. Standard errors (±) are clustered by episode.</p>"
)


class Grid(NamedTuple):
    """A table of one kind of figures.

    Attributes:
        title: what it is about.
        heads: of its columns.
        rows: name -> cells.
    """

    title: str
    heads: list[str]
    rows: dict[str, list[str]]


def trial_section(rides: Sequence[Ride], grids: Sequence[Grid], notes: Sequence[str]) -> str:
    """The section, as HTML; needs Matplotlib."""
    remarks = "".join(f"<li>{escape(note)}</li>" for note in notes)
    paths = top_views([_view(ride) for ride in rides[:SHOWN]]) if rides else ""
    words = (
        '<p class="quiet">From above: the line is where the simulated robot went from the dot on, and the crosses, '
        "joined in their order, are where the dream's pictures are found.</p>"
    )
    return section(
        "Judged by the true simulator", WORDS, f'<ul class="notes">{remarks}</ul>' if notes else "",
        *([paths, words] if paths else []), *(_table(grid) for grid in grids),
    )  # fmt: skip


def _view(ride: Ride) -> TopView:
    rows, columns = ride.floor.shape
    x, y = ride.corner
    at = np.concatenate([ride.path[:1], ride.found])
    return TopView(
        ride.name,
        (x + FLOOR * np.arange(columns), y + FLOOR * np.arange(rows), ride.floor),
        [
            Series("where the simulated robot went", ride.path[:, 0].tolist(), ride.path[:, 1].tolist(), "copy"),
            Series("", ride.path[:1, 0].tolist(), ride.path[:1, 1].tolist(), "copy", "", "o"),
            Series("where the dream is", at[:, 0].tolist(), at[:, 1].tolist(), "model", ":", "x"),
        ],
    )


def _table(grid: Grid) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in grid.heads)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in grid.rows.items()
    )
    return f'<h3>{escape(grid.title)}</h3><div class="scroll"><table><tr><th></th>{heads}</tr>{rows}</table></div>'
