"""Sizes of pictures and of text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hwm.pictures.canvas import enlargement, fitting_size, font, line_height, shrink, text_width


@pytest.mark.parametrize("size", [10, 14, 18])
def test_text_takes_the_room_that_is_kept_for_it(size: int) -> None:
    text = "jÅgy W 22.0 dB"
    image = Image.new("L", (400, 80))
    ImageDraw.Draw(image).text((20, 20), text, 255, font(size))
    rows, columns = np.nonzero(np.asarray(image))
    assert columns.min() >= 20 - 1
    assert text_width(text, size) * 0.9 < columns.max() - 20 <= text_width(text, size)
    assert rows.min() >= 20 - 1
    assert line_height(size) * 0.6 < rows.max() + 1 - rows.min() < line_height(size)


def test_the_largest_size_that_fits_is_taken() -> None:
    texts = ["short", "22.0 dB, copy 20.5"]
    for width in (60, 100, 140, 400):
        size = fitting_size(texts, width, largest=18)
        assert 10 <= size <= 18
        assert size == 10 or text_width(texts[1], size) <= width
        assert size == 18 or text_width(texts[1], size + 1) > width
    assert fitting_size([], 10, largest=18) == 18
    assert fitting_size(["far too long for it"], 5, largest=8) == 8


def test_pictures_come_to_about_a_width() -> None:
    assert [enlargement(np.zeros((1, 4, wide, 3)), 256) for wide in (30, 128, 255, 2000)] == [9, 2, 1, 1]


def test_shrinking_averages_blocks() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (2, 65, 101, 3), dtype=np.uint8)
    blocks = picture[:, :64, :100].reshape(2, 32, 2, 50, 2, 3).astype(int)
    assert np.array_equal(shrink(picture, 50), (blocks.sum((2, 4)) + 2) // 4)
    assert np.array_equal(shrink(picture, 128), picture)
