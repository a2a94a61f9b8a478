"""Sheets of pictures in rows and columns, with titles, headings and notes: contact sheets and comic strips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from hwm.pictures.canvas import DIM, GAP, INK, PAPER, Colour, enlarge, fitting_size, font, line_height, text_width

MARGIN, BETWEEN = 12, 22
"""Pixels around the sheet, and between two blocks or two groups of columns."""

Heading = tuple[str, Colour]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Pictures side by side.

    Attributes:
        pictures: (N, H, W, 3) uint8.
        name: stands before them.
        notes: stand below them, one each; none leaves no room.
    """

    pictures: np.ndarray
    name: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of one number of pictures and one size below each other.

    Attributes:
        title: the line above.
        heads: above each column.
        groups: first column -> what stands over the columns from there on; they are set apart from those before.
    """

    rows: Sequence[Row]
    title: str = ""
    heads: Sequence[Heading] = ()
    groups: Mapping[int, Heading] = field(default_factory=dict)


def draw_sheet(blocks: Sequence[Block], scale: int = 1) -> np.ndarray:
    """Blocks below one another in one picture, uint8 (height, width, 3).

    Args:
        scale: whole factor of enlargement of the pictures.
    """
    wide = min(row.pictures.shape[2] for b in blocks for row in b.rows) * scale
    texts = [t for b in blocks for t in (*(h for h, _ in b.heads), *(n for row in b.rows for n in row.notes))]
    size = fitting_size(texts, wide, largest=max(12, wide // 9))
    left = max(text_width(row.name, size) for b in blocks for row in b.rows)
    drawn = [_block(b, scale, size, left + GAP + 2 if left else 0) for b in blocks]
    width = max(image.width for image in drawn)
    height = sum(image.height for image in drawn) + BETWEEN * (len(drawn) - 1)
    sheet, top = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER), MARGIN
    for image in drawn:
        sheet.paste(image, (MARGIN, top))
        top += image.height + BETWEEN
    return np.array(sheet)


def _block(block: Block, scale: int, size: int, left: int) -> Image.Image:
    """One block; its pictures begin `left` pixels from the edge."""
    count, high, wide = block.rows[0].pictures.shape[:3]
    high, wide, line = high * scale, wide * scale, line_height(size)
    before = [sum(0 < first <= i for first in block.groups) for i in range(count)]  # groups that begin up to here
    xs = [left + i * (wide + GAP) + n * (BETWEEN - GAP) for i, n in enumerate(before)]
    lines: list[list[tuple[int, Heading]]] = [
        [(0, (block.title, INK))] if block.title else [],
        [(xs[first], heading) for first, heading in block.groups.items()],
        list(zip(xs, block.heads, strict=True)) if block.heads else [],
    ]
    lines = [texts for texts in lines if texts]
    ends = [x + text_width(text, size) for texts in lines for x, (text, _) in texts]
    below = [line if row.notes else GAP if row is not block.rows[-1] else 0 for row in block.rows]
    image = Image.new("RGB", (max(xs[-1] + wide, *ends, 0), len(lines) * line + len(below) * high + sum(below)), PAPER)
    draw = ImageDraw.Draw(image)
    for number, texts in enumerate(lines):
        for x, (text, colour) in texts:
            draw.text((x, number * line), text, colour, font(size))
    y = len(lines) * line
    for row, room in zip(block.rows, below, strict=True):
        draw.text((0, y + high // 2), row.name, INK, font(size), anchor="lm")
        for i, (x, picture) in enumerate(zip(xs, row.pictures, strict=True)):
            image.paste(Image.fromarray(enlarge(picture, scale)), (x, y))
            if row.notes:
                draw.text((x, y + high + 1), row.notes[i], DIM, font(size))
        y += high + room
    return image
