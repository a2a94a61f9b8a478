"""The one on-disk format: a folder with `meta.json`, memory-mapped arrays and, where recorded, video.

    STORE/meta.json        everything that is not an array, and a checksum of each array
    STORE/actions.bin      (N, K, A) float32 (or float16); row t leads from step t-1 to step t
    STORE/segments.bin     (N,) int32: the episode of each step
    STORE/latents.bin      (N, H, W) ids or (N, C, H, W) values; absent in a recording that is not encoded yet
    STORE/video/ID.mp4     the camera's frames of episode ID, and of those that name it; absent where there is no video.
                           Of several cameras each has a folder of its own: STORE/video/VIEW/ID.mp4
    STORE/.partial/ID/     an episode that is written; `finish` gathers them
    STORE/.partial/*.json  the header and the settings, which a resumed command must repeat

A store is complete when its `meta.json` is there: it is written last, and renamed into place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from hwm import far
from hwm.config import from_json
from hwm.data.arrays import Array
from hwm.data.far import FarArray, opened
from hwm.data.header import Episode as Episode
from hwm.data.header import EpisodeError as EpisodeError
from hwm.data.header import Header as Header
from hwm.data.header import StoreError as StoreError
from hwm.data.header import latent_dtype as latent_dtype
from hwm.errors import HwmError
from hwm.files import checksum
from hwm.files import write_atomically as write_atomically
from hwm.pictures.stack import Stacked
from hwm.pictures.video import read_video
from hwm.types import ActionSpec, DataSpec

FORMAT = "hwm-store/1"


class Store:
    """A complete store, opened for reading; arrays are memory-mapped.

    Readers of other layouts are subclasses with the same attributes; `hwm.data.readers` lists them.

    Args:
        path: a folder, or the address of one that is far away (`hwm.far`).

    Attributes:
        path: its folder, or its place in the cache.
        header: what all episodes have in common.
        episodes: one after the other, they fill all steps.
        steps: N.
        actions: (N, K, A).
        segments: (N,) the number of each step's episode.
        latents: (N, H, W) ids or (N, C, H, W) values; None in a recording.
        clip_steps: steps that were encoded together, apart from all others; 1 where any step may begin a window.
        notes: what a reader had to leave out or cut, in words.
        settings: what was asked for when it was written; nothing where that was not recorded.
        part: (shard, shards) where this is one part of a data set encoded in several.
        skipped: episodes that were left out when it was written, and why.
        missing: parts that were not there when it was merged of the others.

    Raises:
        StoreError: it is not there, not complete, or a file's size is not what its description says.
    """

    header: Header
    episodes: Sequence[Episode]
    steps: int
    actions: Array
    segments: Array
    latents: Array | None
    clip_steps: int = 1
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = MappingProxyType({})
    part: tuple[int, int] | None = None
    skipped: Mapping[str, str] = MappingProxyType({})
    missing: tuple[int, ...] = ()

    def __init__(self, path: str | Path) -> None:
        self.path = far.located(path)
        self._open()

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return type(self), (self.path,)  # a process that is sent a store opens it again: mapped arrays would be copied

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder has this layout, from the names in it."""
        return (path / "meta.json").is_file() or (path / ".partial").is_dir()

    def _open(self) -> None:
        """Fill in the attributes."""
        meta_path = far.near(self.path / "meta.json")
        if not meta_path.is_file():
            partial = (self.path / ".partial").is_dir()
            why = "is not finished: run the command that writes it again, it resumes" if partial else "is not a store"
            raise StoreError(f"{self.path} {why} (no meta.json)")
        try:
            meta = json.loads(meta_path.read_bytes())
            if not isinstance(meta, dict) or "format" not in meta:
                raise TypeError("it is not the description of a store")
            if meta["format"] != FORMAT:
                raise StoreError(f"{self.path} has format {meta.get('format')!r}, this program reads {FORMAT!r}")
            self.header = from_json(Header, meta["header"])
            self.episodes = tuple(from_json(Episode, e) for e in meta["episodes"])
            self.steps = int(meta["steps"])
            self._checksums: dict[str, int] = meta["checksums"]
            self._statistics = meta.get("statistics")
            self.settings = dict(meta.get("settings", {}))
            if "part" in meta:
                self.part = int(meta["part"][0]), int(meta["part"][1])
            self.skipped = {str(k): str(v) for k, v in meta.get("skipped", {}).items()}
            self.missing = tuple(int(i) for i in meta.get("missing", ()))
        except StoreError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, HwmError) as error:
            # ValueError: not JSON, or not even text
            raise StoreError(f"{meta_path} is damaged: {error!r}") from error
        self.notes = tuple(_history(self.skipped, self.missing))
        starts = [e.start for e in self.episodes] + [self.steps]
        if [0, *(e.stop for e in self.episodes)] != starts or any(e.steps < 1 for e in self.episodes):
            raise StoreError(
                f"{meta_path} is damaged: its episodes do not fill the {self.steps} steps one after another"
            )
        self.actions = self._map("actions.bin", self.header.action_dtype, self.header.action_shape)
        self.segments = self._map("segments.bin", "int32", ())
        self.latents = (
            self._map("latents.bin", self.header.dtype, self.header.latent_shape) if self.header.latent else None
        )

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        path = self.path / name
        want = self.steps * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        have = far.size(path)
        if have != want:
            raise StoreError(
                f"{far.address(path)} has {have:,} bytes; {self.steps:,} steps of shape {shape} {dtype} take {want:,}. "
                "The file is truncated or of another width; write or copy the store again"
            )
        return opened(path, dtype, (self.steps, *shape))

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of the actions, each a value a dimension."""
        if not self._statistics:
            raise StoreError(
                f"{self.path} has no action statistics; compute them with: hwm merge {self.path} --out NEW"
            )
        return tuple(self._statistics["mean"]), tuple(self._statistics["std"])

    def data_spec(self) -> DataSpec:
        """The spec a model of this store is built for."""
        h = self.header
        if h.latent is None:
            h.latent_shape  # noqa: B018  raises the error that says what to do
        mean, std = self.statistics
        action = ActionSpec(h.actions_per_step, h.action_names, mean, std)
        assert h.latent is not None
        return DataSpec(h.latent, {h.embodiment: action}, h.tokenizer, h.fps)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """First step and end of every episode, (episodes,) each."""
        edges = np.array([(e.start, e.stop) for e in self.episodes], np.int64).reshape(-1, 2)
        return edges[:, 0], edges[:, 1]

    @property
    def count(self) -> int:
        """How many episodes there are; a sample of a data set holds fewer."""
        return len(self.episodes)

    @property
    def seconds(self) -> float:
        """How long the episodes last together. A step is 1 / fps, but one that begins a clip may hold fewer frames."""
        stride, (starts, stops) = self.header.latent.stride if self.header.latent else 1, self.bounds
        clips = len(starts) if self.clip_steps == 1 else int((-((starts - stops) // self.clip_steps)).sum())
        short = clips * (stride - 1)  # frames that first steps lack
        return (self.steps * stride - short) / (self.header.fps * stride)

    def video(self, episode: Episode, view: str = "") -> Path:
        """The file that an episode's frames are in; of several cameras that of one."""
        path = far.near(self.path / "video" / view / f"{episode.film}.mp4")
        if not path.is_file():
            name = path.relative_to(self.path / "video")
            raise StoreError(f"{self.path} has no video of episode {episode.id!r} ({name} is missing)")
        return path

    @cached_property
    def has_video(self) -> bool:
        return far.is_dir(self.path / "video")

    def frames(
        self, episode: Episode, every: int = 1, start: int = 0, stop: int | None = None, view: str = ""
    ) -> Iterator[np.ndarray]:
        """Camera frames start, start + every, ... of an episode, uint8 (H, W, 3); of several cameras stacked
        (`hwm.pictures.stack`), or those of one."""
        if self.header.views and not view:
            each = {v: partial(self.frames, episode, view=v) for v in self.header.views}
            return Stacked(each)(every, start, stop)
        if stop is None and "video" in episode.info:  # where it ends, the video goes on with the next
            stop = (episode.steps - 1) * episode.frames_per_step + 1
        first = episode.first_frame
        return read_video(self.video(episode, view), every, first + start, None if stop is None else first + stop)

    def copy_video(self, episode: Episode, to: Path, view: str = "") -> None:
        """Write the video file that an episode's frames are in; of several cameras that of one."""
        shutil.copyfile(self.video(episode, view), to)

    def verify(self) -> None:
        """Compare every array with its checksum; raise `StoreError` for the first that differs."""
        arrays = {"actions.bin": self.actions, "segments.bin": self.segments, "latents.bin": self.latents}
        for name, want in self._checksums.items():
            array = arrays.get(name)
            try:
                have = array.checksum() if isinstance(array, FarArray) else checksum(self.path / name)
                same = have == want
            except OSError as error:
                raise StoreError(f"{self.path / name} cannot be read: {error}") from error
            if not same:
                raise StoreError(f"{self.path / name} does not match its checksum: it was changed or damaged")


def differing(known: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What is asked for otherwise than it is known to have been, in words; what is not known is no difference."""
    return [f"{k}: {known[k]!r}, now {v!r}" for k, v in asked.items() if k in known and known[k] != v]


def _history(skipped: Mapping[str, str], missing: Sequence[int]) -> Iterator[str]:
    """What was left out when a store was written, in words."""
    if skipped:
        more = f" and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
        yield f"bad episodes left out: {', '.join(islice(skipped, 5))}{more}"
    if missing:
        yield f"parts that were missing when it was merged: {', '.join(map(str, missing))}"
