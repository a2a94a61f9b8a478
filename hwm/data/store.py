"""The one on-disk format: a folder with `meta.json`, memory-mapped arrays and, where recorded, video.

    STORE/meta.json        everything that is not an array, and a checksum of each array
    STORE/actions.bin      (N, K, A) float32 (or float16); row t leads from step t-1 to step t
    STORE/segments.bin     (N,) int32: the episode of each step
    STORE/latents.bin      (N, H, W) ids or (N, C, H, W) values; absent in a recording that is not encoded yet
    STORE/video/ID.mp4     the camera's frames of episode ID; absent in a store of latents only
    STORE/.partial/ID/     an episode that is written; `finish` gathers them
    STORE/.partial/*.json  the header, and other settings that a resumed command must repeat

A store is complete when its `meta.json` is there: it is written last, and renamed into place.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from hwm.config import from_json, to_json
from hwm.data.arrays import Array, moments
from hwm.data.header import Episode as Episode
from hwm.data.header import EpisodeError as EpisodeError
from hwm.data.header import Header as Header
from hwm.data.header import StoreError as StoreError
from hwm.data.header import latent_dtype as latent_dtype
from hwm.errors import HwmError
from hwm.files import checksum
from hwm.files import write_atomically as write_atomically
from hwm.pictures.video import read_video
from hwm.types import ActionSpec, DataSpec

FORMAT = "hwm-store/1"


class Store:
    """A complete store, opened for reading; arrays are memory-mapped.

    Readers of other layouts are subclasses with the same attributes; `hwm.data.readers` lists them.

    Attributes:
        path: its folder.
        header: what all episodes have in common.
        episodes: one after the other, they fill all steps.
        steps: N.
        actions: (N, K, A).
        segments: (N,) the number of each step's episode.
        latents: (N, H, W) ids or (N, C, H, W) values; None in a recording.
        clip_steps: steps that were encoded together, apart from all others; 1 where any step may begin a window.
        notes: what a reader had to leave out or cut, in words.
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
    part: tuple[int, int] | None = None
    skipped: Mapping[str, str] = MappingProxyType({})
    missing: tuple[int, ...] = ()

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open()

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return type(self), (self.path,)  # a process that is sent a store opens it again: mapped arrays would be copied

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder has this layout, from the names in it."""
        return (path / "meta.json").is_file() or (path / ".partial").is_dir()

    def _open(self) -> None:
        """Fill in the attributes."""
        meta_path = self.path / "meta.json"
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

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.memmap:
        path = self.path / name
        want = self.steps * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        have = path.stat().st_size if path.is_file() else 0
        if have != want:
            raise StoreError(
                f"{path} has {have:,} bytes; {self.steps:,} steps of shape {shape} {dtype} take {want:,}. "
                "The file is truncated or of another width; write or copy the store again"
            )
        return np.memmap(path, dtype, "r", shape=(self.steps, *shape))

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

    def video(self, episode: Episode) -> Path:
        path = self.path / "video" / f"{episode.id}.mp4"
        if not path.is_file():
            raise StoreError(f"{self.path} has no video of episode {episode.id!r} ({path.name} is missing)")
        return path

    @property
    def has_video(self) -> bool:
        return (self.path / "video").is_dir()

    def frames(self, episode: Episode, every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Camera frames start, start + every, ... of an episode, uint8 (H, W, 3)."""
        return read_video(self.video(episode), every, start, stop)

    def copy_video(self, episode: Episode, to: Path) -> None:
        """Write the camera frames of an episode as a video file of their own."""
        shutil.copyfile(self.video(episode), to)

    def verify(self) -> None:
        """Compare every array with its checksum; raise `StoreError` for the first that differs."""
        for name, want in self._checksums.items():
            try:
                same = checksum(self.path / name) == want
            except OSError as error:
                raise StoreError(f"{self.path / name} cannot be read: {error}") from error
            if not same:
                raise StoreError(f"{self.path / name} does not match its checksum: it was changed or damaged")


def _history(skipped: Mapping[str, str], missing: Sequence[int]) -> Iterator[str]:
    """What was left out when a store was written, in words."""
    if skipped:
        more = f" and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
        yield f"bad episodes left out: {', '.join(islice(skipped, 5))}{more}"
    if missing:
        yield f"parts that were missing when it was merged: {', '.join(map(str, missing))}"


class Writer:
    """Writes a store episode by episode; any number of processes may add different episodes at once.

    Each episode is written beside its place and renamed into it, so a kill loses at most the episodes in flight and
    `done` tells which to skip when the work is resumed.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path, self.header = Path(path), header
        self.partial = self.path / ".partial"
        if (self.path / "meta.json").exists():
            shutil.rmtree(self.partial, ignore_errors=True)  # left by a kill in the last moment of `finish`
            raise StoreError(f"{self.path} is already complete; choose another folder or remove it")
        self.partial.mkdir(parents=True, exist_ok=True)
        self.same_as_before("header", to_json(header))

    def same_as_before(self, name: str, settings: dict[str, Any]) -> None:
        """Remember settings until `finish`, so that work is only resumed with the same.

        Raises:
            StoreError: it was begun with others; the message names them.
        """
        path, mine = self.partial / f"{name}.json", json.dumps(settings, indent=1)
        known = json.loads(path.read_bytes()) if path.exists() else json.loads(mine)
        if differ := [f"{k}: {known.get(k)!r}, now {v!r}" for k, v in json.loads(mine).items() if known.get(k) != v]:
            raise StoreError(
                f"{self.path} was begun with other settings ({'; '.join(differ)}); resume with the same, or choose "
                "another folder"
            )
        if not path.exists():
            write_atomically(path, mine.encode())

    def done(self) -> set[str]:
        """Episodes that are completely written."""
        return {p.name for p in self.partial.iterdir() if p.is_dir() and not p.name.startswith(".")}

    def done_of(self, wanted: Iterable[str]) -> set[str]:
        """Episodes that are completely written, where all of them are among those wanted.

        Raises:
            StoreError: the folder also holds others, which `finish` would gather too.
        """
        done = self.done()
        if others := sorted(done - set(wanted)):
            raise StoreError(
                f"{self.path} was begun with other data: it holds episode {others[0]!r}"
                f"{f' and {len(others) - 1} more' if others[1:] else ''}; choose another folder or remove it"
            )
        return done

    def add(
        self,
        episode: str,
        actions_NKA: np.ndarray,
        latents: np.ndarray | None = None,
        video: Path | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        """Write one episode; a file given as `video` is moved into the store.

        Raises:
            EpisodeError: wrong widths, values that are not finite as they are stored, or ids outside the vocabulary.
            StoreError: a name that cannot be a folder's, an episode that is there already, or a disk that is full.
        """
        if not episode or episode.startswith(".") or set(episode) & set("/\\\0"):
            raise StoreError(f"{episode!r} cannot name an episode: names begin with no dot and hold no slashes")
        final, work = self.partial / episode, self.partial / f".{episode}.{os.getpid()}"
        if final.exists():
            raise StoreError(f"episode {episode!r} is in {self.path} already")
        actions, n = self._checked_actions(episode, actions_NKA), len(actions_NKA)
        stored = None if self.header.latent is None else self._checked_latents(episode, latents, n)
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            arrays = {"actions.bin": actions} | ({} if stored is None else {"latents.bin": stored})
            for name, array in arrays.items():
                (work / name).write_bytes(array.data)
            if video is not None:
                shutil.move(video, work / "video.mp4")
            checksums = {name: zlib.crc32(array.data) for name, array in arrays.items()}
            (work / "info.json").write_text(
                json.dumps({"steps": n, "info": info or {}, "checksums": checksums}), encoding="utf-8"
            )
            os.replace(work, final)
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            if final.exists():  # another process was quicker
                raise StoreError(f"episode {episode!r} is in {self.path} already") from error
            raise StoreError(f"episode {episode!r} cannot be written to {self.path}: {error}") from error

    def drop(self, episode: str) -> None:
        """Forget an episode that was written, and a video that waits for it."""
        shutil.rmtree(self.partial / episode, ignore_errors=True)
        (self.partial / f".{episode}.mp4").unlink(missing_ok=True)

    def _checked_actions(self, episode: str, actions_NKA: np.ndarray) -> np.ndarray:
        """The actions as they are stored."""
        h = self.header
        if actions_NKA.ndim != 3 or actions_NKA.shape[1:] != h.action_shape or not len(actions_NKA):
            raise EpisodeError(
                f"episode {episode!r}: actions of shape {actions_NKA.shape}, expected (N, {h.action_shape[0]}, "
                f"{h.action_shape[1]}) with at least one step"
            )
        with np.errstate(over="ignore"):  # what is too large for half floats becomes infinite, and is found below
            stored = np.ascontiguousarray(actions_NKA, h.action_dtype)
        bad = np.argwhere(~np.isfinite(stored))
        if len(bad):
            t, k, a = bad[0]
            raise EpisodeError(
                f"episode {episode!r}: action {h.action_names[a]!r} is {actions_NKA[t, k, a]} at step {t} (slot {k}), "
                f"which is not a finite {h.action_dtype}; mend or drop that episode"
            )
        return stored

    def _checked_latents(self, episode: str, latents: np.ndarray | None, n: int) -> np.ndarray:
        """The latents as they are stored."""
        h = self.header
        assert h.latent is not None
        if latents is None or latents.shape != (n, *h.latent_shape):
            got = None if latents is None else latents.shape
            raise EpisodeError(f"episode {episode!r}: latents of shape {got}, expected {(n, *h.latent_shape)}")
        if h.latent.vocab is not None:
            if latents.dtype.kind not in "ui" or latents.min() < 0 or latents.max() >= h.latent.vocab:
                raise EpisodeError(
                    f"episode {episode!r}: ids from {latents.min()} to {latents.max()} ({latents.dtype}), "
                    f"outside the vocabulary of {h.latent.vocab}"
                )
        elif np.dtype(h.dtype).kind != "f" and latents.dtype != h.dtype:
            raise EpisodeError(f"episode {episode!r}: latents of {latents.dtype}, expected {h.dtype}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(latents, h.dtype)
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise EpisodeError(
                f"episode {episode!r}: latents that are not finite as {h.dtype}; mend or drop that episode"
            )
        return stored

    def finish(
        self,
        statistics: tuple[Iterable[float], Iterable[float]] | None = None,
        *,
        part: tuple[int, int] | None = None,
        skipped: Mapping[str, str] | None = None,
        missing: Iterable[int] = (),
    ) -> Store:
        """Gather the episodes, in the order of their names, into one complete store.

        What is gathered is compared with the checksums that each episode was written with.

        Args:
            statistics: (mean, std) of the actions to record, e.g. the training set's for a held-out store; None
                computes them.
            part, skipped, missing: to be noted, as `Store` describes them.

        Raises:
            StoreError: there are no episodes, one of them is damaged, or some have video and others none.
        """
        names = sorted(self.done())
        if not names:
            raise StoreError(f"no episode was written to {self.path}")
        filmed = self._filmed(names)
        arrays = ["actions.bin"] + (["latents.bin"] if self.header.latent else [])
        self._check_sizes(names, arrays)
        sinks = {name: _Sink(self.partial / f"{name}.new") for name in [*arrays, "segments.bin"]}
        with ExitStack() as stack:
            for sink in sinks.values():
                stack.enter_context(sink.file)
            episodes = self._gather_all(names, arrays, sinks)
        steps = episodes[-1].stop
        shape = (steps, *self.header.action_shape)
        actions = np.memmap(self.partial / "actions.bin.new", self.header.action_dtype, "r", shape=shape)
        mean, std = ([float(x) for x in part] for part in (statistics if statistics is not None else moments(actions)))
        del actions
        if not len(mean) == len(std) == len(self.header.action_names):
            raise StoreError(f"statistics of {len(mean)} and {len(std)} dimensions; actions have {shape[-1]}")
        checksums = self._move_arrays(sinks)
        self._move_videos(filmed)
        meta = {
            "format": FORMAT,
            "header": to_json(self.header),
            "steps": steps,
            "statistics": {"mean": mean, "std": std},
            "checksums": checksums,
            "episodes": [to_json(e) for e in episodes],
        }
        if part:
            meta["part"] = list(part)
        if skipped:
            meta["skipped"] = dict(skipped)
        if missing := list(missing):
            meta["missing"] = missing
        write_atomically(self.path / "meta.json", json.dumps(meta, indent=1).encode())
        shutil.rmtree(self.partial)
        return Store(self.path)

    def _filmed(self, names: list[str]) -> list[str]:
        """The episodes with video: all of them, or none."""
        # a kill during an earlier `finish` may have moved some of the videos already
        filmed = [n for n in names if (self.partial / n / "video.mp4").exists() or self._video(n).exists()]
        if filmed and len(filmed) < len(names):
            bare = sorted(set(names) - set(filmed))
            raise StoreError(
                f"{self.path}: {len(filmed)} episodes have video and {len(bare)} have none, as {bare[0]!r}"
            )
        return filmed

    def _move_arrays(self, sinks: dict[str, _Sink]) -> dict[str, int]:
        """Give what was written its names, and read it again: its checksums."""
        for name in sinks:
            os.replace(self.partial / f"{name}.new", self.path / name)
        checksums = {name: checksum(self.path / name) for name in sinks}
        if wrong := [name for name, sink in sinks.items() if checksums[name] != sink.crc]:
            raise StoreError(f"{self.path / wrong[0]} is not what was written to it: is the disk full, or failing?")
        return checksums

    def _move_videos(self, names: list[str]) -> None:
        for name in names:
            self._video(name).parent.mkdir(exist_ok=True)
            if (self.partial / name / "video.mp4").exists():
                os.replace(self.partial / name / "video.mp4", self._video(name))

    def _gather_all(self, names: list[str], arrays: list[str], sinks: dict[str, _Sink]) -> list[Episode]:
        """Write the arrays of episodes one after the other, and which episode each step is of."""
        episodes, start = list[Episode](), 0
        for i, name in enumerate(names):
            info = json.loads((self.partial / name / "info.json").read_bytes())
            for array in arrays:
                self._gather(name, array, sinks[array], info.get("checksums", {}).get(array))
            sinks["segments.bin"].write(np.full(info["steps"], i, np.int32).tobytes())
            episodes.append(Episode(name, start, start + info["steps"], info["info"]))
            start += info["steps"]
        return episodes

    def _gather(self, episode: str, array: str, sink: _Sink, checksum: int | None) -> None:
        """Append an episode's array to the store's, and compare what was read with what had been written."""
        crc = 0
        with (self.partial / episode / array).open("rb") as source:
            while piece := source.read(1 << 22):
                crc = zlib.crc32(piece, crc)
                sink.write(piece)
        if checksum is not None and crc != checksum:
            raise self._damaged(episode)

    def _damaged(self, episode: str) -> StoreError:
        folder = self.partial / episode
        return StoreError(f"episode {episode!r} is damaged: remove the folder {folder} and write it again")

    def _video(self, episode: str) -> Path:
        return self.path / "video" / f"{episode}.mp4"

    def _check_sizes(self, names: list[str], arrays: list[str]) -> None:
        """Find episodes that a power cut left short, before anything is gathered from them."""
        h = self.header
        widths = {"actions.bin": np.dtype(h.action_dtype).itemsize * int(np.prod(h.action_shape))}
        if h.latent:
            widths["latents.bin"] = np.dtype(h.dtype).itemsize * int(np.prod(h.latent_shape))
        for name in names:
            folder = self.partial / name
            try:
                steps = int(json.loads((folder / "info.json").read_bytes())["steps"])
                whole = all((folder / array).stat().st_size == steps * widths[array] for array in arrays)
            except (OSError, ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                raise self._damaged(name)


class _Sink:
    """An array under way of `Writer.finish`, and the checksum of what was written to it."""

    def __init__(self, path: Path) -> None:
        self.file, self.crc = path.open("wb"), 0

    def write(self, data: bytes) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self.file.write(data)
