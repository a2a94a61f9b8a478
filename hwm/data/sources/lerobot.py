"""LeRobot data sets, v2.0, v2.1 and v3.0, read in place: parquet and mp4, without the package `lerobot`.

`meta/info.json` describes both layouts. Before 3.0 every episode has its own files; in 3.0 several share one, and
`meta/episodes` says which rows and which seconds of video are whose
([format](https://huggingface.co/docs/lerobot/lerobot-dataset-v3)). A row pairs a frame with the action that was taken
when it was seen. `meta/hwm.json`, where it is there, was written by `hwm export lerobot`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwm.data.fields import Fields
from hwm.data.sources.base import (
    Episode,
    Frames,
    Source,
    SourceOptions,
    as_id,
    check_times,
    choose,
    choose_cameras,
    dimension_names,
    joined,
    leading,
    reading,
    seen_by,
    stated,
    together,
    told,
    view_names,
)
from hwm.data.sources.columns import column_values, scalars
from hwm.data.sources.places import Placed
from hwm.data.store import EpisodeError, Header
from hwm.errors import HwmError
from hwm.far import near
from hwm.files import listed
from hwm.pictures.files import read_picture
from hwm.pictures.video import count_frames, read_at

ACTION = "action"
EPISODE = "episode_index"
OURS = "meta/hwm.json"


class LeRobot(Source):
    """A folder with a data set.

    Raises:
        HwmError: files are missing or damaged, a version that is not known, no actions, or cameras to choose from.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = path
        self.info = info = _info(path)
        self.features = info.part("features")
        self.cameras = _cameras(self.features)
        self.keys = tuple(options.action_keys) or (ACTION,)
        self.chosen, widths, self.fps = together(
            path,
            lambda: choose_cameras(options.camera, self.cameras, path),
            self._widths,
            lambda: stated(info.where, options.source_fps or info.rate("fps", 0)),
        )
        ours = path / OURS
        self.ours = Fields.read(ours, optional=True) if self.keys == (ACTION,) else Fields(ours, {})
        names = self.ours.texts("action_names") or _dimensions(self.keys, widths, self.features)
        self.header = Header(
            embodiment=self.ours.text("embodiment", "") or info.text("robot_type", "") or path.resolve().name,
            action_names=names,
            actions_per_step=self.ours.whole("actions_per_step", 1),
            fps=self.fps,
            source=self.ours.text("source", f"LeRobot {path.resolve().name}"),
            views=view_names(self.chosen),
        )
        self.all = self._episodes()
        self.episodes = self._of_split(options.split)
        if not self.episodes:
            raise HwmError(f"{path} has no episodes")
        given = self.ours.part("episodes")
        numbers = [e.whole("episode_index") for e in self.episodes]
        self.ids = [as_id(given.text(str(i), f"episode_{i:06d}")) for i in numbers]
        self.steps = sum(length for e in self.episodes if isinstance(length := e.get("length"), int))
        self.notes = (told(self.chosen, self.cameras),)
        self._file: tuple[Path, Any, np.ndarray] | None = None
        self._placed: dict[str, Placed] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        info = path / "meta" / "info.json"
        return info.is_file() and b"codebase_version" in info.read_bytes()

    @property
    def shared_files(self) -> bool:
        """Whether several episodes lie in one file, as from 3.0 on."""
        return self.info.text("codebase_version").startswith("v3.")

    def _widths(self) -> list[int]:
        """How many numbers each of the actions' features has."""
        if missing := [k for k in self.keys if k not in self.features]:
            numeric = [k for k in self.features if k not in self.cameras]
            raise HwmError(
                f"{self.path} has no {', '.join(missing)}; there are: {', '.join(numeric)}. Name others with "
                "--action-keys"
            )
        features = [self.features.part(key) for key in self.keys]
        for feature in features:
            feature.need("shape")
        return [math.prod(feature.wholes("shape")) for feature in features]

    def _episodes(self) -> list[Fields]:
        """What is said of each episode, in order."""
        if not self.shared_files:
            return Fields.read_lines(self.path / "meta" / "episodes.jsonl")
        import pyarrow.parquet as pq

        files = listed(self.path / "meta" / "episodes", "*/*.parquet")
        if not files:
            raise HwmError(f"{self.path} lacks meta/episodes, which say where each episode lies")
        rows: list[Fields] = []
        for file in files:
            with reading(file):
                names = [n for n in pq.read_schema(file).names if not n.startswith("stats/")]
                table = pq.read_table(file, columns=names).to_pylist()
            rows += [Fields(f"{file}, row {i}", row) for i, row in enumerate(table)]
        return rows

    def _of_split(self, split: str) -> list[Fields]:
        if not split:
            return self.all
        splits = self.info.part("splits")
        chosen = choose("split", split, list(splits), self.path, "--split")
        bounds = re.fullmatch(r"(\d+):(\d+)", splits.text(chosen))
        if not bounds:
            raise HwmError(
                f"{splits.where}: {chosen} is {splits.text(chosen)!r}, where FIRST:END are expected, numbers of "
                "episodes: mend it, or take a part of all with --split '[:80%]'"
            )
        return self.all[int(bounds[1]) : int(bounds[2])]

    def read(self, number: int) -> Episode:
        about = self.episodes[number]
        index, length = about.whole("episode_index"), about.whole("length")
        rows = self._rows(about)
        times = scalars(rows["timestamp"], "timestamp").astype(np.float64)
        if len(times) != length:
            raise EpisodeError(f"has {len(times)} rows, where {length} are stated")
        check_times(f"{self.path}: episode {self.ids[number]!r}", times, length, self.fps)
        actions = leading(joined([rows[k] for k in self.keys]))
        if self.ours.values:
            actions = actions.reshape(len(actions), *self.header.action_shape)
        return Episode(
            id=self.ids[number],
            frames=seen_by(self.chosen, partial(self._frames, about, times)),
            actions=actions,
            embodiment=self.header.embodiment,
            fps=self.header.fps,
            text="; ".join(about.texts("tasks")),
            times=times,
            info={"episode_index": index},
        )

    def _rows(self, about: Fields) -> dict[str, np.ndarray]:
        """Actions and time stamps of an episode; what is wrong with those of others in its file is no fault of it."""
        file, names = self._data_file(about), (*self.keys, "timestamp")
        if self._file is None or self._file[0] != file:
            self._file = file, *_table(file, names)
        _, table, numbers = self._file
        mine = table.take(np.flatnonzero(numbers == about.whole("episode_index")))
        return {name: column_values(mine.column(name), f"{file.name}: {name}") for name in names}

    def _data_file(self, about: Fields) -> Path:
        return near(self._file_of("data_path", about))

    def _file_of(self, pattern: str, about: Fields, camera: str = "") -> Path:
        """A file of an episode by the pattern of its paths, which both layouts have: of its rows, or of a camera."""
        index, key = about.whole("episode_index"), f"videos/{camera}" if camera else "data"
        if self.shared_files:
            about.need(f"{key}/chunk_index", f"{key}/file_index")
        with reading(f"{self.info.where}: {pattern}"):
            return self.path / self.info.text(pattern).format(
                video_key=camera,
                episode_chunk=index // max(1, self.info.whole("chunks_size", 1000)),
                episode_index=index,
                chunk_index=about.whole(f"{key}/chunk_index", 0),
                file_index=about.whole(f"{key}/file_index", 0),
            )

    def _frames(self, about: Fields, times: np.ndarray, camera: str) -> Frames:
        if self.features.part(camera).text("dtype") == "image":
            return partial(_pictures, self._data_file(about), camera, about.whole("episode_index"))
        file = near(self._file_of("video_path", about, camera))
        if not self.shared_files:
            if (frames := count_frames(file)) != len(times):
                raise EpisodeError(f"{file.name} of {camera} shows {frames} frames, its actions are of {len(times)}")
            return partial(_shown, file, times, self.fps)
        if camera not in self._placed:
            file_of = partial(self._file_of, "video_path", camera=camera)
            self._placed[camera] = Placed(self.all, camera, self.fps, file_of)
        return partial(_shown, file, self._placed[camera].begin(about, file, times) + times, self.fps)


def _shown(
    file: Path, times: np.ndarray, fps: float, every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    return read_at(file, times[start:stop:every], fps)


def _pictures(
    file: Path, camera: str, episode: int, every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """Frames that lie in the rows themselves."""
    import pyarrow.parquet as pq

    with reading(file.name):
        table = pq.read_table(file, columns=[camera], filters=[("episode_index", "=", episode)])
    for value in table.column(camera)[start:stop].to_pylist()[::every]:
        data = value.get("bytes") if isinstance(value, dict) else None
        if data is None:
            raise HwmError(f"{file.name} holds no pictures of {camera} (paths to them are not followed)")
        yield read_picture(data)


def _cameras(features: Fields) -> list[str]:
    """Keys of the colour cameras."""
    found = []
    for key in features:
        about = features.part(key)
        more = about.part("info" if "info" in about else "video_info")
        if about.get("dtype") in ("video", "image") and not more.get("video.is_depth_map"):
            found.append(key)
    return found


def _dimensions(keys: Sequence[str], widths: Sequence[int], features: Fields) -> tuple[str, ...]:
    """Names of the action dimensions, as the data set gives them where it does."""
    names: list[str] = []
    for key, width in zip(keys, widths, strict=True):
        given = features.part(key).get("names") or ()
        if isinstance(given, dict):  # such as {"motors": [...]}
            values = list(given.values())
            given = values[0] if len(values) == 1 and isinstance(values[0], list) else list(given)
        fits = isinstance(given, list) and len(given) == width and all(isinstance(n, (str, int)) for n in given)
        names += map(str, given) if fits else dimension_names([key], [width])
    return tuple(names) if len(set(names)) == len(names) else dimension_names(keys, widths)


def _info(path: Path) -> Fields:
    """The description of a data set."""
    info = Fields.read(path / "meta" / "info.json")
    info.need("codebase_version", "features", "data_path")
    if not re.match(r"v(2\.[01]|3\.\d+)$", info.text("codebase_version")):
        raise HwmError(f"{info.where} is of version {info.text('codebase_version')}; those from v2.0 to v3 are read")
    return info


def _table(file: Path, names: Sequence[str]) -> tuple[Any, np.ndarray]:
    """Columns of a file of rows, and the number of the episode of each row."""
    import pyarrow.parquet as pq

    if not file.is_file():
        raise HwmError(f"there is no {file}")
    with reading(file):
        there = pq.read_schema(file).names
        if missing := [n for n in (*names, EPISODE) if n not in there]:
            raise EpisodeError(f"{file.name} has no column {', '.join(missing)}; there are: {', '.join(there)}")
        table = pq.read_table(file, columns=[*names, EPISODE])
    where = f"{file.name}: {EPISODE}"
    return table, scalars(column_values(table.column(EPISODE), where), where)


def find_dataset(name: str, options: SourceOptions) -> Path:
    """The folder of a data set on the Hugging Face hub, OWNER/NAME: where LeRobot keeps it, else fetched (extra `hub`).

    Of its videos only those of the chosen cameras are fetched.

    Raises:
        HwmError: it is no such name, it cannot be fetched, or cameras are to be chosen.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise HwmError(f"there is no {name}: give a folder, a file, or a LeRobot data set on the hub as OWNER/NAME")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    kept = Path(os.environ.get("HF_LEROBOT_HOME") or home / "lerobot") / name
    if LeRobot.recognises(kept):
        return kept
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise HwmError(
            f"there is no folder {name}; to fetch a LeRobot data set of that name: pip install "
            "'humanoid-world-models[hub]'"
        ) from error
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=["meta/*"]))
        info = _info(folder)
        chosen = choose_cameras(options.camera, _cameras(info.part("features")), folder)
        wanted = ["meta/*", "data/*", *(f"videos/{at}{camera}/*" for camera in chosen for at in ("", "*/"))]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except HwmError:
        raise
    except Exception as error:  # the client's own; which library's it is depends on its version
        raise HwmError(f"{name} cannot be fetched from the hub: {error}") from error
