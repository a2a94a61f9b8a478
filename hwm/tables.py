"""Tables for a terminal, of which no figure is cut: what is too wide for it is stacked."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

GAP = 2
"""Blanks between columns."""
READS = 24
"""So wide words are left, if they need it, before a table is stacked."""


class Figures:
    """A table whose last columns hold figures, or other words that stay whole.

    Where a terminal is too narrow for all columns, the words on the left wrap, down to what still reads well, and then
    the table goes on below with its further columns, each beside the same words.

    Args:
        headings: of the columns; those of a table without any are left out.
        title: above it.
        words: how many columns, from the left, hold words that may wrap.
        ruled: draw a line below the headings.
    """

    def __init__(self, *headings: str, title: str = "", words: int = 1, ruled: bool = True) -> None:
        self.headings, self.title, self.words, self.ruled = headings, title, words, ruled
        self.rows: list[tuple[list[Text], str]] = []

    def add(self, *cells: str | Text, style: str = "") -> None:
        """Add a row; columns that are not given are empty."""
        filled = [*cells, *[""] * (len(self.headings) - len(cells))]
        self.rows.append(([cell if isinstance(cell, Text) else Text(cell) for cell in filled], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="bold")
        for figures in self._parts(options.max_width):
            yield self._table(figures, options.max_width)
            yield Text("")

    def _column(self, number: int) -> list[str]:
        return [self.headings[number], *(cells[number].plain for cells, _ in self.rows)]

    def _width(self, number: int) -> int:
        """Of a column whose cells stand in one line each."""
        return max(Text(cell).cell_len for cell in self._column(number))

    def _least(self, number: int) -> int:
        """To how much a column of words may shrink: no word is broken, and it still reads well."""
        longest = max((Text(word).cell_len for cell in self._column(number) for word in cell.split()), default=0)
        return max(longest, min(self._width(number), READS))

    def _parts(self, width: int) -> list[list[int]]:
        """The columns of figures that stand beside each other: as many as there is room for, in parts of like size."""
        figures = list(range(self.words, len(self.headings)))
        room = width - sum(self._least(i) + GAP for i in range(self.words))

        def needs(part: Sequence[int]) -> int:
            return sum(self._width(i) + GAP for i in part)

        parts: list[list[int]] = [[]]
        for i in figures:
            if parts[-1] and needs([*parts[-1], i]) > room:
                parts.append([])
            parts[-1].append(i)
        size = -(-len(figures) // len(parts)) or 1
        alike = [figures[i : i + size] for i in range(0, len(figures), size)]
        return alike if alike and all(needs(part) <= room for part in alike) else parts

    def _widths(self, figures: Sequence[int], width: int) -> dict[int, int]:
        """Of each column: words give way to figures; only what is wider than the whole terminal is folded."""
        found = {i: self._width(i) for i in (*range(self.words), *figures)}
        over, words = sum(found.values()) + GAP * len(found) - width, range(self.words)
        for floor in ({i: self._least(i) for i in words}, dict.fromkeys(words, 8), dict.fromkeys(found, 8)):
            while over > 0 and (wide := [i for i in floor if found[i] > floor[i]]):
                found[max(wide, key=lambda i: found[i])] -= 1
                over -= 1
        return found

    def _table(self, figures: Sequence[int], width: int) -> Table:
        made = Table(
            box=box.SIMPLE_HEAD if self.ruled else None, show_edge=False, show_header=any(self.headings),
            pad_edge=False, padding=(0, GAP - self.ruled, 0, 0),
        )  # fmt: skip
        for i, wide in self._widths(figures, width).items():
            made.add_column(
                Text(self.headings[i]), justify="left" if i < self.words else "right", width=wide, overflow="fold"
            )
        for cells, style in self.rows:
            made.add_row(*(cells[i] for i in (*range(self.words), *figures)), style=style)
        return made
