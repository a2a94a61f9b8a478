"""A folder of videos with a file of actions beside each: NAME.mp4 and NAME.parquet, NAME.npz, NAME.csv or NAME.npy.
Of several cameras each has a video of its own, NAME.CAMERA.mp4.

A row of actions stands for a frame, and is what was done when it was seen. With a column `timestamp` (seconds) a row
stands for the frame that was shown then, whatever the video's rate; without it row i is that of frame i. A file
`source.json` may say the `embodiment`, `fps`, `action_names` and `text` of all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwm.data.fields import Fields
from hwm.data.sources.base import (
    Episode,
    Frames,
    Source,
    SourceOptions,
    choose_cameras,
    dimension_names,
    joined,
    leading,
    of_first,
    seen_by,
    told,
    view_names,
)
from hwm.data.sources.columns import KEYS, READ_WHOLE, TIME, columns_of, names_in, scalars
from hwm.data.sources.videos import is_video
from hwm.data.store import EpisodeError, Header
from hwm.errors import HwmError
from hwm.files import listed
from hwm.pictures.video import count_frames, frame_rate, read_at, read_video

ACTIONS = (".parquet", ".npz", *READ_WHOLE)
DESCRIPTION = "source.json"


class Take(NamedTuple):
    """Actions, and the videos beside them by camera; empty is the name of a single one."""

    name: str
    actions: Path
    videos: dict[str, Path]

    def video(self, camera: str) -> Path:
        if camera not in self.videos:
            there = ", ".join(self.videos)
            raise EpisodeError(f"{self.name} has no video of camera {camera!r}; there are those of: {there}")
        return self.videos[camera]


class Folder(Source):
    """Pairs of files in one folder.

    Raises:
        HwmError: no pair, a description that is none, or a first pair that cannot be read, which says what actions are.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = path
        if options.split:
            raise HwmError(f"{path} is a folder of videos: it has no splits by name")
        takes, self.about = _takes(path), Fields.read(path / DESCRIPTION, optional=True)
        cameras = sorted({camera for take in takes for camera in take.videos})
        if "" in cameras and not options.camera:  # videos that are called as their actions are the camera's
            cameras, takes = [""], [take for take in takes if "" in take.videos]
        named = [camera for camera in cameras if camera]
        self.chosen = choose_cameras(options.camera, named, path) if named else ("",)
        self.takes, self.ids = takes, [take.name for take in takes]
        if not self.ids:
            raise HwmError(none_beside(path))
        if options.camera and not named:
            raise HwmError(f"{path} is a folder of videos of one camera: leave out --camera")
        _one_file_each(path, takes)
        self.keys = tuple(options.action_keys)
        self.fps = options.source_fps or self.about.rate("fps", 0)
        self.keys, self.header = of_first(path, self.ids, self._look)
        self.notes = (told(self.chosen, named),) if named else ()
        self.text = self.about.text("text", "")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and bool(_takes(path))

    def _look(self, number: int) -> tuple[tuple[str, ...], Header]:
        """The columns of actions and what all episodes have in common, as far as one of them tells."""
        take, given = self.takes[number], self.about.texts("action_names")
        columns = self._columns(take.actions)
        names = dimension_names(list(columns), [v.shape[1] for v in columns.values()])
        if given and len(given) != len(names):
            where = f"{self.about.where}: action_names"
            raise EpisodeError(f"{where} are {len(given)}, {take.actions.name} has {len(names)}")
        header = Header(
            embodiment=self.about.text("embodiment", self.path.resolve().name),
            action_names=given or names,
            actions_per_step=1,
            fps=self.fps or self._rate(take),
            source=f"videos in {self.path.resolve().name}",
            views=view_names(self.chosen),
        )
        return tuple(columns), header

    def _rate(self, take: Take) -> float:
        """Rows a second, of the time stamps if there are any, else of the video."""
        times = _times(take.actions)
        if times is None or len(times) < 2:
            return frame_rate(take.video(self.chosen[0]))
        gap = float(np.median(np.diff(times)))
        if not 0 < gap < np.inf:
            raise EpisodeError(f"{take.actions.name}: the times of column {TIME} do not go on")
        return round(1 / gap, 3)

    def _columns(self, path: Path) -> dict[str, np.ndarray]:
        """The columns that make up the actions, (N, width) each."""
        there = names_in(path)
        keys = self.keys or tuple(k for k in KEYS if k in there)[:1]
        if not keys and path.suffix == ".csv":
            keys = tuple(k for k in there if k != TIME)
        missing = [k for k in keys if k not in there] or ([] if keys else [" or ".join(KEYS)])
        if missing:
            raise EpisodeError(f"{path.name} has no column {', '.join(missing)}; there are: {', '.join(there)}")
        columns = columns_of(path, keys)
        if not all(len(v) for v in columns.values()):
            raise EpisodeError(f"{path.name} has no rows")
        if empty := [k for k, v in columns.items() if not v.size]:
            raise EpisodeError(f"{path.name}: {empty[0]} has rows of no numbers")
        return {k: v.reshape(len(v), -1) for k, v in columns.items()}

    def read(self, number: int) -> Episode:
        take = self.takes[number]
        columns = self._columns(take.actions)
        actions = leading(joined(list(columns.values())))
        times = _times(take.actions)
        videos = {camera: take.video(camera) for camera in self.chosen}
        for video in videos.values() if times is None else ():
            _same_length(video, len(actions))
            _same_rate(video, self.header.fps)
        return Episode(
            id=self.ids[number],
            frames=seen_by(self.chosen, lambda camera: _frames(videos[camera], times)),
            actions=actions,
            embodiment=self.header.embodiment,
            fps=self.header.fps,
            text=self.text,
            times=times,
            save_video=partial(self._save_video, take) if times is None else None,
        )

    def _save_video(self, take: Take, to: Path, view: str = "") -> None:
        views = self.header.views or ("",)
        shutil.copyfile(take.video(self.chosen[views.index(view)]), to)


def _times(actions: Path) -> np.ndarray | None:
    """When each row was, in seconds, (N,); None where that is not said."""
    found = columns_of(actions, [name for name in names_in(actions) if name == TIME])
    return scalars(found[TIME], f"{actions.name}: {TIME}").astype(np.float64) if found else None


def _same_length(video: Path, rows: int) -> None:
    frames = count_frames(video)
    if frames != rows:
        raise EpisodeError(f"{video.name} shows {frames} frames, its actions are of {rows}")


def _same_rate(video: Path, fps: float) -> None:
    rate = frame_rate(video)
    if abs(rate / fps - 1) > 0.01:
        raise EpisodeError(f"{video.name} has {rate:g} frames a second, where {fps:g} are stated")


def _frames(video: Path, times: np.ndarray | None) -> Frames:
    return partial(read_video, video) if times is None else partial(_at, video, times)


def _at(
    video: Path, times: np.ndarray, every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    return read_at(video, times[start:stop:every], frame_rate(video))


def _takes(path: Path) -> list[Take]:
    """Actions that have videos, by name."""
    files = {p.name: p for p in listed(path) if p.is_file()}
    found: dict[str, Take] = {}
    for video in filter(is_video, sorted(files.values())):
        # NAME.CAMERA.mp4 is of a camera unless there are actions of that whole name
        for name, camera in ((video.stem, ""), (Path(video.stem).stem, Path(video.stem).suffix[1:])):
            beside = [files[f"{name}{s}"] for s in ACTIONS if f"{name}{s}" in files]
            if beside:
                videos = found.setdefault(name, Take(name, beside[0], {})).videos
                if camera in videos:
                    raise HwmError(f"{videos[camera]} and {video.name} are of the same actions: remove one")
                videos[camera] = video
                break
    return list(found.values())


def none_beside(path: Path) -> str:
    """That there are no pairs in a folder, and what lies beside a video instead."""
    names = [p.name for p in listed(path)]
    videos = {Path(name).stem for name in names if is_video(Path(name))}
    other = [n for n in names if Path(n).stem in videos and not is_video(Path(n))]
    unread = f"; {other[0]} is of a kind that is not read" if other else ""
    return f"{path} has no video with a file of actions beside it ({', '.join(ACTIONS)}){unread}"


def _one_file_each(path: Path, takes: Sequence[Take]) -> None:
    """Raise `HwmError` where a video has two files of actions, of which none may be chosen by guessing."""
    for take in takes:
        beside = [s for s in ACTIONS if take.actions.with_suffix(s).is_file()]
        if len(beside) > 1:
            video = next(iter(take.videos.values())).name
            raise HwmError(f"{path}: beside {video} lie actions as {' and '.join(beside)}: keep one of them there")
