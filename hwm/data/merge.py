"""Stores of one kind joined into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hwm.config import to_json
from hwm.data.readers import open_store
from hwm.data.store import Episode, Store, StoreError
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.far import FarError


def merge(paths: Iterable[str | Path], out: str | Path, *, skip_bad: bool = False) -> Store:
    """Join finished stores of one header into one, with statistics over all of them, or those of the one other store
    that all were encoded with.

    Episode ids must not repeat; videos are copied. Each store is compared with its checksums. Of a data set that was
    encoded in parts all must be there.

    Args:
        skip_bad: leave out stores that are not there, not finished, damaged, or of another kind than most, and do
            without parts that are missing; the result notes which.

    Raises:
        StoreError: nothing to merge, stores of different headers, a part that is missing, an episode that is in two of
            them, or video in some of them only.
    """
    stores, skipped = _open(list(paths), skip_bad)
    stores, others = _of_one_kind(stores, skip_bad)
    missing = _missing(stores)
    if missing and not skip_bad:
        raise StoreError(
            f"parts {', '.join(map(str, missing))} are missing: encode them, or do without them with --skip-bad"
        )
    every = list(each_episode(stores))  # finds repeated ids before anything is written
    settings = _settings(stores)
    writer = Writer(out, stores[0].header, settings)
    done = writer.done_of(e.id for _, e in every)
    for store, episode in every:
        if episode.id in done:
            continue
        rows = slice(episode.start, episode.stop)
        video = writer.waiting(episode.id) if store.has_video and episode.film == episode.id else {}
        for view, file in video.items():
            store.copy_video(episode, file, view)
        latents = None if store.latents is None else store.latents[rows]
        writer.add(episode.id, store.actions[rows], latents, video, episode.info)
    noted = {name: why for store in stores for name, why in store.skipped.items()}
    # those of another store, which all of them were asked to take
    statistics = stores[0].statistics if settings.get("statistics") else None
    return writer.finish(statistics, skipped=noted | skipped | others, missing=missing)


def _open(paths: list[str | Path], skip_bad: bool) -> tuple[list[Store], dict[str, str]]:
    """The stores that can be read, and why others cannot."""
    stores, bad = [], {}
    for path in paths:
        try:
            store = open_store(path)
            store.verify()
            stores.append(store)
        except HwmError as error:
            if not skip_bad or isinstance(error, FarError):
                raise
            bad[str(path)] = str(error)
    if not stores:
        raise StoreError(f"nothing to merge{''.join(f'; {why}' for why in bad.values())}")
    return stores, bad


def _of_one_kind(stores: list[Store], skip_bad: bool) -> tuple[list[Store], dict[str, str]]:
    """The stores that are as the first (or, where others may be left out, as most), and how others differ."""
    kinds = [(repr(s.header), s.has_video) for s in stores]
    first = stores[kinds.index(Counter(kinds).most_common(1)[0][0])] if skip_bad else stores[0]
    kept, others = [], {}
    for s in stores:
        why = ""
        if s.header != first.header:
            mine, other = to_json(s.header), to_json(first.header)
            differ = "; ".join(f"{k}: {mine[k]!r} against {other[k]!r}" for k in mine if mine[k] != other[k])
            why = f"{s.path} and {first.path} differ in kind: {differ}"
        elif s.has_video != first.has_video:
            why = f"of {s.path} and {first.path} one has video and the other has none"
        if why and not skip_bad:
            raise StoreError(why)
        if why:
            others[str(s.path)] = why
        else:
            kept.append(s)
    return kept, others


def _settings(stores: list[Store]) -> dict[str, Any]:
    """The settings that all of them have in common; all parts of a data set together are the whole."""
    first, parts = stores[0].settings, {s.part for s in stores}
    common = {k: v for k, v in first.items() if all(k in s.settings and s.settings[k] == v for s in stores)}
    whole = first and parts == {(i, len(stores)) for i in range(len(stores))}
    return common | {"shard": 0, "shards": 1} if whole else common


def _missing(stores: list[Store]) -> list[int]:
    """Numbers of the parts that no store is, of data sets that were encoded in parts; those of earlier merges too."""
    there = {s.part for s in stores if s.part}
    lacking = {i for count in {n for _, n in there} for i in range(count) if (i, count) not in there}
    return sorted(lacking | {i for s in stores for i in s.missing})


def each_episode(stores: Iterable[Store]) -> Iterator[tuple[Store, Episode]]:
    seen: dict[str, Path] = {}
    for store in stores:
        for episode in store.episodes:
            if episode.id in seen:
                raise StoreError(f"episode {episode.id!r} is in both {seen[episode.id]} and {store.path}")
            seen[episode.id] = store.path
            yield store, episode
