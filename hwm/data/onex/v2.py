"""1X v2.0 as tokens: clips of 17 frames, each encoded by itself into three steps of 32 x 32 ids.

The axis of three in `(clips, 3, 32, 32)` is time, with one vocabulary of 64,000: frame 0, frames 1 to 8, frames 9 to
16. Clips were cut every 17 frames of a shard wherever recordings ended, so a clip may span two of them, and the last
clip of a shard is filled up. Such a clip is cut to the steps that show only its first recording and real frames.

Shape suffixes: N steps, C clips, J step of a clip, K actions a step, A action dimension.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwm.data.arrays import Lazy, Shards
from hwm.data.in_place import InPlace
from hwm.data.onex.layout import (
    CLIP_BYTES,
    CLIP_FRAMES,
    CLIP_STEPS,
    GRID,
    STATES,
    STEP_FRAMES_JK,
    find_shards,
    in_words,
    numbers_of,
    place_of,
    rate_of,
    real_frames,
    run_starts,
    shard_files,
    whole_steps,
)
from hwm.data.onex.specs import EMBODIMENT_1X, onex_v2
from hwm.data.store import Header, StoreError
from hwm.errors import HwmError
from hwm.types import Batch


def header_v2(what: str, hz: float = 30.0) -> Header:
    """What all v2.0 tokens have in common."""
    spec = onex_v2()
    action = spec.actions[EMBODIMENT_1X]
    return Header(
        embodiment=EMBODIMENT_1X,
        action_names=action.names,
        actions_per_step=action.per_step,
        fps=hz / spec.latent.stride,
        latent=spec.latent,
        dtype="int32",
        tokenizer=spec.tokenizer,
        source=f"1X World Model Challenge v2.0, {what}",
    )


class OneXV2(InPlace):
    """`train_v2.0` (a tree of folders) and `val_v2.0` (all files side by side); each clip is an episode.

    A clip begins with a step of one frame that was encoded from nothing. So a window may begin there and nowhere else
    (`clip_steps`), and two clips do not make one longer clip even where they follow one another: see `OneXV2Joined`.
    """

    clip_steps = CLIP_STEPS

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return bool(numbers_of(path, "video", ".bin")) and bool(numbers_of(path, "segments"))

    def _open(self) -> None:
        self.shards = find_shards(self.path, ".bin")
        self.header = header_v2("tokens", rate_of(self.path))
        starts = [run_starts(shard.map_segments()) for shard in self.shards]
        real = [real_frames(s, shard.frames) for s, shard in zip(starts, self.shards, strict=True)]
        kept_C = whole_steps(np.concatenate(real))
        self._clip_starts = np.cumsum(kept_C) - kept_C
        self._tokens = Shards(
            [s.video for s in self.shards], [CLIP_STEPS * s.clips for s in self.shards], "int32", GRID
        )
        self._states = Shards([s.states for s in self.shards], [s.frames for s in self.shards], "float32", (STATES,))
        self._clips_before = np.cumsum([0, *(s.clips for s in self.shards)])
        steps = int(kept_C.sum())
        self.latents = Lazy((steps, *GRID), lambda rows: self._tokens.take(self._token_rows(rows)))
        self.actions = Lazy((steps, *self.header.action_shape), lambda rows: self._states.take(self._frames(rows)))
        self.once = Lazy((len(self._states), 1, STATES), lambda rows: self._states.take(rows)[:, None])
        self._set_notes(real)
        first_C = self._first_clips(starts, real)
        self._set_episodes(self._clip_starts[first_C], steps, lambda number: self._describe(int(first_C[number])))

    def _first_clips(self, starts: list[np.ndarray], real: list[np.ndarray]) -> np.ndarray:
        """Numbers of the clips that begin an episode: here all of them."""
        return np.arange(len(self._clip_starts))

    def _set_notes(self, real: list[np.ndarray]) -> None:
        padded = sum(s.frames % CLIP_FRAMES > 0 for s in self.shards)
        spanning = 0
        for shard, frames in zip(self.shards, real, strict=True):
            there = shard.frames - np.arange(0, shard.frames, CLIP_FRAMES)  # from the clip's first frame on
            spanning += int((frames < np.minimum(there, CLIP_FRAMES)).sum())
        self.notes = (
            f"shards: {in_words(self.path, len(self.shards))}, frames: {sum(s.frames for s in self.shards):,}, clips: "
            f"{len(self._clip_starts):,}",
            f"clips cut short: {spanning:,} where a recording ends, {padded} where a shard ends",
        )

    def _locate(self, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which shard (by its place in `shards`), and which clip of it."""
        shard = np.searchsorted(self._clips_before, clip, side="right") - 1
        return shard, clip - self._clips_before[shard]

    def _place(self, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Clip, and step of the clip, of each step of the store."""
        clip = np.searchsorted(self._clip_starts, rows_N, side="right") - 1
        return clip, rows_N - self._clip_starts[clip]

    def _token_rows(self, rows_N: np.ndarray) -> np.ndarray:
        clip, j = self._place(rows_N)
        return CLIP_STEPS * clip + j

    def _frames(self, rows_N: np.ndarray) -> np.ndarray:
        """Frames, counted over all shards, whose states lead to these steps: (N, K)."""
        clip, j = self._place(rows_N)
        shard, local = self._locate(clip)
        return (self._states.starts[shard] + CLIP_FRAMES * local)[:, None] + STEP_FRAMES_JK[j]

    def _describe(self, clip: int) -> tuple[str, dict[str, Any]]:
        shard, local = (int(x) for x in self._locate(np.array(clip)))
        s = self.shards[shard]
        segment = int(s.map_segments()[CLIP_FRAMES * local])
        info = {"shard": s.number, "clip": local, "segment": segment, "frames_per_step": 8}
        return f"shard_{s.number:03d}_clip_{local:05d}", info


class OneXV2Joined(OneXV2):
    """The same, with whole clips of one recording that follow one another in a shard as one episode.

    For models that predict a whole clip from whole clips before it, as the four-stream family does when it reads a
    clip's three steps as three factors (`clip_factors`). It is never chosen by itself: every third step of such an
    episode holds one frame and not eight, so the steps do not lie evenly in time, `LatentSpec.frames` does not count
    them, and a tokenizer must be given each clip separately.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return False

    def _first_clips(self, starts: list[np.ndarray], real: list[np.ndarray]) -> np.ndarray:
        first = []
        for s, r in zip(starts, real, strict=True):
            follows = np.append(False, r[:-1] == CLIP_FRAMES)
            follows &= ~np.isin(CLIP_FRAMES * np.arange(len(r)), s)
            first.append(~follows)
        return np.flatnonzero(np.concatenate(first))


class OneXTest(InPlace):
    """`test_v2.0`: independent samples, each one clip and more states than the clip has frames.

    How the states lie against the frames is not documented. They are taken to begin with the clip's first frame, as in
    the other splits: the first 17 are the clip's, those after it run ahead (`batch`).

    Attributes:
        states: (samples, F, 25) all states of every sample.
    """

    clip_steps = CLIP_STEPS

    @classmethod
    def recognises(cls, path: Path) -> bool:
        numbers = numbers_of(path, "video", ".bin")
        return bool(numbers & numbers_of(path, "states")) and not numbers_of(path, "segments")

    def _open(self) -> None:
        files = list(shard_files(self.path, ".bin", ("video", "states")).values())
        samples = [file["video"].stat().st_size // CLIP_BYTES for file in files]
        rows = {self._states_a_sample(file["video"], file["states"]) for file in files}
        if len(rows) > 1:
            raise StoreError(f"{self.path}: files have {' and '.join(map(str, sorted(rows)))} states a sample")
        self.header = header_v2("test samples")
        count, per_sample = sum(samples), rows.pop()
        tokens = Shards([f["video"] for f in files], [CLIP_STEPS * n for n in samples], "int32", GRID)
        states = Shards([f["states"] for f in files], samples, "float32", (per_sample, STATES))
        steps = CLIP_STEPS * count
        self.states = Lazy((count, per_sample, STATES), states.take)
        self.latents = Lazy((steps, *GRID), tokens.take)
        self.actions = Lazy(
            (steps, *self.header.action_shape), lambda n: self._actions(n // CLIP_STEPS, n % CLIP_STEPS)
        )
        self.once = Lazy(
            (count * per_sample, 1, STATES),
            lambda n: states.take(n // per_sample)[np.arange(len(n)), n % per_sample][:, None],
        )
        self.notes = (
            f"shards: {in_words(self.path, len(files))}, samples: {count:,}, each of one clip and {per_sample} states",
        )

        def describe(number: int) -> tuple[str, dict[str, Any]]:
            return f"sample_{number:05d}", {"sample": number, "frames_per_step": 8}

        self._set_episodes(np.arange(0, steps, CLIP_STEPS), steps, describe)

    def _states_a_sample(self, video: Path, states: Path) -> int:
        samples, rest = divmod(video.stat().st_size, CLIP_BYTES)
        each, odd = divmod(states.stat().st_size, 4 * STATES * max(1, samples))
        if rest or odd or not samples or each < CLIP_FRAMES:
            raise StoreError(
                f"{states} has {states.stat().st_size:,} bytes for the {video.stat().st_size:,} of {video.name}: these "
                f"are no test samples. If this is a training or validation folder, it lacks its "
                f"{place_of(self.path, 'segments', 'N').name}"
            )
        return each

    def _actions(self, sample: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Actions (n, K, A) that lead to a step of a sample, counted over its clip and those that would follow."""
        frames = CLIP_FRAMES * (step // CLIP_STEPS)[:, None] + STEP_FRAMES_JK[step % CLIP_STEPS]
        states = np.asarray(self.states[sample])
        return states[np.arange(len(sample))[:, None], frames]

    def batch(self, samples: list[int] | np.ndarray, ahead: int = CLIP_STEPS) -> Batch:
        """The clips of these samples, and the actions of `ahead` steps after them, for `predict` to fill in.

        Raises:
            HwmError: the samples have too few states.
        """
        chosen, steps = np.asarray(samples), CLIP_STEPS + ahead
        last = CLIP_FRAMES * ((steps - 1) // CLIP_STEPS) + int(STEP_FRAMES_JK[(steps - 1) % CLIP_STEPS, -1])
        if last >= self.states.shape[1]:
            raise HwmError(
                f"{ahead} steps ahead need {last + 1} states a sample, {self.path} has {self.states.shape[1]}"
            )
        assert self.latents is not None
        latents = self.latents[CLIP_STEPS * chosen[:, None] + np.arange(CLIP_STEPS)].astype(np.int64)
        grid = np.broadcast_to(np.arange(steps), (len(chosen), steps))
        actions = self._actions(np.repeat(chosen, steps), grid.ravel())
        actions = actions.reshape(len(chosen), steps, *self.header.action_shape)
        return Batch(torch.from_numpy(latents), torch.from_numpy(actions), self.header.embodiment)
