"""Any source as a LeRobot data set of version 3.0, so that what was recorded or dreamt here can be used there.

Written from the published description of the format
([LeRobotDataset v3](https://huggingface.co/docs/lerobot/lerobot-dataset-v3)), without the package `lerobot`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hwm import far
from hwm.data.sources.base import Episode, Source, of_episode
from hwm.data.sources.lerobot import OURS
from hwm.errors import HwmError
from hwm.pictures.stack import of_view
from hwm.pictures.video import write_video
from hwm.progress import track

CAMERA = "observation.images.{}"
INFO = "meta/info.json"
PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
CHUNK, DATA_MB, VIDEO_MB = 1000, 100, 200
FILE_PIXELS = 2_000_000_000
"""Pixels after which a video file is large enough: about 200 MB."""
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SEEN = 32
"""Frames of an episode that statistics of its pictures are taken of."""
ROWS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Columns that every such data set has, one number a row."""


def write_lerobot(source: Source, out: str | Path, crf: int = 18) -> Path:
    """Write all episodes of a source into a new folder, which appears when it is whole; into one that is far away
    `meta/info.json` is sent last.

    A row has the action that was taken when its frame was seen: that of the step after it. The last one's is not known
    and repeats the one before. Several actions a step lie side by side, `NAME_0` for the first of each. Of several
    cameras each has its own video. Pictures of odd sides lose a row or a column.

    Args:
        crf: quality of the video (x264), lower is better and larger.

    Raises:
        HwmError: the folder is there already, or an episode cannot be read.
    """
    place = far.located(out)
    if place.exists() if not far.is_far(place) else far.is_file(place / INFO):
        raise HwmError(f"{far.address(place)} is there already; choose another folder or remove it")
    work = far.staged(place) if far.is_far(place) else place.with_name(f".{place.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _Writing(source, work, crf).run()
        if far.is_far(place):
            names = {str(file.relative_to(work)) for file in work.rglob("*") if file.is_file()}
            far.send(work, [*sorted(names - {INFO}), INFO], place, work / "sent")
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if far.is_far(place):
        shutil.rmtree(work)
    else:
        work.rename(place)
    return place


class _Writing:
    """A data set under way: rows, video and what is said of each episode."""

    def __init__(self, source: Source, folder: Path, crf: int) -> None:
        self.source, self.folder, self.crf = source, folder, crf
        h = source.header
        k, names = h.actions_per_step, h.action_names
        self.names = list(names) if k == 1 else [f"{name}_{i}" for i in range(k) for name in names]
        self.fps = int(h.fps) if h.fps == int(h.fps) else h.fps
        self.tasks: dict[str, int] = {}
        self.about: list[dict[str, Any]] = []
        self.frames = 0
        self.cameras = {CAMERA.format(view or "camera"): view for view in h.views or ("",)}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.seen: list[np.ndarray] = []

    def run(self) -> None:
        count = len(self.source)
        todo = track(range(count), count, "writing a LeRobot data set", unit="episodes")
        data, file = _Rows(self.folder, len(self.names)), 0
        while (begin := len(self.about)) < count:
            # the first camera says how many episodes a file holds; the others follow
            for key, numbers in zip(self.cameras, chain([todo], repeat(None)), strict=False):
                path = self.folder / "videos" / key / f"{PLACE.format(**_place(file))}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                shown = self._pictures(numbers or range(begin, len(self.about)), key, file, data)
                write_video(path, shown, self.fps, self.crf)
            file += 1
        data.close()
        self._describe()

    def _pictures(self, numbers: Iterable[int], key: str, file: int, data: _Rows) -> Iterator[np.ndarray]:
        """Frames of as many episodes as one video file should hold; the rows of new ones are written too."""
        frames = 0
        for number in numbers:
            episode = self.source[number]
            yield from self._shown(episode, key)
            if new := number == len(self.about):
                self._rows(episode, number, data)
            self._film(self.about[number], key, file, frames / self.fps)
            frames += episode.steps
            if new and frames * self.sizes[key][0] * self.sizes[key][1] > FILE_PIXELS:
                return

    def _shown(self, episode: Episode, key: str) -> Iterator[np.ndarray]:
        """Frames of an episode that a camera saw."""
        self.seen, count, view = [], 0, self.cameras[key]
        spread = set(np.linspace(0, episode.steps - 1, SEEN).round().astype(int).tolist())
        frames = of_view(episode.frames, self.source.header.views, view) if view else episode.frames
        with of_episode(self.source.path, episode.id):
            for frame in frames():
                even = np.ascontiguousarray(frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2])
                if count in spread:
                    self.seen.append(even[:: max(1, len(even) // 64), :: max(1, even.shape[1] // 64)] / 255)
                count, self.sizes[key] = count + 1, (even.shape[0], even.shape[1])
                yield even
        if count != episode.steps:
            where = f"{self.source.path}: the video of {episode.id!r}{view and f' of camera {view!r}'}"
            raise HwmError(f"{where} shows {count} steps, its actions are of {episode.steps}")

    def _rows(self, episode: Episode, number: int, data: _Rows) -> None:
        n = episode.steps
        task = self.tasks.setdefault(episode.text, len(self.tasks))
        taken = np.concatenate([episode.actions[1:], episode.actions[-1:]]).reshape(n, -1)
        columns: dict[str, np.ndarray] = {
            "action": np.asarray(taken, np.float32),
            "timestamp": np.arange(n) / self.fps,
            "frame_index": np.arange(n),
            "episode_index": np.full(n, number),
            "index": self.frames + np.arange(n),
            "task_index": np.full(n, task),
        }
        place = data.add(columns)
        self.about.append(
            {
                "episode_index": number,
                "tasks": [episode.text],
                "length": n,
                "data/chunk_index": place["chunk_index"],
                "data/file_index": place["file_index"],
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + n,
                "stats": {k: _statistics(v.reshape(n, -1), n) for k, v in columns.items()},
            }
        )
        self.frames += n

    def _film(self, about: dict[str, Any], key: str, file: int, begin: float) -> None:
        """Note where the video of an episode is, and the statistics of what was seen of it."""
        n, place = about["length"], _place(file)
        about |= {
            f"videos/{key}/chunk_index": place["chunk_index"],
            f"videos/{key}/file_index": place["file_index"],
            f"videos/{key}/from_timestamp": begin,
            f"videos/{key}/to_timestamp": begin + n / self.fps,
        }
        about["stats"][key] = {
            k: v.reshape(-1, 1, 1) if k != "count" else v for k, v in _picture_statistics(self.seen, n).items()
        }

    def _describe(self) -> None:
        """Everything in `meta`."""
        meta, h = self.folder / "meta", self.source.header
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        rows = [
            {k: v for k, v in about.items() if k != "stats"}
            | {f"stats/{f}/{k}": v.tolist() for f, some in about["stats"].items() for k, v in some.items()}
            | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            for about in self.about
        ]
        pq.write_table(pa.Table.from_pylist(rows), meta / "episodes" / "chunk-000" / "file-000.parquet")
        pq.write_table(_tasks(list(self.tasks)), meta / "tasks.parquet")
        together = _together([about["stats"] for about in self.about])
        plain = {f: {k: v.tolist() for k, v in some.items()} for f, some in together.items()}
        (meta / "stats.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
        (meta / "info.json").write_text(json.dumps(self._info(), indent=1), encoding="utf-8")
        ours = {
            "embodiment": h.embodiment,
            "actions_per_step": h.actions_per_step,
            "action_names": list(h.action_names),
            "source": h.source,
            "episodes": {str(i): self.source.ids[i] for i in range(len(self.source))},
        }
        (self.folder / OURS).write_text(json.dumps(ours, indent=1), encoding="utf-8")

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {key: _camera(size, self.fps) for key, size in self.sizes.items()}
        features["action"] = {"dtype": "float32", "shape": [len(self.names)], "names": self.names}
        features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in ROWS.items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": self.source.header.embodiment,
            "total_episodes": len(self.about),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.about)}"},
            "data_path": f"data/{PLACE}.parquet",
            "video_path": f"videos/{{video_key}}/{PLACE}.mp4",
            "features": features,
        }


class _Rows:
    """The parquet files with the rows: a row group an episode, a new file when one is large."""

    def __init__(self, folder: Path, width: int) -> None:
        fields = [pa.field("action", pa.list_(pa.float32(), width))]
        fields += [pa.field(name, pa.type_for_alias(dtype)) for name, dtype in ROWS.items()]
        self.folder, self.schema, self.file = folder / "data", pa.schema(fields), -1
        self.writer: pq.ParquetWriter | None = None
        self.path = self.folder

    def add(self, columns: dict[str, np.ndarray]) -> dict[str, int]:
        """Write the rows of an episode; returns where they are."""
        if self.writer is None or self.path.stat().st_size > DATA_MB << 20:
            self.close()
            self.file += 1
            self.path = self.folder / f"{PLACE.format(**_place(self.file))}.parquet"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(self.path, self.schema)
        flat = pa.array(columns["action"].ravel(), pa.float32())
        arrays = [pa.FixedSizeListArray.from_arrays(flat, columns["action"].shape[1])]
        arrays += [pa.array(columns[name].astype(dtype)) for name, dtype in ROWS.items()]
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        return _place(self.file)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _camera(size: tuple[int, int], fps: float) -> dict[str, Any]:
    """The description of a camera's video."""
    height, width = size
    video = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": video}


def _place(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNK, "file_index": file % CHUNK}


def _tasks(tasks: list[str]) -> pa.Table:
    """The tasks as pandas writes them, with the sentence as the index."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": pa.array(tasks)})
    index = [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}]
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    text = {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": index,
        "columns": [number | {"metadata": None}, text | {"metadata": None}],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _statistics(values_NA: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Statistics of each column of an episode."""
    x = values_NA.astype(np.float64)
    of = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    return of | {k: np.quantile(x, q, axis=0) for k, q in QUANTILES.items()} | {"count": np.array([count])}


def _picture_statistics(frames: list[np.ndarray], count: int) -> dict[str, np.ndarray]:
    return _statistics(np.stack(frames).reshape(-1, 3), count)


def _together(each: list[dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of all episodes from those of each; quantiles are the mean of theirs, weighted by their frames."""
    out = {}
    for name in each[0]:
        parts = [stats[name] for stats in each]
        count = sum(int(p["count"][0]) for p in parts)
        share = [int(p["count"][0]) / count for p in parts]
        mean = sum(s * p["mean"] for s, p in zip(share, parts, strict=True))
        square = sum(s * (p["std"] ** 2 + p["mean"] ** 2) for s, p in zip(share, parts, strict=True))
        out[name] = {
            "min": np.min([p["min"] for p in parts], 0),
            "max": np.max([p["max"] for p in parts], 0),
            "mean": np.asarray(mean),
            "std": np.sqrt(np.maximum(square - np.square(mean), 0)),
            **{q: np.asarray(sum(s * p[q] for s, p in zip(share, parts, strict=True))) for q in QUANTILES},
            "count": np.array([count]),
        }
    return out
