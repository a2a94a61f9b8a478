"""A folder of videos with a file of actions beside each: NAME.mp4 and NAME.parquet, NAME.npz, NAME.csv or NAME.npy.
Of several cameras each has a video of its own, NAME.CAMERA.mp4.

A row of actions stands for a frame, and is what was done when it was seen. With a column `timestamp` (seconds) a row
stands for the frame that was shown then, whatever the video's rate; without it row i is that of frame i. A file
`source.json` may say the `embodiment`, `fps`, `action_names` and `text` of all of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwm.data.sources.base import (
    DAMAGE,
    Episode,
    Frames,
    Source,
    SourceOptions,
    choose_cameras,
    dimension_names,
    joined,
    leading,
    seen_by,
    told,
    view_names,
)
from hwm.data.sources.columns import READ_WHOLE
from hwm.data.sources.videos import is_video
from hwm.data.store import EpisodeError, Header
from hwm.errors import HwmError
from hwm.files import listed
from hwm.pictures.video import count_frames, frame_rate, read_at, read_video

ACTIONS = (".parquet", ".npz", *READ_WHOLE)
TIME = "timestamp"
DESCRIPTION = "source.json"
KEYS = ("action", "actions")
"""Columns that are taken for the actions where none are named; of text without them, all columns of numbers."""


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
        about, takes = _description(path), _takes(path)
        cameras = sorted({camera for take in takes for camera in take.videos})
        if "" in cameras and not options.camera:  # videos that are called as their actions are the camera's
            cameras, takes = [""], [take for take in takes if "" in take.videos]
        named = [camera for camera in cameras if camera]
        self.chosen = choose_cameras(options.camera, named, path) if named else ("",)
        self.takes, self.ids = takes, [take.name for take in takes]
        if not self.ids:
            raise HwmError(_none_beside(path))
        if options.camera and not named:
            raise HwmError(f"{path} is a folder of videos of one camera: leave out --camera")
        _one_file_each(path, takes)
        self.keys = tuple(options.action_keys)
        first = self._columns(takes[0].actions)
        self.keys = tuple(first)
        fps = options.source_fps or float(about.get("fps", 0)) or self._rate(takes[0])
        names = tuple(map(str, about.get("action_names", ()))) or dimension_names(
            list(first), [len(v[0]) for v in first.values()]
        )
        self.header = Header(
            embodiment=str(about.get("embodiment", path.resolve().name)),
            action_names=names,
            actions_per_step=1,
            fps=fps,
            source=f"videos in {path.resolve().name}",
            views=view_names(self.chosen),
        )
        self.notes = (told(self.chosen, named),) if named else ()
        self.text = str(about.get("text", ""))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and bool(_takes(path))

    def _rate(self, take: Take) -> float:
        """Rows a second, of the time stamps if there are any, else of the video."""
        times = _arrays(take.actions, (TIME,)).get(TIME)
        if times is None or len(times) < 2:
            return frame_rate(take.video(self.chosen[0]))
        return round(1 / float(np.median(np.diff(times))), 3)

    def _columns(self, path: Path) -> dict[str, np.ndarray]:
        """The columns that make up the actions, (N, width) each."""
        there = _names(path)
        keys = self.keys or tuple(k for k in KEYS if k in there)[:1]
        if not keys and path.suffix == ".csv":
            keys = tuple(k for k in there if k != TIME)
        missing = [k for k in keys if k not in there] or ([] if keys else [" or ".join(KEYS)])
        if missing:
            raise EpisodeError(f"{path.name} has no column {', '.join(missing)}; there are: {', '.join(there)}")
        columns = {k: v.reshape(len(v), -1) for k, v in _arrays(path, keys).items()}
        if not all(len(v) for v in columns.values()):
            raise EpisodeError(f"{path.name} has no rows")
        return columns

    def read(self, number: int) -> Episode:
        take = self.takes[number]
        columns = self._columns(take.actions)
        actions = leading(joined(list(columns.values())))
        times = _arrays(take.actions, (TIME,)).get(TIME)
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
            times=None if times is None else times.astype(np.float64),
            save_video=partial(self._save_video, take) if times is None else None,
        )

    def _save_video(self, take: Take, to: Path, view: str = "") -> None:
        views = self.header.views or ("",)
        shutil.copyfile(take.video(self.chosen[views.index(view)]), to)


def _same_length(video: Path, rows: int) -> None:
    frames = count_frames(video)
    if frames != rows:
        raise EpisodeError(f"{video.name} shows {frames} frames, its actions are of {rows}")


def _same_rate(video: Path, fps: float) -> None:
    rate = frame_rate(video)
    if abs(rate / fps - 1) > 0.01:
        raise EpisodeError(f"{video.name} has {rate:g} frames a second, where {fps:g} are stated")


def _frames(video: Path, times: np.ndarray | None) -> Frames:
    return partial(read_video, video) if times is None else partial(_at, video, times.astype(np.float64))


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


def _none_beside(path: Path) -> str:
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


def _description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    if not file.is_file():
        return {}
    try:
        about = json.loads(file.read_bytes())
        if not isinstance(about, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise HwmError(f"{file} cannot be read: {error}") from error
    return about


def _names(path: Path) -> list[str]:
    """Columns of a file of actions."""
    try:
        if path.suffix in READ_WHOLE:
            return list(READ_WHOLE[path.suffix](path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return list(file.files)
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)
    except DAMAGE as error:
        raise EpisodeError(f"{path.name} cannot be read: {error}") from error


def _arrays(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of some columns that are there, (N, ...) each."""
    wanted = [k for k in keys if k in _names(path)]
    if not wanted:
        return {}
    try:
        if path.suffix in READ_WHOLE:
            columns = READ_WHOLE[path.suffix](path)
            return {k: columns[k] for k in wanted}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {k: np.asarray(file[k]) for k in wanted}
        import pyarrow.parquet as pq

        return {k: column_values(column) for k, column in zip(wanted, pq.read_table(path, columns=wanted), strict=True)}
    except DAMAGE as error:
        raise EpisodeError(f"{path.name} cannot be read: {error}") from error


def column_values(column: Any) -> np.ndarray:
    """A column of numbers or of lists of numbers as an array, (N,) or (N, ...).

    Raises:
        EpisodeError: rows of different widths, or without a value.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape = [len(values)]
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        widths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(widths) > 1 or None in widths:
            raise EpisodeError(f"rows of different widths: {', '.join(map(str, widths))}")
        shape, values = [*shape, *(widths or [0])], values.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
