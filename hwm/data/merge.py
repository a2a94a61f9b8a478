"""Stores of one kind joined into one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from hwm.config import to_json
from hwm.data.readers import open_store
from hwm.data.store import Episode, Store, StoreError, Writer


def merge(paths: Iterable[str | Path], out: str | Path) -> Store:
    """Join finished stores of one header into one, with statistics over all of them.

    Episode ids must not repeat; videos are copied.

    Raises:
        StoreError: nothing to merge, stores of different headers, an episode that is in two of them, or video in some
            of them only.
    """
    stores = [open_store(p) for p in paths]
    if not stores:
        raise StoreError("nothing to merge")
    first = stores[0]
    for s in stores[1:]:
        if s.header != first.header:
            mine, other = to_json(s.header), to_json(first.header)
            differ = "; ".join(f"{k}: {mine[k]!r} against {other[k]!r}" for k in mine if mine[k] != other[k])
            raise StoreError(f"{s.path} and {first.path} differ in kind: {differ}")
        if s.has_video != first.has_video:
            raise StoreError(f"of {s.path} and {first.path} one has video and the other has none")
    every = list(each_episode(stores))  # finds repeated ids before anything is written
    writer = Writer(out, first.header)
    done = writer.done_of(e.id for _, e in every)
    for store, episode in every:
        if episode.id in done:
            continue
        rows = slice(episode.start, episode.stop)
        video = None
        if store.has_video:
            video = writer.partial / f".{episode.id}.mp4"
            store.copy_video(episode, video)
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
