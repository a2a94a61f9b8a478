"""Where episodes lie in a video that several share, as far as their places confirm one another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwm.data.fields import Fields
from hwm.data.header import EpisodeError
from hwm.errors import HwmError
from hwm.pictures.video import count_frames

HALF = 0.5
"""Of a frame: as near as a place must be."""


class Place(NamedTuple):
    """The part of a video that an episode is said to be, in frames, which need not be whole numbers."""

    begin: float
    end: float
    episode: int


def astray(places: Iterable[Place], known: Collection[int], frames: Callable[[], int]) -> set[int]:
    """Numbers of the episodes whose place in a video is confirmed by nothing: most likely it is shifted.

    Episodes fill a file one after another. A row of them that touch is where it belongs if it begins with the file's
    first frame or ends with its last. So it is if it lies beside a gap of episodes that were taken out of the data set,
    as nothing more can be known of it. Where two begin with the same frame, it is not known whose it is.

    Args:
        places: of all episodes of the file.
        known: numbers of all episodes of the data set.
        frames: counts those of the file; called only where the places alone do not tell.
    """
    placed, final = sorted(places), max(known, default=0)

    def taken_out(episode: int) -> bool:
        return 0 <= episode <= final and episode not in known

    def confirms(edge: int) -> bool:
        """Whether the edge before a place says that the row beside it is right."""
        if edge == 0:
            return _same(placed[0].begin, 0) or taken_out(placed[0].episode - 1)
        if edge == len(placed):
            return taken_out(placed[-1].episode + 1) or _same(placed[-1].end, frames())
        before, after = placed[edge - 1 : edge + 1]
        return after.begin > before.end and taken_out(before.episode + 1)

    apart = [i for i in range(1, len(placed)) if not _same(placed[i - 1].end, placed[i].begin)]
    rows = pairwise([0, *apart, len(placed)])
    loose = {p.episode for i, j in rows if not (confirms(i) or confirms(j)) for p in placed[i:j]}
    return loose | _sharing(placed)


def _sharing(placed: Sequence[Place]) -> set[int]:
    """Numbers of the episodes that begin with the same frame as another; they are in the order of their beginnings."""
    some = [p for p in placed if p.end > p.begin]
    return {p.episode for a, b in pairwise(some) if _same(a.begin, b.begin) for p in (a, b)}


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= HALF


class Placed:
    """Where the episodes of a LeRobot data set say that they lie in the videos of a camera.

    Args:
        episodes: what is said of each of them.
        file_of: the video of one.
    """

    def __init__(self, episodes: Sequence[Fields], camera: str, fps: float, file_of: Callable[[Fields], Path]) -> None:
        self.stamps, self.fps = f"videos/{camera}/", fps
        self.places: dict[Path, list[Place]] = {}
        for about in episodes:
            with suppress(HwmError):  # what is wrong with an episode is said when it is read itself
                self.places.setdefault(file_of(about), []).append(self._place(about))
        self.known = {place.episode for placed in self.places.values() for place in placed}
        self.astray: dict[Path, set[int]] = {}

    def _place(self, about: Fields) -> Place:
        begin = about.number(f"{self.stamps}from_timestamp")
        end = about.number(f"{self.stamps}to_timestamp", begin + about.whole("length") / self.fps)
        return Place(begin * self.fps, end * self.fps, about.whole("episode_index"))

    def begin(self, about: Fields, file: Path, times: np.ndarray) -> float:
        """The second of the video at which an episode begins.

        Args:
            times: (N,) seconds of its rows, from there on.

        Raises:
            EpisodeError: the video is said to last longer or shorter than the episode, it lies elsewhere, or the times
                reach into another.
        """
        begin, end, episode = self._place(about)
        where, length = f"{about.where}: {self.stamps}from_timestamp", about.whole("length")
        if abs(end - begin - length) > HALF:
            raise EpisodeError(f"{where} and to_timestamp are {end - begin:.4g} frames apart, the episode has {length}")
        if ((times * self.fps < -HALF) | (times * self.fps > length - HALF)).any():
            raise EpisodeError(
                f"timestamp runs from {times.min():.4g} to {times.max():.4g} s, where {length} frames from 0 s on are "
                "expected: it counts from the beginning of each episode"
            )
        if file not in self.astray:
            self.astray[file] = astray(self.places[file], self.known, partial(count_frames, file))
        if episode in self.astray[file]:
            raise EpisodeError(
                f"{where} is frame {begin:.4g} of {file.name}, where the episode before it does not end; nor does the "
                f"next one begin at frame {end:.4g}, where it is to end: it is shifted"
            )
        return begin / self.fps
