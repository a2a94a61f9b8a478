"""RLDS and Open X-Embodiment: data sets as tensorflow-datasets writes them, read without TensorFlow.

A version folder holds `dataset_info.json` (splits and their files), `features.json` (shapes and types) and TFRecord
files; a record is an episode, whose features are `steps/observation/CAMERA`, `steps/action` and so on, each a list over
its steps. What these data sets do not say, steps a second and which of their actions move the robot, is in
`open_x.csv`.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from hwm.data.fields import Fields
from hwm.data.sources.base import (
    Episode,
    Source,
    SourceOptions,
    choose,
    choose_cameras,
    dimension_names,
    joined,
    leading,
    seen_by,
    stated,
    together,
    told,
    view_names,
)
from hwm.data.sources.tfrecord import Value, read_example, read_record, record_starts
from hwm.data.store import EpisodeError, Header
from hwm.errors import HwmError
from hwm.files import listed
from hwm.pictures.files import read_picture

TEXTS = ("language_instruction", "observation/natural_language_instruction")
"""Features of a step that may say what was to be done."""
RECORD, EPISODES = 16, 1_000_000
"""Bytes that a record takes at least, and how many are believed before any is read."""
PLACE = re.compile(r"-(\d+)-of-(\d+)$")


@dataclass(frozen=True)
class OpenX:
    """What is known of one of the Open X-Embodiment data sets.

    Attributes:
        fps: control steps a second; 0 where it is not known, or steps do not lie evenly.
        hma_fps: what HMA takes it for; 0 where it does not name the data set.
        camera: the main one.
        actions: keys that move the robot, and how many numbers each has (0 where not known).
    """

    fps: float
    hma_fps: float
    camera: str
    actions: dict[str, int]


@cache
def open_x() -> dict[str, OpenX]:
    """The table of data sets, by name."""
    with Path(__file__).with_name("open_x.csv").open(newline="") as file:
        return {
            row["name"]: OpenX(
                float(row["fps"] or 0),
                float(row["hma_fps"] or 0),
                row["camera"],
                {key: int(dim or 0) for key, _, dim in (a.partition(":") for a in row["actions"].split())},
            )
            for row in csv.DictReader(file)
        }


@dataclass(frozen=True)
class Leaf:
    """A feature of a step: `image`, `text` or the name of a number's type; its shape; how its bytes are packed."""

    kind: str
    shape: tuple[int, ...] = ()
    encoding: str = "none"


class RLDS(Source):
    """A version folder of a data set, or the folder of one version above it.

    Raises:
        HwmError: files are missing or damaged, it is not known how fast it is, or cameras, splits or actions are to be
            chosen.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = _version_folder(path)
        info, features = Fields.read(self.path / "dataset_info.json"), Fields.read(self.path / "features.json")
        self.name = info.text("name", path.name)
        known = open_x().get(self.name, OpenX(0, 0, "", {}))
        self.leaves = dict(_leaves(_steps(self.path, features)))
        cameras = [k.removeprefix("observation/") for k, leaf in self.leaves.items() if leaf.kind == "image"]
        preferred = (known.camera,) if known.camera in cameras else ()
        splits = {split.text("name"): split for split in info.parts("splits")}
        self.chosen, self.keys, fps, self.split = together(
            self.path,
            lambda: choose_cameras(options.camera or preferred, cameras, self.path),
            lambda: self._action_keys(options.action_keys, known),
            lambda: stated(self.path, options.source_fps or known.fps),
            lambda: choose("split", options.split, list(splits), self.path, "--split"),
        )
        self.header = Header(
            embodiment=self.name,
            action_names=dimension_names(self.keys, [int(np.prod(self.leaves[k].shape)) for k in self.keys]),
            actions_per_step=1,
            fps=fps,
            source=f"RLDS {self.name} {info.text('version', '')}".strip(),
            views=view_names(self.chosen),
        )
        self.text = next((k for k in TEXTS if k in self.leaves), "")
        lengths = splits[self.split].wholes("shardLengths")
        self.files = _files(self.path, self.split, len(lengths))
        if len(lengths) != len(self.files):
            raise HwmError(f"{self.path}: {len(self.files)} files of {self.split!r}, where {len(lengths)} are listed")
        for file, length in zip(self.files, lengths, strict=True):
            if length > max(EPISODES, file.stat().st_size // RECORD):
                raise HwmError(f"{info.where}: shardLengths has {length} for {file.name}, which cannot hold as many")
        self.ends = np.cumsum(lengths)
        self.ids = [f"{self.split}_{i:07d}" for i in range(sum(lengths))]
        self.notes = tuple(self._notes(known, cameras))
        self._starts: dict[int, np.ndarray] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and bool(_versions(path))

    def _action_keys(self, wanted: Sequence[str], known: OpenX) -> tuple[str, ...]:
        """Full names of the features that make up the actions, in order."""
        there = [k for k, leaf in self.leaves.items() if k == "action" or k.startswith("action/")]
        numeric = [k for k in there if self.leaves[k].kind not in ("image", "text", "string")]
        keys = [k if k in self.leaves else f"action/{k}" for k in wanted or known.actions]
        if not keys:  # not in the table: all that are called actions
            keys = numeric
        if missing := [k for k in keys if k not in self.leaves] or ([] if keys else ["action"]):
            raise HwmError(
                f"{self.path} has no {', '.join(missing)} in its steps; there are: {', '.join(there) or 'no actions'}. "
                "Name others with --action-keys"
            )
        return tuple(keys)

    def _notes(self, known: OpenX, cameras: list[str]) -> Iterator[str]:
        yield f"split {self.split}, {told(self.chosen, cameras)}"
        for key, dim in known.actions.items():
            leaf = self.leaves.get(key) or self.leaves.get(f"action/{key}")
            have = int(np.prod(leaf.shape)) if leaf else dim
            if dim and have != dim:
                yield f"{key} has {have} numbers here, where {dim} are usual for {self.name}"

    def read(self, number: int) -> Episode:
        example = read_example(self._record(number))
        columns = [self._numbers(example, key) for key in self.keys]
        pictures = {camera: _pictures(example, f"observation/{camera}") for camera in self.chosen}
        actions = joined(columns, len(pictures[self.chosen[0]]))
        if short := [camera for camera, shown in pictures.items() if len(shown) != len(actions)]:
            raise EpisodeError(f"{short[0]} has {len(pictures[short[0]])} pictures, its actions are of {len(actions)}")
        said = example.get(f"steps/{self.text}", []) if self.text else []
        return Episode(
            id=self.ids[number],
            frames=seen_by(self.chosen, lambda c: partial(_frames, f"observation/{c}", pictures[c])),
            actions=leading(actions),
            embodiment=self.header.embodiment,
            fps=self.header.fps,
            text=bytes(said[0]).decode(errors="replace") if len(said) else "",
        )

    def _record(self, number: int) -> bytes:
        which = int(np.searchsorted(self.ends, number, side="right"))
        file, first = self.files[which], int(self.ends[which - 1]) if which else 0
        if which not in self._starts:
            starts = record_starts(file)
            if len(starts) != self.ends[which] - first:
                raise HwmError(f"{file} has {len(starts)} episodes, where {self.ends[which] - first} are listed")
            self._starts[which] = starts
        return read_record(file, int(self._starts[which][number - first]))

    def _numbers(self, example: dict[str, Value], key: str) -> np.ndarray:
        """A feature of all steps, (N, A)."""
        leaf, values = self.leaves[key], _feature(example, key)
        if isinstance(values, list):  # packed as bytes
            try:
                raw = [zlib.decompress(v) if leaf.encoding == "zlib" else v for v in values]
                values = np.frombuffer(b"".join(raw), np.dtype(leaf.kind).newbyteorder("<"))
            except (zlib.error, ValueError, TypeError) as error:
                raise EpisodeError(f"{key} cannot be read: {error}") from error
        width = int(np.prod(leaf.shape))
        if not width or len(values) % width:
            raise EpisodeError(f"{key} has {len(values)} numbers, which are not steps of {width}")
        return values.reshape(-1, width)


def _feature(example: dict[str, Value], key: str) -> Value:
    values = example.get(f"steps/{key}")
    if values is None or not len(values):
        raise EpisodeError(f"{key} is missing")
    return values


def _pictures(example: dict[str, Value], key: str) -> list[bytes]:
    values = _feature(example, key)
    if not isinstance(values, list):
        raise EpisodeError(f"{key} holds numbers in place of pictures")
    return values


def _frames(
    camera: str, pictures: Sequence[bytes], every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    for i, data in list(enumerate(pictures))[start:stop:every]:
        try:
            yield read_picture(data)
        except HwmError as error:
            raise HwmError(f"{camera} of step {i}: {error}") from error


def _versions(path: Path) -> list[Path]:
    """The folders at or below a path that hold a version of a data set."""
    folders = [path, *(p for p in listed(path) if re.fullmatch(r"\d+\.\d+\.\d+", p.name))]
    return [p for p in folders if (p / "dataset_info.json").is_file() and (p / "features.json").is_file()]


def _version_folder(path: Path) -> Path:
    found = _versions(path)
    if len(found) != 1:
        raise HwmError(
            f"{path} holds {len(found)} versions: name the folder of one ({', '.join(p.name for p in found)})"
        )
    return found[0]


def _steps(path: Path, features: Fields) -> Fields:
    """The description of a step."""
    steps = features.part("featuresDict").part("features").part("steps").part("sequence").part("feature")
    if not list(steps):
        raise HwmError(f"{path} is a data set of tensorflow-datasets, but not of episodes: it has no steps")
    return steps


def _leaves(feature: Fields, name: str = "") -> Iterator[tuple[str, Leaf]]:
    """Full names and kinds of what a description holds; what is neither number, text nor picture is left out."""
    if "featuresDict" in feature:
        inner = feature.part("featuresDict").part("features")
        for key in inner:
            yield from _leaves(inner.part(key), f"{name}/{key}" if name else key)
        return
    for kind in ("tensor", "image", "text"):
        if kind in feature:
            about = feature.part(kind)
            shape = tuple(about.part("shape").wholes("dimensions", least=-1))  # -1: any
            if kind == "image" and shape[-1:] != (3,):
                return  # depth and masks
            yield (
                name,
                Leaf(about.text("dtype", kind) if kind == "tensor" else kind, shape, about.text("encoding", "none")),
            )


def _files(path: Path, split: str, count: int) -> list[Path]:
    """The files of a split, in order."""
    found = [p for p in listed(path) if PLACE.search(p.name) and f"-{split}." in p.name]
    there = {int(match[1]) for p in found if (match := PLACE.search(p.name))}
    if missing := sorted(set(range(count)) - there):
        raise HwmError(f"{path} lacks {len(missing)} of the {count} files of {split!r}: fetch them")
    return found
