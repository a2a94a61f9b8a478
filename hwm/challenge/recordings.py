"""Samples of the sampling track: a few frames that are seen, the actions up to the frame that is asked for, and, where
it is known, that frame.

Samples come out of any store with video, or out of a folder of 1X's raw test samples: a video of the frames that are
seen and a file of states each, without recordings.

Shapes: R rows of actions, A action dimension, F frames.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from hwm.assets import resolve_store
from hwm.challenge.formats import PictureFormat
from hwm.data.onex.layout import STATES, numbers_of, place_of, shard_files
from hwm.data.onex.specs import EMBODIMENT_1X
from hwm.data.readers import open_store
from hwm.data.store import Episode, Store
from hwm.errors import HwmError
from hwm.pictures.video import count_frames, read_video

KNOWN, TARGET = 17, 76
"""Frames that are seen, and the number of the one that is asked for, counted from 0: two seconds later."""


class Sample(NamedTuple):
    """One sample.

    Attributes:
        name: of its file.
        target: number of the frame that is asked for.
        frames: number -> (H, W, 3) uint8, counted from the first frame that is seen.
        actions: (R, A) from the first frame to the one that is asked for, `rate` rows a frame; those of frame i,
            which lead to it, are rows i * rate to (i + 1) * rate - 1.
    """

    name: str
    target: int
    frames: dict[int, np.ndarray]
    actions: np.ndarray

    def stack(self, numbers: np.ndarray) -> np.ndarray:
        """Frames by number: (...) -> (..., H, W, 3)."""
        found = np.stack([self.frames[int(i)] for i in numbers.flat])
        return found.reshape(*numbers.shape, *found.shape[1:])


class Recordings(Protocol):
    """Samples, made one at a time.

    Attributes:
        path: where they are from.
        names: a name a sample.
        episodes: the episode that each sample is from.
        known, target: see `KNOWN` and `TARGET`.
        rate: rows of actions a frame.
        embodiment: whose actions these are.
        scored: whether the frame that is asked for is known.
    """

    path: Path
    names: list[str]
    episodes: list[str]
    known: int
    target: int
    rate: int
    embodiment: str
    scored: bool

    def sample(self, number: int, wanted: Collection[int]) -> Sample:
        """A sample with these of its frames; of those that are asked for, only where it is `scored`."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a sample begins: a frame of an episode."""

    episode: Episode
    frame: int


class FromStore:
    """Windows of a store with video, spread evenly over it.

    Args:
        clips: at most so many.

    Raises:
        HwmError: no video, no window of that length, or frames that lie between actions.
    """

    scored = True

    def __init__(
        self, store: Store, known: int = KNOWN, target: int = TARGET, clips: int = PictureFormat.samples
    ) -> None:
        if not store.has_video:
            raise HwmError(
                f"{store.path} has no video to take frames from: name a folder of 1X's raw video, or a store that was "
                "encoded with --keep-video"
            )
        self.store, self.path, self.known, self.target = store, store.path, known, target
        self.embodiment = store.header.embodiment
        spans = {episode.frames_per_step for episode in store.episodes}
        k = store.header.actions_per_step
        if len(spans) != 1 or k % (span := spans.pop()):
            raise HwmError(
                f"{store.path}: {k} actions a step do not divide among its frames; frames_per_step must be the same "
                "for all episodes and a divisor of that"
            )
        self.span, self.rate = span, k // span
        starts, stops = store.bounds
        # frames of an episode that actions lead to: its last step shows one
        places = np.maximum((stops - starts - 1) * span + 1 - target, 0)
        ends = np.cumsum(places)
        if not ends[-1]:
            longest = int(((stops - starts - 1) * span + 1).max())
            raise HwmError(
                f"{store.path}: no episode has the {target + 1} frames of a sample; the longest has {longest}. Choose "
                "an earlier --target"
            )
        chosen = np.unique(np.linspace(0, ends[-1] - 1, min(clips, int(ends[-1]))).round().astype(int))
        number = np.searchsorted(ends, chosen, side="right")
        frames = chosen - (ends - places)[number]
        self.places = [Place(store.episodes[int(n)], int(f)) for n, f in zip(number, frames, strict=True)]
        self.names = [f"{place.episode.id}_{place.frame:06d}" for place in self.places]
        self.episodes = [place.episode.id for place in self.places]

    def sample(self, number: int, wanted: Collection[int]) -> Sample:
        place = self.places[number]
        stop = place.frame + max(wanted) + 1
        shown = enumerate(self.store.frames(place.episode, start=place.frame, stop=stop))
        frames = {i: frame for i, frame in shown if i in wanted}
        if len(frames) < len(wanted):
            raise HwmError(
                f"{self.path}: the video of {place.episode.id!r} ends before frame {stop - 1}, to which it has actions"
            )
        return Sample(self.names[number], self.target, frames, self._actions(place))

    def _actions(self, place: Place) -> np.ndarray:
        """The rows that lead to frame f of an episode are rows f * rate + K - rate on of all its actions in order."""
        k, dims = self.store.actions.shape[1:]
        first = place.frame * self.rate + k - self.rate
        last = first + (self.target + 1) * self.rate
        steps = slice(place.episode.start + first // k, place.episode.start - (-last // k))
        rows = np.asarray(self.store.actions[steps], np.float32).reshape(-1, dims)
        return rows[first % k : first % k + last - first]


class RawTest:
    """1X's raw test samples: `video_{i}.mp4` of the frames that are seen and `states_{i}.bin`, in a tree or flat.

    The published states have 97 rows a sample, of which those up to the frame that is asked for are used.

    Raises:
        HwmError: a file is missing, too short, or no whole number of states.
    """

    scored, rate, embodiment = False, 1, EMBODIMENT_1X

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return bool(numbers_of(path, "video", ".mp4")) and not numbers_of(path, "segments")

    def __init__(self, path: Path, known: int = KNOWN, target: int = TARGET, clips: int | None = None) -> None:
        self.path, self.known, self.target = path, known, target
        files = shard_files(path, ".mp4", ("video", "states"))
        self.files = dict(list(files.items())[:clips])
        self.names = [str(number) for number in self.files]
        self.episodes = self.names
        for file in self.files.values():
            size = file["states"].stat().st_size
            rows, rest = divmod(size, 4 * STATES)
            if rest or rows <= target:
                raise HwmError(
                    f"{file['states']} has {size:,} bytes, expected at least {4 * STATES * (target + 1):,} for the "
                    f"states up to frame {target}, in whole rows of {4 * STATES}: fetch it again"
                )
            if count_frames(file["video"]) >= rows:
                raise HwmError(
                    f"{file['video']} has a frame for each of its {rows:,} states, so it is a recording and no test "
                    f"sample: {place_of(path, 'segments', 'N').name} is missing, fetch it too"
                )

    def sample(self, number: int, wanted: Collection[int]) -> Sample:
        name = self.names[number]
        file = self.files[int(name)]
        frames = dict(enumerate(read_video(file["video"], stop=self.known)))
        if len(frames) < self.known:
            raise HwmError(
                f"{file['video']} shows {len(frames)} frames, expected {self.known} at least: fetch it again, or give "
                "a smaller --known"
            )
        states = np.fromfile(file["states"], "<f4").reshape(-1, STATES)[: self.target + 1]
        return Sample(name, self.target, {i: frames[i] for i in wanted}, states)


def recordings(data: str | Path, known: int = KNOWN, target: int = TARGET, clips: int | None = None) -> Recordings:
    """The samples of a folder of raw test samples, or of any store with video.

    Args:
        known: frames that are seen.
        target: the frame that is asked for, counted from the first that is seen.
        clips: at most so many samples; by default all of a test folder, and 250 of a store.
    """
    if not 1 <= known <= target or (clips is not None and clips < 1):
        raise HwmError(
            f"the frame asked for ({target}) comes after the {known} that are seen, of {clips} samples at least 1"
        )
    path = resolve_store(data)
    if path.is_dir() and RawTest.recognises(path):
        return RawTest(path, known, target, clips)
    return FromStore(open_store(data), known, target, clips or PictureFormat.samples)
