"""Several cameras as one picture, and one picture as several."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from hwm.errors import HwmError
from hwm.pictures.stack import Frames, Stacked, film, of_view, side_by_side
from hwm.pictures.video import to_uint8, to_video


def frames(count: int, size: tuple[int, int] = (4, 6), first: int = 0) -> Frames:
    def shown(every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        return (np.full((*size, 3), first + i, np.uint8) for i in range(count)[start:stop:every])

    return shown


def test_views_lie_one_below_the_other_in_step() -> None:
    both = Stacked({"top": frames(8), "wrist": frames(8, first=100)})
    shown = np.stack(list(both(2, 1, 6)))
    assert shown.shape == (3, 8, 6, 3)
    assert shown[:, :4].reshape(3, -1).tolist() == [[i] * 72 for i in (1, 3, 5)]
    assert shown[:, 4:].reshape(3, -1).tolist() == [[i] * 72 for i in (101, 103, 105)]


def test_pictures_of_another_size_take_that_of_the_first() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), np.uint8)
    both = Stacked({"top": frames(1), "wrist": lambda every=1, start=0, stop=None: iter(pictures)})
    (shown,) = both()
    assert np.array_equal(shown[4:], to_uint8(to_video(pictures, (4, 6)))[0])


@pytest.mark.parametrize(("top", "wrist", "short"), [(5, 4, "wrist"), (3, 6, "top")])
def test_a_camera_that_ends_early_is_named(top: int, wrist: int, short: str) -> None:
    both = Stacked({"top": frames(top), "wrist": frames(wrist)})
    with pytest.raises(HwmError, match=f"camera '{short}' ends after frame {min(top, wrist) - 1}, where"):
        list(both())
    assert len(list(both(stop=3))) == 3


def test_a_camera_that_cannot_be_read_is_named() -> None:
    def broken(every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        raise HwmError("the file is damaged")
        yield

    with pytest.raises(HwmError, match="camera 'wrist': the file is damaged"):
        list(Stacked({"top": frames(2), "wrist": broken})())


def test_views_apart_and_side_by_side() -> None:
    each = {"top": frames(3), "wrist": frames(3, (8, 6), 100)}
    both = film(("top", "wrist"), each)
    assert next(of_view(both, ("top", "wrist"), "wrist")()).shape == (8, 6, 3), "as it was filmed"

    def stacked(every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        return both(every, start, stop)

    assert np.unique(np.stack(list(of_view(stacked, ("top", "wrist"), "wrist")(stop=1)))).tolist() == [100]
    shown = side_by_side(np.stack(list(both())), 2)
    assert shown.shape == (3, 4, 12, 3)
    assert np.unique(shown[1, :, :6]).tolist() == [1]
    assert np.unique(shown[1, :, 6:]).tolist() == [101]
    assert film((), {"": each["top"]}) is each["top"]


def test_resizing_does_not_mix_views() -> None:
    picture = np.concatenate([np.zeros((1, 5, 7, 3), np.uint8), np.full((1, 5, 7, 3), 255, np.uint8)], 1)
    for size in ((6, 4), (16, 9)):
        video = to_video(picture, size, views=2)
        assert tuple(video.shape[-2:]) == size
        assert video[..., : size[0] // 2, :].max() == 0
        assert video[..., size[0] // 2 :, :].min() > 0.999
