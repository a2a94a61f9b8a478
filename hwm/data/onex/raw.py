"""1X v2.0 as video: one mp4 of 512 x 512 pictures a shard, and the state of every frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hwm.data.arrays import Lazy, Shards
from hwm.data.in_place import InPlace
from hwm.data.onex.layout import STATES, find_shards, in_words, numbers_of, rate_of, run_starts
from hwm.data.onex.specs import ACTIONS_1X, EMBODIMENT_1X
from hwm.data.store import Episode, Header, StoreError
from hwm.pictures.video import count_frames, read_video, write_video


class OneXRaw(InPlace):
    """`train_v2.0_raw` and `val_v2.0_raw`: a recording, to be encoded by any tokenizer.

    A step is a frame, at 30 a second. Episodes are the runs of one segment id within a shard; one that goes on in the
    next shard is two.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return bool(numbers_of(path, "video", ".mp4")) and bool(numbers_of(path, "segments"))

    def _open(self) -> None:
        self.shards = find_shards(self.path, ".mp4")
        self.header = Header(
            embodiment=EMBODIMENT_1X,
            action_names=ACTIONS_1X,
            actions_per_step=1,
            fps=rate_of(self.path),
            source="1X World Model Challenge v2.0, video",
        )
        self.latents = None
        states = Shards([s.states for s in self.shards], [s.frames for s in self.shards], "float32", (STATES,))
        self.actions = self.once = Lazy((len(states), 1, STATES), lambda rows: states.take(rows)[:, None])
        runs = [run_starts(s.map_segments()) + b for s, b in zip(self.shards, states.starts, strict=True)]
        starts = np.concatenate(runs)

        def describe(number: int) -> tuple[str, dict[str, Any]]:
            start = int(starts[number])
            i = int(np.searchsorted(states.ends, start, side="right"))
            shard, frame = self.shards[i], start - int(states.starts[i])
            segment = int(shard.map_segments()[frame])
            info = {"shard": shard.number, "frame": frame, "segment": segment, "frames_per_step": 1}
            return f"shard_{shard.number:03d}_frame_{frame:06d}", info

        self._set_episodes(starts, len(states), describe)
        self.notes = (f"shards: {in_words(self.path, len(self.shards))}",)

    @property
    def has_video(self) -> bool:
        return True

    def video(self, episode: Episode, view: str = "") -> Path:
        raise StoreError(f"{episode.id} has no video file of its own in {self.path}; frames and copy_video read it")

    def frames(
        self, episode: Episode, every: int = 1, start: int = 0, stop: int | None = None, view: str = ""
    ) -> Iterator[np.ndarray]:
        shard = next(s for s in self.shards if s.number == episode.info["shard"])
        first = int(episode.info["frame"])
        end = episode.steps if stop is None else min(stop, episode.steps)
        return read_video(shard.video, every, first + start, first + end)

    def copy_video(self, episode: Episode, to: Path, view: str = "") -> None:
        write_video(to, self.frames(episode), self.header.fps)

    def verify(self) -> None:
        super().verify()
        for shard in self.shards:
            have = count_frames(shard.video)
            if have != shard.frames:
                raise StoreError(
                    f"{shard.video} shows {have:,} frames, its states are of {shard.frames:,}: fetch it again"
                )
