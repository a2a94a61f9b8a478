"""Some episodes of a source as a store, to be looked at by what shows stores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hwm.data.arrays import moments
from hwm.data.sources.base import Episode, Source, of_episode
from hwm.data.store import Episode as Stretch
from hwm.data.store import EpisodeError, Store, StoreError
from hwm.pictures.stack import of_view


class Sample(Store):
    """Episodes spread evenly over a source. They are read; those that cannot be are noted.

    Args:
        source: any.
        most: how many episodes.

    Raises:
        StoreError: none of them can be read.
    """

    def __init__(self, source: Source, most: int = 12) -> None:
        self.path, self.header, self.latents, self.source = source.path, source.header, None, source
        numbers = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int).tolist()
        read, bad = list[Episode](), dict[str, str]()
        for number in numbers:
            try:
                read.append(source[number])
            except EpisodeError as error:
                bad[source.ids[number]] = str(error)
        if not read:
            raise StoreError(
                f"{source.path}: none of {len(numbers)} episodes can be read. {next(iter(bad.values()), '')}"
            )
        stretches: list[Stretch] = []
        for episode in read:
            start = stretches[-1].stop if stretches else 0
            text = {"text": episode.text} if episode.text else {}
            stretches.append(Stretch(episode.id, start, start + episode.steps, text))
        self.episodes, self.steps = stretches, stretches[-1].stop
        self.actions = np.concatenate([e.actions for e in read])
        self.segments = np.repeat(np.arange(len(read)), [e.steps for e in read])
        self._read: dict[str, Episode] = {e.id: e for e in read}
        seen = f"{len(read):,} of {len(source):,} episodes are shown" if len(read) < len(source) else "all are shown"
        self.notes = (*source.notes, seen, *bad.values())

    @property
    def count(self) -> int:
        return len(self.source)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        mean, std = moments(self.actions)
        return tuple(mean.tolist()), tuple(std.tolist())

    @property
    def has_video(self) -> bool:
        return True

    def frames(
        self, episode: Stretch, every: int = 1, start: int = 0, stop: int | None = None, view: str = ""
    ) -> Iterator[np.ndarray]:
        frames = self._read[episode.id].frames
        with of_episode(self.path, episode.id):
            yield from (of_view(frames, self.header.views, view) if view else frames)(every, start, stop)

    def verify(self) -> None:
        return  # what is shown was checked when it was read
