"""robomimic's HDF5 files, and those of LIBERO and RoboCasa, which have their layout. Needs the extra `hdf5`.

`data/demo_0/actions` is (N, A), `data/demo_0/obs/CAMERA` (N, H, W, 3) uint8; the attributes of `data` say how fast the
simulator was controlled, and `mask/NAME` lists the demonstrations of a split
([layout](https://robomimic.github.io/docs/datasets/overview.html)).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
    of_first,
    reading,
    seen_by,
    stated,
    together,
    told,
    view_names,
)
from hwm.data.sources.columns import numbers
from hwm.data.store import EpisodeError, Header
from hwm.errors import HwmError

MAGIC = b"\x89HDF\r\n\x1a\n"
PICTURES = 64
"""Frames that are read from the file at once."""


class Robomimic(Source):
    """A file of demonstrations.

    Raises:
        HwmError: h5py is missing, the file is of another layout, it is not known how fast it is, or cameras or actions
            are to be chosen.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path, self.keys = path, tuple(options.action_keys) or ("actions",)
        with _opened(path) as file:  # not kept open: other processes may want it
            if "data" not in file:
                raise HwmError(f"{path} is HDF5, but has no group data: it is not of robomimic's layout")
            data = file["data"]
            demos = sorted(data, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
            about = _described(path, "env_args", data.attrs.get("env_args"))
            settings = about.part("env_kwargs")
            self.ids = self._of_split(file, demos, options.split)
            if not self.ids:
                raise HwmError(f"{path} has no demonstrations")
            look = partial(self._look, data, options.camera)
            cameras, widths = of_first(path, self.ids, look)
            self.chosen, fps = together(
                path,
                lambda: choose_cameras(options.camera, cameras, path),
                lambda: stated(path, options.source_fps or settings.rate("control_freq", 0)),
            )
            self.steps = sum(_samples(data[d]) for d in self.ids)
        self.header = Header(
            embodiment="_".join(settings.texts("robots")).lower() or "robomimic",
            action_names=dimension_names(self.keys, widths),
            actions_per_step=1,
            fps=fps,
            source=f"robomimic {about.text('env_name', path.stem)}",
            views=view_names(self.chosen),
        )
        self.notes = (told(self.chosen, cameras),)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    def _of_split(self, file: Any, demos: list[str], split: str) -> list[str]:
        if not split:
            return demos
        masks = file.get("mask", {})
        chosen = choose("split", split, list(masks), self.path, "--split")
        names = {n.decode() if isinstance(n, bytes) else str(n) for n in masks[chosen][()]}
        return [d for d in demos if d in names]

    def _look(self, data: Any, wanted: Sequence[str], number: int) -> tuple[list[str], list[int]]:
        """The cameras of a demonstration, of which those wanted are to be some, and how wide its actions are."""
        demo = data[self.ids[number]]
        widths = [math.prod(_column(demo, key).shape[1:]) for key in self.keys]
        seen = demo.get("obs", {})
        cameras = sorted(k for k in seen if _is_video(seen[k]))
        others = [k for k in seen if k not in cameras and len(getattr(seen[k], "shape", ())) == 4]
        if blamed := [k for k in others if k in wanted or not cameras]:
            other = blamed[0]
            raise EpisodeError(
                f"has {seen[other].dtype} of shape {seen[other].shape} in obs/{other}, where pictures are uint8 of "
                "shape (frames, height, width, 3): convert them"
            )
        if wanted or not cameras:
            choose_cameras(wanted, cameras, self.path)
        return cameras, widths

    def read(self, number: int) -> Episode:
        with _opened(self.path) as file:
            demo = file["data"][self.ids[number]]
            actions = joined([numbers(_column(demo, key)[()], key) for key in self.keys])
            for camera in self.chosen:
                if "obs" not in demo or camera not in demo["obs"]:
                    raise EpisodeError(f"has no pictures of {camera}")
                pictures = demo["obs"][camera]
                if len(pictures) != len(actions) or not _is_video(pictures):
                    form = f"shape {pictures.shape} of {camera}"
                    raise EpisodeError(f"has {pictures.dtype} pictures of {form} for {len(actions)} actions")
            text = _described(self.path, f"ep_meta of {self.ids[number]}", demo.attrs.get("ep_meta")).text("lang", "")
        return Episode(
            id=self.ids[number],
            frames=seen_by(self.chosen, lambda c: partial(_frames, self.path, f"data/{self.ids[number]}/obs/{c}")),
            actions=leading(actions),
            embodiment=self.header.embodiment,
            fps=self.header.fps,
            text=text,
        )


def _frames(path: Path, name: str, every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    with _opened(path) as file:
        pictures = file[name]
        numbers = range(len(pictures))[start:stop:every]
        for i in range(0, len(numbers), PICTURES):
            part = numbers[i : i + PICTURES]
            yield from pictures[part.start : part.stop : part.step]


def _column(demo: Any, key: str) -> Any:
    if key not in demo:
        raise EpisodeError(f"has no {key}; there are: {', '.join(sorted(demo))}")
    return demo[key]


def _is_video(values: Any) -> bool:
    return len(getattr(values, "shape", ())) == 4 and values.shape[-1] == 3 and values.dtype == np.uint8


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise HwmError("HDF5 files need h5py: pip install 'humanoid-world-models[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise HwmError(f"{path} cannot be read: {error}") from error


def _described(path: Path, name: str, text: Any) -> Fields:
    """An attribute that holds JSON; no fields where it is not there."""
    with reading(f"{path}: {name}"):
        return Fields(f"{path}: {name}", json.loads(text) if text is not None else {})


def _samples(demo: Any) -> int:
    """How many steps a demonstration says that it has."""
    count = demo.attrs.get("num_samples", 0)
    return int(count) if isinstance(count, (int, np.integer)) else 0
