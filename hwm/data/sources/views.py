"""Sources seen differently: other actions, another rate, another cut of the picture. They combine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

import numpy as np

from hwm.data.sources.base import Episode, Frames, Source
from hwm.errors import HwmError
from hwm.pictures.stack import Stacked

SLACK = 0.01
"""In frames: time stamps that are this near are the same moment."""


class View(Source):
    """Another source's episodes, changed one by one."""

    def __init__(self, source: Source) -> None:
        self.source, self.path, self.header, self.ids = source, source.path, source.header, source.ids
        self.steps, self.notes, self.options = source.steps, source.notes, source.options

    def change(self, episode: Episode) -> Episode:
        raise NotImplementedError

    def read(self, number: int) -> Episode:
        return self.change(self.source.read(number))

    def __getitem__(self, number: int) -> Episode:
        return self.change(self.source[number])  # which is checked there


class Split(View):
    """Episodes a to b of a source, written as slices are: `[:200]`, `[95%:]`, `[10:20]`.

    Raises:
        HwmError: it is written otherwise, or leaves no episode.
    """

    def __init__(self, source: Source, bounds: str) -> None:
        super().__init__(source)
        match = re.fullmatch(r"\[(-?\d+%?)?:(-?\d+%?)?\]", bounds)
        if not match:
            raise HwmError(f"{bounds!r} is no part of a split: write it as [:200], [95%:] or [10:20]")
        start, stop = (self._place(text) for text in match.groups())
        self.numbers = range(len(source))[start:stop]
        if not self.numbers:
            raise HwmError(f"{bounds} of the {len(source)} episodes of {self.path} are none")
        self.steps = round(source.steps * len(self.numbers) / len(source))
        self.ids = source.ids[start:stop]

    def _place(self, text: str | None) -> int | None:
        if text is None:
            return None
        return round(len(self.source) * int(text[:-1]) / 100) if text.endswith("%") else int(text)

    def read(self, number: int) -> Episode:
        return self.source.read(self.numbers[number])

    def __getitem__(self, number: int) -> Episode:
        return self.source[self.numbers[number]]


class Selected(View):
    """Some dimensions of the actions, or another name for the robot.

    Args:
        patterns: names with `*` and `?`; dimensions are taken in the order of the patterns, and within one in their
            own. None of them takes all.
        embodiment: what to call a robot that has these actions; empty keeps the name.

    Raises:
        HwmError: a pattern that no dimension matches, or some dimensions under the name of the robot that has all.
    """

    def __init__(self, source: Source, patterns: tuple[str, ...] = (), embodiment: str = "") -> None:
        super().__init__(source)
        names, chosen = self.header.action_names, dict[int, None]()
        for pattern in patterns or ("*",):
            found = [i for i, name in enumerate(names) if fnmatchcase(name, pattern)]
            if not found:
                raise HwmError(f"no action of {self.path} is called {pattern!r}; there are: {', '.join(names)}")
            chosen |= dict.fromkeys(found)
        self.columns = list(chosen)
        if self.columns != list(range(len(names))) and embodiment in ("", self.header.embodiment):
            raise HwmError(
                f"{len(chosen)} of the {len(names)} actions of {self.header.embodiment!r} are another embodiment: "
                "name it with --embodiment"
            )
        self.header = replace(
            self.header,
            action_names=tuple(names[i] for i in self.columns),
            embodiment=embodiment or self.header.embodiment,
        )

    def change(self, episode: Episode) -> Episode:
        return replace(
            episode,
            actions=np.ascontiguousarray(episode.actions[..., self.columns]),
            embodiment=self.header.embodiment,
        )


class Resampled(View):
    """Another number of steps a second, by time stamps.

    Step j shows the frame nearest to j / fps. Its K actions are those in force at K moments that lie evenly between the
    step before and it; K is the nearest whole number of actions of that time. Where the rates divide, these are all
    actions, as with `--every`.

    Raises:
        HwmError: more steps a second than there are.
    """

    def __init__(self, source: Source, fps: float) -> None:
        super().__init__(source)
        ratio = self.header.fps / fps
        if ratio < 1 - SLACK:
            raise HwmError(f"{self.path} has {self.header.fps:g} steps a second: {fps:g} cannot be made of them")
        self.fps, self.per_step = fps, max(1, round(ratio * self.header.actions_per_step))
        self.header = replace(self.header, fps=fps, actions_per_step=self.per_step)
        self.steps = round(self.steps / ratio)

    def change(self, episode: Episode) -> Episode:
        times = np.arange(episode.steps) / episode.fps if episode.times is None else episode.times - episode.times[0]
        steps = 1 + int(times[-1] * self.fps + SLACK)
        wanted = np.arange(steps) / self.fps
        nearest = np.searchsorted((times[1:] + times[:-1]) / 2, wanted - SLACK / episode.fps)
        return replace(
            _without_file(episode),
            frames=_each(episode.frames, lambda frames: partial(_frames_of, frames, nearest)),
            actions=_in_force(episode.actions, times, 1 / episode.fps, wanted, self.per_step, 1 / self.fps),
            fps=self.fps,
            times=None,
        )


def _without_file(episode: Episode) -> Episode:
    """The episode without the video file that its frames come from, and where in it they are."""
    info = {k: v for k, v in episode.info.items() if k not in ("video", "first_frame", "frames_per_step")}
    return replace(episode, info=info, save_video=None)


def _in_force(
    actions_NKA: np.ndarray, times: np.ndarray, gap: float, wanted: np.ndarray, per_step: int, step: float
) -> np.ndarray:
    """The actions in force at `per_step` moments up to each wanted time: (len(wanted), per_step, A)."""
    n, k, a = actions_NKA.shape
    # the K actions of a row fill the time since the row before it, one after the other
    before = np.concatenate([[times[0] - gap], times[:-1]])
    until = (before[:, None] + (np.arange(k) + 1) / k * (times - before)[:, None]).ravel()
    moments = wanted[:, None] + ((np.arange(per_step) + 1) / per_step - 1) * step
    rows = np.searchsorted(until, moments - SLACK * gap / k).clip(max=n * k - 1)
    return actions_NKA.reshape(n * k, a)[rows]


def _each(frames: Frames, change: Callable[[Frames], Frames]) -> Frames:
    """Frames that are changed; of several cameras each by itself."""
    return Stacked({k: change(v) for k, v in frames.each.items()}) if isinstance(frames, Stacked) else change(frames)


def _frames_of(
    frames: Frames, numbers: np.ndarray, every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """Frames by number; the numbers ascend, and may repeat."""
    wanted = numbers[start:stop:every]
    if not len(wanted):
        return
    gaps = np.unique(np.diff(wanted))
    gap = int(gaps[0]) if len(gaps) == 1 and gaps[0] > 0 else 1
    first, at = int(wanted[0]), 0
    for number, frame in zip(
        range(first, int(wanted[-1]) + 1, gap), frames(gap, first, int(wanted[-1]) + 1), strict=False
    ):
        while at < len(wanted) and wanted[at] == number:
            yield frame
            at += 1


class Cropped(View):
    """The middle of each camera's picture, as large as it can be in the proportions of `size` (height, width)."""

    def __init__(self, source: Source, size: tuple[int, int]) -> None:
        super().__init__(source)
        self.size = size

    def change(self, episode: Episode) -> Episode:
        return replace(
            _without_file(episode), frames=_each(episode.frames, lambda frames: partial(self._frames, frames))
        )

    def _frames(self, frames: Frames, every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        for frame in frames(every, start, stop):
            yield middle(frame, self.size)


def middle(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture (H, W, 3) in the proportions of `size`, up to half a pixel."""
    high, wide = frame.shape[:2]
    keep_high, keep_wide = min(high, round(wide * size[0] / size[1])), min(wide, round(high * size[1] / size[0]))
    top, left = (high - keep_high) // 2, (wide - keep_wide) // 2
    return frame[top : top + keep_high, left : left + keep_wide]
