"""Several cameras as one picture: views one below the other, as models see them, and side by side, as people do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Protocol

import numpy as np

from hwm.errors import HwmError
from hwm.pictures.video import to_uint8, to_video


class Frames(Protocol):
    """Frames of an episode, uint8 (H, W, 3), decoded as they are iterated over, in order.

    Raises:
        HwmError: while iterating, where a frame cannot be decoded or is not there.
    """

    def __call__(self, every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Those of steps start, start + every, ... before `stop`; None goes on to the last that there is."""
        ...


class Stacked:
    """Frames of several cameras as one taller picture: one below the other, each resized to the size of the first.

    Args:
        each: frames by the name of the view, from the top.
    """

    def __init__(self, each: Mapping[str, Frames]) -> None:
        self.each = dict(each)

    def __call__(self, every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        films = [_of_view(name, frames(every, start, stop)) for name, frames in self.each.items()]
        for count, pictures in enumerate(zip_longest(*films)):
            if short := [name for name, p in zip(self.each, pictures, strict=True) if p is None]:
                goes_on = next(name for name in self.each if name not in short)
                raise HwmError(
                    f"camera {short[0]!r} ends after frame {start + every * (count - 1)}, where {goes_on!r} goes on"
                )
            size = pictures[0].shape[:2]
            yield np.concatenate([resized(p, size) for p in pictures])


def _of_view(name: str, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    try:
        yield from frames
    except HwmError as error:
        raise HwmError(f"camera {name!r}: {error}") from error


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 (H, W, 3) of another (height, width)."""
    return picture if picture.shape[:2] == size else to_uint8(to_video(picture[None], size))[0]


def film(views: Sequence[str], frames: Mapping[str, Frames]) -> Frames:
    """The frames of an episode from those of its cameras: of one camera as they are, of several stacked."""
    return Stacked({view: frames[view] for view in views}) if views else next(iter(frames.values()))


def of_view(frames: Frames, views: Sequence[str], view: str) -> Frames:
    """What one camera of several saw: at its own size where its frames are known, else its part of the picture."""
    if isinstance(frames, Stacked):
        return frames.each[view]
    return partial(_part, frames, list(views).index(view), len(views))


def _part(
    frames: Frames, number: int, count: int, every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    for picture in frames(every, start, stop):
        yield np.split(picture, count)[number]


def below_one_another(picture: np.ndarray, views: int) -> np.ndarray:
    """The inverse of `side_by_side`, (..., H, V*W, 3) to (..., V*H, W, 3)."""
    return np.concatenate(np.split(picture, views, -2), -3) if views > 1 else picture


def side_by_side(pictures: np.ndarray, views: int) -> np.ndarray:
    """Stacked pictures (..., V*H, W, 3) as (..., H, V*W, 3), the first view on the left; of one view as they are."""
    return np.concatenate(np.split(pictures, views, -3), -2) if views > 1 else pictures
