"""Procedural textures are small uint8 pictures that repeat for the same generator."""

from __future__ import annotations

import numpy as np
import pytest

from hwm.sim import patterns

MAKERS = [
    lambda rng: patterns.floor(rng, 0.4),
    lambda rng: patterns.wall(rng, 0.4),
    patterns.table_top,
    patterns.poster,
    patterns.door,
]


@pytest.mark.parametrize("make", MAKERS)
def test_textures(make) -> None:
    pictures = [make(np.random.default_rng(seed)) for seed in range(12)]
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert max(picture.shape) <= 256
    assert np.array_equal(pictures[3], make(np.random.default_rng(3)))
    assert len({picture.tobytes() for picture in pictures}) == 12


def test_colour_is_safe_for_any_number() -> None:
    assert patterns.colour(-3.25, 2.0, 5.0) == patterns.colour(0.75, 1.0, 1.0)
