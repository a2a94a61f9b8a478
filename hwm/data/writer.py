"""Writing a store episode by episode (`hwm.data.store` describes what is written)."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from hwm import far
from hwm.config import to_json
from hwm.data.arrays import moments
from hwm.data.store import FORMAT, Episode, EpisodeError, Header, Store, StoreError, differing
from hwm.files import checksum, listed, write_atomically


class Writer:
    """Writes a store episode by episode; any number of processes may add different episodes at once.

    Each episode is written beside its place and renamed into it, so a kill loses at most the episodes in flight and
    `done` tells which to skip when the work is resumed. A store that is to be far away (`hwm.far`) is put together on
    this disk and sent when it is whole, file by file; what was sent before a kill is not sent again.

    Args:
        settings: what was asked for, in JSON's types: work is only resumed with the same, and the store tells them.

    Raises:
        StoreError: it is complete already, or was begun with another header or other settings; the message names them.
    """

    def __init__(self, path: str | Path, header: Header, settings: Mapping[str, Any] | None = None) -> None:
        self.place, self.header, self.settings = far.located(path), header, to_json(settings or {})
        self.path = far.staged(self.place) if far.is_far(self.place) else self.place
        self.partial = self.path / ".partial"
        if far.is_file(self.place / "meta.json"):
            shutil.rmtree(self.partial, ignore_errors=True)  # left by a kill in the last moment of `finish`
            raise StoreError(f"{far.address(self.place)} is already complete; choose another folder or remove it")
        self.partial.mkdir(parents=True, exist_ok=True)
        mine = {"settings.json": self.settings, "header.json": to_json(header)}  # what was asked for tells more
        begun = {name: self.partial / name for name in mine if (self.partial / name).exists()}
        for name, path in begun.items():
            if differ := differing(json.loads(path.read_bytes()), mine[name]):
                raise StoreError(
                    f"{self.path} was begun with other settings ({'; '.join(differ)}); resume with the same, or choose "
                    "another folder"
                )
        for name, values in mine.items():
            if values and name not in begun:
                write_atomically(self.partial / name, json.dumps(values, indent=1).encode())

    def done(self) -> set[str]:
        """Episodes that are completely written."""
        return {p.name for p in listed(self.partial) if p.is_dir()}

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
        video: Path | Mapping[str, Path] | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        """Write one episode; a file given as `video`, or one for each view, is moved into the store.

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
            for view, file in ({} if video is None else video if isinstance(video, Mapping) else {"": video}).items():
                shutil.move(file, work / _film(view))
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
        for file in self.waiting(episode).values():
            file.unlink(missing_ok=True)

    def waiting(self, episode: str) -> dict[str, Path]:
        """Where the video of each view (of one camera: of none) can be written that `add` is then given."""
        return {view: self.partial / f".{episode}{view and f'.{view}'}.mp4" for view in self._views}

    @property
    def _views(self) -> tuple[str, ...]:
        return self.header.views or ("",)

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
        arrays = ["actions.bin"] + (["latents.bin"] if self.header.latent else [])
        self._check_sizes(names, arrays)
        filmed = self._filmed(names)
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
        if self.settings:
            meta["settings"] = self.settings
        if part:
            meta["part"] = list(part)
        if skipped:
            meta["skipped"] = dict(skipped)
        if missing := list(missing):
            meta["missing"] = missing
        self._publish(json.dumps(meta, indent=1).encode(), list(sinks))
        return Store(self.place)

    def _publish(self, meta: bytes, arrays: list[str]) -> None:
        """Write `meta.json`, by which the store is complete; of a far one after all other files."""
        write_atomically(self.path / "meta.json", meta)
        if far.is_far(self.place):
            videos = sorted(str(p.relative_to(self.path)) for p in (self.path / "video").rglob("*.mp4"))
            far.send(self.path, [*arrays, *videos, "meta.json"], self.place, self.partial / "sent")
        shutil.rmtree(self.partial if self.path == self.place else self.path)

    def _filmed(self, names: list[str]) -> list[str]:
        """The episodes with video: all of them, or none."""
        # a kill during an earlier `finish` may have moved some of the videos already
        places = {n: [(self.partial / n / _film(v), self._video(n, v)) for v in self._views] for n in names}
        held = {n for n in names if all(new.exists() or moved.exists() for new, moved in places[n])}
        infos = {n: json.loads((self.partial / n / "info.json").read_bytes())["info"] for n in names}
        filmed = [n for n in names if Episode(n, 0, 1, infos[n]).film in held]
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
        for name, view in product(names, self._views):
            if (self.partial / name / _film(view)).exists():
                self._video(name, view).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.partial / name / _film(view), self._video(name, view))

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

    def _video(self, episode: str, view: str) -> Path:
        return self.path / "video" / view / f"{episode}.mp4"

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


def _film(view: str) -> str:
    """Name of the video file of a view in the folder of an episode under way."""
    return f"video.{view}.mp4" if view else "video.mp4"


class _Sink:
    """An array under way of `Writer.finish`, and the checksum of what was written to it."""

    def __init__(self, path: Path) -> None:
        self.file, self.crc = path.open("wb"), 0

    def write(self, data: bytes) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self.file.write(data)
