"""Stores as sources: recordings of the simulated humanoid, 1X's videos, and whatever else `open_store` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwm.data.readers import READERS, open_store
from hwm.data.sources.base import (
    AS_IT_IS,
    Episode,
    Frames,
    Source,
    SourceOptions,
    choose_cameras,
    of_episode,
    seen_by,
    told,
    view_names,
)
from hwm.data.store import Episode as Stretch
from hwm.data.store import Store
from hwm.errors import HwmError
from hwm.far import is_far


class Stored(Source):
    """A store with video. Its episodes were checked when they were written, and are taken as they are."""

    def __init__(self, path: Path | Store, options: SourceOptions = AS_IT_IS) -> None:
        self.store = path if isinstance(path, Store) else open_store(path)
        self.path, self.steps, self.notes = self.store.path, self.store.steps, self.store.notes
        if options.action_keys or options.split or options.source_fps:
            raise HwmError(f"{self.path} is a store: it says what its actions and its rate are")
        views = self.store.header.views
        if options.camera and not views:
            raise HwmError(f"{self.path} is a store of one camera: leave out --camera")
        self.chosen = choose_cameras(options.camera, views, self.path) if options.camera else views or ("",)
        if options.camera:
            self.notes = (told(self.chosen, views), *self.notes)
        self.header = replace(self.store.header, latent=None, dtype="", tokenizer="", views=view_names(self.chosen))
        self.ids = _Ids(self.store)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and any(kind.recognises(path) for kind in READERS.values())

    def __getitem__(self, number: int) -> Episode:
        with of_episode(self.path, self.store.episodes[number].id):
            return self.read(number)

    def read(self, number: int) -> Episode:
        e = self.store.episodes[number]
        for view in self.chosen if is_far(self.path) else ():
            self.store.video(e, view)  # fetched now, as other sources do, and not when its frames are wanted
        return Episode(
            id=e.id,
            frames=self._film(e),
            actions=np.asarray(self.store.actions[e.start : e.stop], np.float32),
            embodiment=self.header.embodiment,
            fps=self.header.fps,
            text=str(e.info.get("text", "")),
            info=e.info | ({"cameras": list(self.chosen)} if "cameras" in e.info and self.chosen[0] else {}),
            save_video=partial(self._save_video, e),
        )

    def _film(self, e: Stretch) -> Frames:
        if not self.store.header.views:
            return partial(_by_step, partial(self.store.frames, e), e)
        return seen_by(self.chosen, lambda view: partial(_by_step, partial(self.store.frames, e, view=view), e))

    def _save_video(self, e: Stretch, to: Path, view: str = "") -> None:
        self.store.copy_video(e, to, view or self.chosen[0])


def _by_step(
    frames: Frames, e: Stretch, every: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """The frames that show steps, of a video of which a step may be several frames."""
    per_step = e.frames_per_step
    end = None if stop is None else (stop - 1) * per_step + 1
    return frames(every * per_step, start * per_step, end)


class _Ids(Sequence[str]):
    """Names of a store's episodes, asked for one by one: some stores have hundreds of thousands."""

    def __init__(self, store: Store) -> None:
        self.episodes = store.episodes

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: Any) -> Any:
        found = self.episodes[number]
        return [e.id for e in found] if isinstance(number, slice) else found.id
