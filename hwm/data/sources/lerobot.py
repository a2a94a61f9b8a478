"""LeRobot data sets, v2.0, v2.1 and v3.0, read in place: parquet and mp4, without the package `lerobot`.

`meta/info.json` describes both layouts. Before 3.0 every episode has its own files; in 3.0 several share one, and
`meta/episodes` says which rows and which seconds of video are whose
([format](https://huggingface.co/docs/lerobot/lerobot-dataset-v3)). A row pairs a frame with the action that was taken
when it was seen. `meta/hwm.json`, where it is there, was written by `hwm export lerobot`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwm.data.sources.base import (
    DAMAGE,
    Episode,
    Frames,
    Source,
    SourceOptions,
    as_id,
    choose,
    choose_cameras,
    dimension_names,
    joined,
    leading,
    seen_by,
    told,
    view_names,
)
from hwm.data.sources.folder import column_values
from hwm.data.store import EpisodeError, Header
from hwm.errors import HwmError
from hwm.files import listed
from hwm.pictures.files import read_picture
from hwm.pictures.video import count_frames, read_at

ACTION = "action"
OURS = "meta/hwm.json"


class LeRobot(Source):
    """A folder with a data set.

    Raises:
        HwmError: files are missing or damaged, a version that is not known, no actions, or cameras to choose from.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = path
        self.info = info = _info(path)
        features = info["features"]
        self.cameras = _cameras(info)
        self.chosen = choose_cameras(options.camera, self.cameras, path)
        self.keys = tuple(options.action_keys) or (ACTION,)
        if missing := [k for k in self.keys if k not in features]:
            numeric = [k for k in features if k not in self.cameras]
            raise HwmError(
                f"{path} has no {', '.join(missing)}; there are: {', '.join(numeric)}. Name others with --action-keys"
            )
        ours = path / OURS
        self.ours = _json(ours) if ours.is_file() and self.keys == (ACTION,) else {}
        per_step = int(self.ours.get("actions_per_step", 1))
        names = tuple(self.ours.get("action_names", ())) or _dimensions(self.keys, features)
        self.header = Header(
            embodiment=str(self.ours.get("embodiment") or info.get("robot_type") or path.resolve().name),
            action_names=names,
            actions_per_step=per_step,
            fps=options.source_fps or float(info["fps"]),
            source=str(self.ours.get("source", f"LeRobot {path.resolve().name}")),
            views=view_names(self.chosen),
        )
        self.episodes = self._of_split(self._episodes(), options.split)
        if not self.episodes:
            raise HwmError(f"{path} has no episodes")
        if not all("episode_index" in e and "length" in e for e in self.episodes):
            raise HwmError(f"{path}: meta/episodes lacks numbers or lengths of episodes")
        names_of = self.ours.get("episodes", {})
        numbers = [int(e["episode_index"]) for e in self.episodes]
        self.ids = [as_id(names_of.get(str(i), f"episode_{i:06d}")) for i in numbers]
        self.steps = sum(int(e["length"]) for e in self.episodes)
        self.notes = (told(self.chosen, self.cameras),)
        self._file: tuple[Path, dict[str, np.ndarray]] | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        info = path / "meta" / "info.json"
        return info.is_file() and b"codebase_version" in info.read_bytes()

    @property
    def shared_files(self) -> bool:
        """Whether several episodes lie in one file, as from 3.0 on."""
        return str(self.info["codebase_version"]).startswith("v3.")

    def _episodes(self) -> list[dict[str, Any]]:
        """What is said of each episode, in order."""
        if not self.shared_files:
            file = self.path / "meta" / "episodes.jsonl"
            try:
                return [json.loads(line) for line in _text(file).splitlines() if line.strip()]
            except ValueError as error:
                raise HwmError(f"{file} cannot be read: {error}") from error
        import pyarrow.parquet as pq

        files = listed(self.path / "meta" / "episodes", "*/*.parquet")
        if not files:
            raise HwmError(f"{self.path} lacks meta/episodes, which say where each episode lies")
        rows: list[dict[str, Any]] = []
        for file in files:
            try:
                names = [n for n in pq.read_schema(file).names if not n.startswith("stats/")]
                rows += pq.read_table(file, columns=names).to_pylist()
            except DAMAGE as error:
                raise HwmError(f"{file} cannot be read: {error}") from error
        return rows

    def _of_split(self, episodes: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
        if not split:
            return episodes
        splits = {str(k): str(v) for k, v in self.info.get("splits", {}).items()}
        bounds = splits[choose("split", split, list(splits), self.path, "--split")].split(":")
        return episodes[int(bounds[0]) : int(bounds[1])]

    def read(self, number: int) -> Episode:
        about = self.episodes[number]
        index, length = int(about["episode_index"]), int(about["length"])
        rows = self._rows(about)
        times = rows["timestamp"].astype(np.float64)
        if len(times) != length:
            raise EpisodeError(f"has {len(times)} rows, where {length} are stated")
        actions = leading(joined([rows[k] for k in self.keys]))
        if self.ours:
            actions = actions.reshape(len(actions), *self.header.action_shape)
        text = "; ".join(str(t) for t in about.get("tasks", ()))
        return Episode(
            id=self.ids[number],
            frames=seen_by(self.chosen, partial(self._frames, about, times)),
            actions=actions,
            embodiment=self.header.embodiment,
            fps=self.header.fps,
            text=text,
            times=times,
            info={"episode_index": index},
        )

    def _rows(self, about: dict[str, Any]) -> dict[str, np.ndarray]:
        """Actions and time stamps of an episode."""
        file, index = self._data_file(about), int(about["episode_index"])
        if self._file is None or self._file[0] != file:
            self._file = file, _columns(file, [*self.keys, "timestamp", "episode_index"])
        columns = self._file[1]
        mine = columns["episode_index"] == index
        return {k: v[mine] for k, v in columns.items()}

    def _data_file(self, about: dict[str, Any]) -> Path:
        return self._file_of("data_path", about, "data")

    def _file_of(self, pattern: str, about: dict[str, Any], key: str, camera: str = "") -> Path:
        """A file of an episode by the pattern of its paths, which both layouts have."""
        index = int(about["episode_index"])
        try:
            return self.path / str(self.info[pattern]).format(
                video_key=camera,
                episode_chunk=index // int(self.info.get("chunks_size", 1000)),
                episode_index=index,
                chunk_index=about.get(f"{key}/chunk_index", 0),
                file_index=about.get(f"{key}/file_index", 0),
            )
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise HwmError(f"{self.path / 'meta' / 'info.json'}: {pattern} cannot be filled in: {error!r}") from error

    def _frames(self, about: dict[str, Any], times: np.ndarray, camera: str) -> Frames:
        if self.info["features"][camera]["dtype"] == "image":
            return partial(_pictures, self._data_file(about), camera, int(about["episode_index"]))
        key = f"videos/{camera}"
        file = self._file_of("video_path", about, key, camera)
        if not self.shared_files and (frames := count_frames(file)) != len(times):
            raise EpisodeError(f"{file.name} of {camera} shows {frames} frames, its actions are of {len(times)}")
        begin = float(about.get(f"{key}/from_timestamp", 0.0))
        return partial(_shown, file, begin + times, float(self.info["fps"]))


def _shown(
    file: Path, times: np.ndarray, fps: float, every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    return read_at(file, times[start:stop:every], fps)


def _pictures(
    file: Path, camera: str, episode: int, every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """Frames that lie in the rows themselves."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=[camera], filters=[("episode_index", "=", episode)])
    except DAMAGE as error:
        raise HwmError(f"{file.name} cannot be read: {error}") from error
    for value in table.column(camera)[start:stop].to_pylist()[::every]:
        data = value.get("bytes") if isinstance(value, dict) else None
        if data is None:
            raise HwmError(f"{file.name} holds no pictures of {camera} (paths to them are not followed)")
        yield read_picture(data)


def _cameras(info: dict[str, Any]) -> list[str]:
    """Keys of the colour cameras."""
    return [
        key
        for key, about in info["features"].items()
        if about.get("dtype") in ("video", "image")
        and not (about.get("info") or about.get("video_info") or {}).get("video.is_depth_map", False)
    ]


def _dimensions(keys: Sequence[str], features: dict[str, Any]) -> tuple[str, ...]:
    """Names of the action dimensions, as the data set gives them where it does."""
    names: list[str] = []
    for key in keys:
        width = int(np.prod(features[key]["shape"]))
        given = features[key].get("names") or ()
        if isinstance(given, dict):  # such as {"motors": [...]}
            values = list(given.values())
            given = values[0] if len(values) == 1 and isinstance(values[0], list) else list(given)
        names += map(str, given) if len(given) == width else dimension_names([key], [width])
    return tuple(names) if len(set(names)) == len(names) else dimension_names(keys, _widths(keys, features))


def _widths(keys: Sequence[str], features: dict[str, Any]) -> list[int]:
    return [int(np.prod(features[key]["shape"])) for key in keys]


def _info(path: Path) -> dict[str, Any]:
    """The description of a data set."""
    file = path / "meta" / "info.json"
    info = _json(file)
    if missing := [k for k in ("codebase_version", "features", "fps", "data_path") if k not in info]:
        raise HwmError(f"{file} lacks {', '.join(missing)}: it does not describe a LeRobot data set")
    if not re.match(r"v(2\.[01]|3\.\d+)$", str(info["codebase_version"])):
        raise HwmError(f"{file} is of version {info['codebase_version']}; those from v2.0 to v3 are read")
    return info


def _columns(file: Path, names: list[str]) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    if not file.is_file():
        raise HwmError(f"there is no {file}")
    try:
        there = pq.read_schema(file).names
        if missing := [n for n in names if n not in there]:
            raise EpisodeError(f"{file.name} has no column {', '.join(missing)}; there are: {', '.join(there)}")
        table = pq.read_table(file, columns=names)
    except DAMAGE as error:
        raise HwmError(f"{file} cannot be read: {error}") from error
    return {name: column_values(table.column(name)) for name in names}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise HwmError(f"{file} cannot be read: {error}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(_text(file))
    except ValueError as error:
        raise HwmError(f"{file} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise HwmError(f"{file} is no description of a data set")
    return read


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
        chosen = choose_cameras(options.camera, _cameras(info), folder)
        wanted = ["meta/*", "data/*", *(f"videos/{at}{camera}/*" for camera in chosen for at in ("", "*/"))]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except HwmError:
        raise
    except Exception as error:  # the client's own; which library's it is depends on its version
        raise HwmError(f"{name} cannot be fetched from the hub: {error}") from error
