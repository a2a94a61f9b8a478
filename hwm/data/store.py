"""The one on-disk format: a folder with `meta.json`, memory-mapped arrays and, where recorded, video.

    STORE/meta.json        everything that is not an array, and a checksum of each array
    STORE/actions.bin      (N, K, A) float32 (or float16); row t leads from step t-1 to step t
    STORE/segments.bin     (N,) int32: the episode of each step
    STORE/latents.bin      (N, H, W) ids or (N, C, H, W) values; absent in a recording that is not encoded yet
    STORE/video/ID.mp4     the camera's frames of episode ID; absent in a store of latents only
    STORE/.partial/ID/     an episode that is written; `finish` gathers them

A store is complete when its `meta.json` is there: it is written last, and renamed into place.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwm.config import from_json, to_json
from hwm.types import ActionSpec, DataSpec, HwmError, LatentSpec

FORMAT = "hwm-store/1"


class StoreError(HwmError):
    """A store that is missing, incomplete, damaged or not what was asked for."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all episodes of a store have in common.

    Attributes:
        embodiment: whose actions these are.
        action_names: one a dimension.
        actions_per_step: K.
        fps: steps a second.
        latent: what the tokenizer emitted; None in a recording.
        dtype: numpy name of the latents' element type.
        action_dtype: numpy name of the actions' element type on disk; they are read as float32.
        tokenizer: identity of the tokenizer.
        source: where the data came from, in words.
    """

    embodiment: str
    action_names: tuple[str, ...]
    actions_per_step: int
    fps: float
    latent: LatentSpec | None = None
    dtype: str = ""
    action_dtype: str = "float32"
    tokenizer: str = ""
    source: str = ""

    @property
    def action_shape(self) -> tuple[int, int]:
        return self.actions_per_step, len(self.action_names)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        if self.latent is None:
            raise StoreError("this recording has no latents yet; encode it first: hwm encode SOURCE --tokenizer NAME")
        return self.latent.grid if self.latent.channels is None else (self.latent.channels, *self.latent.grid)


@dataclass(frozen=True)
class Episode:
    """A stretch of a store that is continuous in time: steps start..stop."""

    id: str
    start: int
    stop: int
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.stop - self.start


def latent_dtype(latent: LatentSpec) -> str:
    """The smallest element type that holds every id, or half floats for continuous latents."""
    if latent.vocab is None:
        return "float16"
    return "uint16" if latent.vocab <= 1 << 16 else "int32"


class Store:
    """A complete store, opened for reading; arrays are memory-mapped.

    Raises:
        StoreError: it is not there, not complete, or a file's size is not what meta.json says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        meta_path = self.path / "meta.json"
        if not meta_path.is_file():
            partial = (self.path / ".partial").is_dir()
            why = "is not finished: run the command that writes it again, it resumes" if partial else "is not a store"
            raise StoreError(f"{self.path} {why} (no meta.json)")
        try:
            meta = json.loads(meta_path.read_text())
            if meta.get("format") != FORMAT:
                raise StoreError(f"{self.path} has format {meta.get('format')!r}, this program reads {FORMAT!r}")
            self.header = from_json(Header, meta["header"])
            self.episodes = tuple(from_json(Episode, e) for e in meta["episodes"])
            self.steps = int(meta["steps"])
            self._checksums: dict[str, int] = meta["checksums"]
            self._statistics = meta.get("statistics")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise StoreError(f"{meta_path} is damaged: {error!r}") from error
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
            raise StoreError(f"{self.path} has no action statistics; compute them with: hwm merge {self.path} --out NEW")
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

    def video(self, episode: Episode) -> Path:
        path = self.path / "video" / f"{episode.id}.mp4"
        if not path.is_file():
            raise StoreError(f"{self.path} has no video of episode {episode.id!r} ({path.name} is missing)")
        return path

    @property
    def has_video(self) -> bool:
        return (self.path / "video").is_dir()

    def verify(self) -> None:
        """Compare every array with its checksum; raise `StoreError` for the first that differs."""
        for name, want in self._checksums.items():
            if checksum(self.path / name) != want:
                raise StoreError(f"{self.path / name} does not match its checksum: it was changed or damaged")


class Writer:
    """Writes a store episode by episode; any number of processes may add different episodes at once.

    Each episode is written beside its place and renamed into it, so a kill loses at most the episodes in flight and
    `done` tells which to skip when the work is resumed.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path, self.header = Path(path), header
        self.partial = self.path / ".partial"
        if (self.path / "meta.json").exists():
            raise StoreError(f"{self.path} is already complete; choose another folder or remove it")
        self.partial.mkdir(parents=True, exist_ok=True)
        known, mine = self.partial / "header.json", json.dumps(to_json(header), indent=1)
        if known.exists() and from_json(Header, json.loads(known.read_text())) != header:
            raise StoreError(
                f"{self.path} was begun with other settings ({known}); resume with the same, or choose another folder"
            )
        write_atomically(known, mine.encode())

    def done(self) -> set[str]:
        """Episodes that are completely written."""
        return {p.name for p in self.partial.iterdir() if p.is_dir() and not p.name.startswith(".")}

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
            StoreError: wrong widths, values that are not finite, or ids outside the vocabulary.
        """
        h, n = self.header, len(actions_NKA)
        if actions_NKA.ndim != 3 or actions_NKA.shape[1:] != h.action_shape:
            raise StoreError(f"episode {episode!r}: actions of shape {actions_NKA.shape}, expected (N, {h.action_shape})")
        bad = np.argwhere(~np.isfinite(actions_NKA))
        if len(bad):
            t, k, a = bad[0]
            raise StoreError(
                f"episode {episode!r}: action {h.action_names[a]!r} is {actions_NKA[t, k, a]} at step {t} (slot {k}); "
                "mend or drop that episode"
            )
        if h.latent is not None:
            if latents is None or latents.shape != (n, *h.latent_shape):
                got = None if latents is None else latents.shape
                raise StoreError(f"episode {episode!r}: latents of shape {got}, expected {(n, *h.latent_shape)}")
            if h.latent.vocab is not None and not (0 <= latents.min() and latents.max() < h.latent.vocab):
                raise StoreError(
                    f"episode {episode!r}: ids from {latents.min()} to {latents.max()}, "
                    f"outside the vocabulary of {h.latent.vocab}"
                )
        work = self.partial / f".{episode}.{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "actions.bin").write_bytes(np.ascontiguousarray(actions_NKA, h.action_dtype).tobytes())
        if latents is not None:
            (work / "latents.bin").write_bytes(np.ascontiguousarray(latents, h.dtype).tobytes())
        if video is not None:
            os.replace(video, work / "video.mp4")
        (work / "info.json").write_text(json.dumps({"steps": n, "info": info or {}}))
        final = self.partial / episode
        if final.exists():
            shutil.rmtree(work)
            raise StoreError(f"episode {episode!r} is in {self.path} already")
        os.replace(work, final)

    def finish(self, statistics: tuple[Iterable[float], Iterable[float]] | None = None) -> Store:
        """Gather the episodes, in the order of their names, into one complete store.

        Args:
            statistics: (mean, std) of the actions to record, e.g. the training set's for a held-out store; None
                computes them.
        """
        names = sorted(self.done())
        if not names:
            raise StoreError(f"no episode was written to {self.path}")
        episodes, start = [], 0
        # a kill during an earlier `finish` may have moved some of the videos already
        has_video = (self.path / "video").is_dir() or (self.partial / names[0] / "video.mp4").exists()
        arrays = ["actions.bin"] + (["latents.bin"] if self.header.latent else [])
        with _Sinks(self.partial, [*arrays, "segments.bin"]) as sinks:
            for i, name in enumerate(names):
                info = json.loads((self.partial / name / "info.json").read_text())
                for array in arrays:
                    with (self.partial / name / array).open("rb") as source:
                        shutil.copyfileobj(source, sinks[array])
                sinks["segments.bin"].write(np.full(info["steps"], i, np.int32).tobytes())
                episodes.append(Episode(name, start, start + info["steps"], info["info"]))
                start += info["steps"]
        actions = np.memmap(self.partial / "actions.bin.new", self.header.action_dtype, "r", shape=(start, *self.header.action_shape))
        mean, std = statistics if statistics is not None else moments(actions)
        del actions
        for name in [*arrays, "segments.bin"]:
            os.replace(self.partial / f"{name}.new", self.path / name)
        if has_video:
            (self.path / "video").mkdir(exist_ok=True)
            for name in names:
                if (self.partial / name / "video.mp4").exists():
                    os.replace(self.partial / name / "video.mp4", self.path / "video" / f"{name}.mp4")
        meta = {
            "format": FORMAT,
            "header": to_json(self.header),
            "steps": start,
            "statistics": {"mean": [float(x) for x in mean], "std": [float(x) for x in std]},
            "checksums": {name: checksum(self.path / name) for name in [*arrays, "segments.bin"]},
            "episodes": [to_json(e) for e in episodes],
        }
        write_atomically(self.path / "meta.json", json.dumps(meta, indent=1).encode())
        shutil.rmtree(self.partial)
        return Store(self.path)


class _Sinks:
    """The arrays under way of `Writer.finish`."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.files = {name: (folder / f"{name}.new").open("wb") for name in names}

    def __enter__(self) -> dict[str, Any]:
        return self.files  # type: ignore[return-value]

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()


def moments(actions_NKA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each action dimension, in float64 and bounded memory."""
    flat = actions_NKA.reshape(-1, actions_NKA.shape[-1])
    total, square = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
    origin = flat[0].astype(np.float64)  # sums of squares about a value near the mean do not cancel
    for i in range(0, len(flat), 1 << 16):
        part = flat[i : i + (1 << 16)].astype(np.float64) - origin
        total += part.sum(0)
        square += (part**2).sum(0)
    mean = total / len(flat)
    return mean + origin, np.sqrt(np.maximum(square / len(flat) - mean**2, 0))


def checksum(path: Path) -> int:
    """CRC-32 of a file, read in pieces."""
    value = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            value = zlib.crc32(piece, value)
    return value


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def merge(paths: Iterable[str | Path], out: str | Path) -> Store:
    """Join finished stores of one header into one, with statistics over all of them.

    Episode ids must not repeat; videos are copied.
    """
    stores = [Store(p) for p in paths]
    if not stores:
        raise StoreError("nothing to merge")
    for s in stores[1:]:
        if s.header != stores[0].header:
            raise StoreError(f"{s.path} and {stores[0].path} differ in kind: {s.header} against {stores[0].header}")
    writer = Writer(out, stores[0].header)
    for store, episode in each_episode(stores):
        if episode.id in writer.done():
            continue
        rows = slice(episode.start, episode.stop)
        video = None
        if store.has_video:
            video = writer.partial / f".{episode.id}.mp4"
            shutil.copyfile(store.video(episode), video)
        latents = None if store.latents is None else store.latents[rows]
        writer.add(episode.id, store.actions[rows], latents, video, episode.info)
    return writer.finish()


def each_episode(stores: Iterable[Store]) -> Iterator[tuple[Store, Episode]]:
    seen: dict[str, Path] = {}
    for store in stores:
        for episode in store.episodes:
            if episode.id in seen:
                raise StoreError(f"episode {episode.id!r} is in both {seen[episode.id]} and {store.path}")
            seen[episode.id] = store.path
            yield store, episode
