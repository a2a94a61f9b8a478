"""Sheets: every picture in its row and column, every word where it belongs."""

from __future__ import annotations

import numpy as np

from hwm.pictures.canvas import GAP, PAPER, text_width
from hwm.pictures.sheet import BETWEEN, MARGIN, Block, Heading, Row, draw_sheet

RED, BLUE = (255, 0, 0), (0, 0, 255)


def grey(count: int, first: int, height: int = 30, width: int = 40) -> np.ndarray:
    """Pictures of one shade each, none of which text has."""
    shades = np.arange(first, first + count, dtype=np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (count, height, width, 3)).copy()


def edges(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right (exclusive) of what is set."""
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def box(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Edges of what is red or blue; of thin letters no pixel has the full colour."""
    channel = colour.index(255)
    others = np.delete(sheet.astype(int), channel, -1).max(-1)
    return edges(sheet[..., channel] > others + 40)


def corner(sheet: np.ndarray, shade: int, height: int, width: int) -> tuple[int, int]:
    """Where the picture of a shade lies; it is there once, whole and of this size."""
    top, bottom, left, right = edges((sheet == shade).all(-1))
    assert (bottom - top, right - left) == (height, width)
    assert (sheet[top:bottom, left:right] == shade).all()
    return top, left


def test_pictures_lie_in_rows_and_columns() -> None:
    sheet = draw_sheet([Block(rows=[Row(pictures=grey(3, 50)), Row(pictures=grey(3, 60))])], scale=2)
    for row, first in enumerate((50, 60)):
        for column in range(3):
            place = corner(sheet, first + column, 60, 80)
            assert place == (MARGIN + row * (60 + GAP), MARGIN + column * (80 + GAP))
    assert sheet.shape == (2 * 60 + GAP + 2 * MARGIN, 3 * 80 + 2 * GAP + 2 * MARGIN, 3)
    assert (sheet[:MARGIN] == PAPER).all()
    assert (sheet[:, -MARGIN:] == PAPER).all()


def test_words_stand_where_they_belong() -> None:
    block = Block(
        title="title",
        heads=[("a", RED), ("b", BLUE)],
        rows=[Row(name="row", pictures=grey(2, 50, 60, 80), notes=["", "note"]), Row(pictures=grey(2, 60, 60, 80))],
    )
    sheet = draw_sheet([block])
    (top, left), (_, second), (below, _) = (corner(sheet, n, 60, 80) for n in (50, 51, 60))
    a, b = box(sheet, RED), box(sheet, BLUE)
    assert left <= a[2] < a[3] < second <= b[2], "headings above their columns"
    assert max(a[1], b[1]) <= top
    drawn = (sheet != np.array(PAPER)).any(-1)
    assert edges(drawn[: a[0] - 2])[0] >= MARGIN, "the title above the headings"
    name = edges(drawn[top:, :left])
    assert 15 < name[0] < name[1] < 45, "the name beside the middle of its row"
    note = edges(drawn[top + 60 : below])
    assert note[2] >= second, "the note below its picture"
    assert 0 < note[0] < note[1] <= below - top - 60


def test_groups_are_set_apart() -> None:
    groups: dict[int, Heading] = {0: ("one", RED), 2: ("other", BLUE)}
    sheet = draw_sheet([Block(rows=[Row(pictures=grey(4, 50))], groups=groups)])
    xs = [corner(sheet, 50 + i, 30, 40)[1] for i in range(4)]
    assert np.diff(xs).tolist() == [40 + GAP, 40 + BETWEEN, 40 + GAP]
    assert xs[0] <= box(sheet, RED)[2] < xs[2] <= box(sheet, BLUE)[2]


def test_long_words_are_not_cut_off() -> None:
    text = "a title that is far longer than its two pictures are wide"
    sheet = draw_sheet([Block(title=text, rows=[Row(pictures=grey(2, 50))]), Block(rows=[Row(pictures=grey(2, 60))])])
    assert sheet.shape[1] == text_width(text, 12) + 2 * MARGIN
    head = draw_sheet([Block(heads=[("", RED), ("far too wide", BLUE)], rows=[Row(pictures=grey(2, 50))])])
    assert box(head, BLUE)[3] <= head.shape[1] - MARGIN
    assert box(head, BLUE)[3] > head.shape[1] - MARGIN - 4


def test_blocks_lie_below_one_another_in_line() -> None:
    blocks = [Block(rows=[Row(name=name, pictures=grey(1, n))]) for name, n in (("a long name", 50), ("b", 60))]
    sheet = draw_sheet(blocks)
    (top, left), (below, under) = corner(sheet, 50, 30, 40), corner(sheet, 60, 30, 40)
    assert left == under > MARGIN + text_width("a long name", 12)
    assert below == top + 30 + BETWEEN
