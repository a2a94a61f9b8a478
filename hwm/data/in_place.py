"""What readers of data in other layouts have in common: lazy episodes, and action statistics that are computed once."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hwm.data.arrays import Array, Lazy, moments, pieces
from hwm.data.statistics import Statistics
from hwm.data.store import Episode, Store, StoreError
from hwm.far import cache
from hwm.files import write_atomically

STATISTICS = "hwm_statistics.json"


class Episodes(Sequence[Episode]):
    """Episodes that are described when they are asked for: there may be hundreds of thousands.

    Args:
        starts, stops: first step and end of each.
        describe: id and info of an episode by its number.
    """

    def __init__(
        self, starts: np.ndarray, stops: np.ndarray, describe: Callable[[int], tuple[str, dict[str, Any]]]
    ) -> None:
        self.starts, self.stops, self.describe = starts, stops, describe

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        i = range(len(self))[number]
        name, info = self.describe(i)
        return Episode(name, int(self.starts[i]), int(self.stops[i]), info)


class InPlace(Store):
    """A folder of another layout, read where it lies.

    Attributes:
        once: (frames, 1, A) the action of every frame, once: what statistics are computed of.
    """

    once: Array
    episodes: Episodes

    def _set_episodes(
        self, starts: np.ndarray, steps: int, describe: Callable[[int], tuple[str, dict[str, Any]]]
    ) -> None:
        """Episodes from their first steps; `segments` follows."""
        self.steps = steps
        self.episodes = Episodes(starts, np.append(starts[1:], steps), describe)
        self.segments = Lazy((steps,), lambda rows: np.searchsorted(starts, rows, side="right") - 1)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return self.episodes.starts, self.episodes.stops

    @cached_property
    def statistics(self) -> Statistics:
        """(mean, std) of the action of every frame, each frame counted once.

        Computed when first asked for, and then kept in `hwm_statistics.json` beside the data; where that cannot be
        written, in the user's cache folder.

        Raises:
            StoreError: an action is not finite.
        """
        return remembered(self.path, self.once, self.header.action_names)

    @property
    def has_video(self) -> bool:
        return False

    def verify(self) -> None:
        """Read everything; raise `StoreError` for ids outside the vocabulary and actions that are not finite."""
        latent = self.header.latent
        if latent is not None and latent.vocab is not None and self.latents is not None:
            for i in range(0, self.steps, 4096):
                ids = np.asarray(self.latents[i : i + 4096])
                if ids.min() < 0 or ids.max() >= latent.vocab:
                    raise StoreError(
                        f"{self.path}: ids from {ids.min()} to {ids.max()} in steps {i} to {i + len(ids) - 1}, "
                        f"outside the vocabulary of {latent.vocab:,}"
                    )
        all_finite(self.path, self.once, self.header.action_names)


def all_finite(path: Path, once: Array, names: Sequence[str]) -> None:
    """Raise `StoreError` for the first action that is not a finite number."""
    frame = 0
    for piece in pieces(once):
        bad = np.argwhere(~np.isfinite(piece))
        if len(bad):
            row, dim = bad[0]
            raise StoreError(
                f"{path}: {names[dim]} of frame {frame + row} is {piece[row, dim]}, of which a model can "
                "learn nothing: fetch the file again"
            )
        frame += len(piece)


def remembered(path: Path, once: Array, names: Sequence[str]) -> Statistics:
    """Action statistics of a folder: those noted earlier if they are of these actions, else computed and noted."""
    places = (
        path / STATISTICS,
        cache_folder() / f"{path.resolve().name}-{zlib.crc32(str(path.resolve()).encode()):08x}.json",
    )
    key = {"frames": len(once), "names": list(names), "sample": _sample(once)}
    for place in places:
        try:
            noted = json.loads(place.read_bytes())
            if {k: noted[k] for k in key} == key:
                return tuple(map(float, noted["mean"])), tuple(map(float, noted["std"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not there, or not ours
    mean, std = ([float(x) for x in part] for part in moments(once))
    if not np.isfinite([*mean, *std]).all():
        all_finite(path, once, names)
    text = json.dumps({**key, "mean": mean, "std": std}, indent=1).encode()
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, text)
        except OSError:
            continue
        if place != places[0]:
            print(f"{path} cannot be written to: its action statistics are kept in {place}", file=sys.stderr)
        break
    return tuple(mean), tuple(std)


def cache_folder() -> Path:
    """Where to keep what cannot be kept beside the data."""
    return cache() / "statistics"


def _sample(once: Array, rows: int = 64) -> int:
    """A checksum of some actions, spread evenly: tells other data of the same size."""
    chosen = np.unique(np.linspace(0, len(once) - 1, rows).round().astype(np.int64))
    return zlib.crc32(np.ascontiguousarray(once[chosen]).tobytes())
