"""Panels side by side: pictures in their places, names and captions."""

from __future__ import annotations

import numpy as np
import pytest

from hwm.errors import HwmError
from hwm.pictures.canvas import CONTEXT_COLOUR, FUTURE_COLOUR, enlarge
from hwm.pictures.panels import compose, difference


def noise(frames: int, height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_difference() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert (difference(black, black) == 0).all()
    assert (difference(black, white) == difference(white, black)).all()
    levels = [difference(black, black + np.uint8(d)).mean() for d in (0, 20, 60, 100, 127)]
    assert levels == sorted(levels)


@pytest.mark.parametrize("columns", [None, 1, 2])
def test_compose(columns: int | None) -> None:
    panels = {"one": noise(4), "two": noise(4, seed=1), "three": noise(4, seed=2)}
    frames = list(compose(panels, ["a", "b", "c", "d"], context=2, columns=columns, scale=3))
    assert len(frames) == 4
    assert all(f.shape == frames[0].shape and f.dtype == np.uint8 for f in frames)
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    big = enlarge(panels["one"][3], 3)
    assert big.shape == (60, 90, 3)
    rows = [y for y in range(40) if (frames[3][y : y + 60, :90] == big).all()]
    assert len(rows) == 1, "the panel is there, pixel for pixel, each a square of 3"
    assert (frames[0] == np.array(CONTEXT_COLOUR)).all(-1).any()
    assert (frames[3] == np.array(FUTURE_COLOUR)).all(-1).any()


def test_panels_may_have_another_name_during_the_context() -> None:
    panels = {"made": np.zeros((3, 20, 90, 3), np.uint8), "truth": np.zeros((3, 20, 90, 3), np.uint8)}
    frames = list(compose(panels, ["", "", ""], context=2, context_names={"made": "told"}, scale=1))
    named = list(compose({"told": panels["truth"], "truth": panels["truth"]}, ["", "", ""], context=2, scale=1))
    assert (frames[1] == named[1]).all()
    assert (frames[2] != named[2]).any()


def test_the_bar_shows_how_far_the_clip_is() -> None:
    panels = {"one": np.zeros((4, 20, 80, 3), np.uint8)}
    for f, frame in enumerate(compose(panels, ["", "", "", ""], context=2, scale=1)):
        shown = [(CONTEXT_COLOUR if i < 2 else FUTURE_COLOUR) for i in range(4)]
        want = [c if i <= f else tuple(v // 4 for v in c) for i, c in enumerate(shown)]
        row = next(y for y in range(frame.shape[0]) if (frame[y, 5] == want[0]).all())
        assert [tuple(frame[row, 20 * i + 5].tolist()) for i in range(4)] == want


def test_compose_refuses_what_does_not_fit() -> None:
    with pytest.raises(HwmError, match="one shape"):
        list(compose({"a": noise(2), "b": noise(3)}, ["", ""]))
    with pytest.raises(HwmError, match="captions"):
        list(compose({"a": noise(2)}, [""]))
