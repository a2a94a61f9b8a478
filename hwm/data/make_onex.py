"""Small folders in 1X's layouts, made of the embedded humanoid data or of random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hwm.data.onex.layout import CLIP_FRAMES, CLIP_STEPS, GRID, STATES, STEP_FRAMES_JK, run_starts
from hwm.data.onex.specs import ACTIONS_1X, onex_v1, onex_v2
from hwm.data.onex.write import ShardData, write_test, write_v1, write_v2
from hwm.data.options import MakeOptions as MakeOptions
from hwm.data.readers import open_store
from hwm.data.store import Store
from hwm.errors import HwmError

RATE = 30
"""Frames a second of all of 1X's data."""
TEST_STATES = 64
"""States of a test sample."""


class Material:
    """Frames at 30 a second.

    Attributes:
        states: (N, 25).
        segments: (N,).
    """

    states: np.ndarray
    segments: np.ndarray

    def ids(self, frames: np.ndarray, grid: tuple[int, int], vocab: int) -> np.ndarray:
        """Token ids (..., *grid) that stand for frames (...)."""
        raise NotImplementedError

    def pictures(self) -> Iterator[np.ndarray]:
        """All N pictures, uint8 (H, W, 3)."""
        raise NotImplementedError


class Random(Material):
    """States that wander, recordings of 30 to 300 frames, and ids and pictures that mean nothing."""

    def __init__(self, frames: int, seed: int) -> None:
        self.seed, rng = seed, np.random.default_rng(seed)
        self.states = np.cumsum(rng.normal(0, 0.01, (frames, STATES)), 0).astype(np.float32)
        lengths = rng.integers(30, 301, frames // 30 + 1)
        self.segments = np.repeat(np.arange(len(lengths)), lengths)[:frames].astype(np.int32)

    def ids(self, frames: np.ndarray, grid: tuple[int, int], vocab: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 1)).integers(0, vocab, (*frames.shape, *grid))

    def pictures(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng((self.seed, 2))
        for _ in self.states:
            yield rng.integers(0, 256, (64, 64, 3), np.uint8)


class Recorded(Material):
    """The frames of a store, whose actions are taken for the states."""

    def __init__(self, store: Store, frames: int) -> None:
        h, self.store = store.header, store
        if h.action_names != ACTIONS_1X or h.fps * h.actions_per_step != RATE:
            raise HwmError(f"{store.path} has not the 25 actions of 1X's robot at {RATE} a second")
        k, states, segments, steps = h.actions_per_step, [], [], []
        self.episodes, left = [], frames
        for number, episode in enumerate(store.episodes):
            count = min(left, (episode.steps - 1) * k + 1)
            if not count:
                break
            # the last of a step's actions leads to the moment that it shows
            rows = np.asarray(store.actions[episode.start : episode.stop], np.float32).reshape(-1, STATES)[k - 1 :]
            states.append(rows[:count])
            segments.append(np.full(count, number, np.int32))
            steps.append(episode.start + np.arange(count) // k)
            self.episodes.append((episode, count))
            left -= count
        if left:
            raise HwmError(f"{store.path} has {frames - left:,} frames, fewer than the {frames:,} asked for")
        self.states, self.segments, self.steps = (np.concatenate(x) for x in (states, segments, steps))

    def ids(self, frames: np.ndarray, grid: tuple[int, int], vocab: int) -> np.ndarray:
        latent = self.store.header.latent
        if latent is None or latent.vocab is None or self.store.latents is None:
            raise HwmError(f"{self.store.path} holds no ids: name an encoded store, or random")
        repeat = [a // b for a, b in zip(grid, latent.grid, strict=True)]
        if any(b * r != a for a, b, r in zip(grid, latent.grid, repeat, strict=True)) or latent.vocab > vocab:
            raise HwmError(
                f"{latent.grid} ids of {latent.vocab:,} in {self.store.path} do not fill {grid} of {vocab:,}"
            )
        small = np.asarray(self.store.latents[self.steps[frames]])
        return small.repeat(repeat[0], -2).repeat(repeat[1], -1)

    def pictures(self) -> Iterator[np.ndarray]:
        k = self.store.header.actions_per_step
        for episode, count in self.episodes:
            if episode.frames_per_step != k:
                raise HwmError(f"{self.store.path} has no picture for each of its {RATE} actions a second")
            yield from self.store.frames(episode, stop=count)


def make(o: MakeOptions) -> Store:
    """Write what the options ask for, and open it."""
    if min(o.frames, o.shards) < 1 or o.frames < o.shards:
        raise HwmError(f"{o.frames} frames do not fill {o.shards} shards")
    material = Random(o.frames, o.seed) if o.source == "random" else Recorded(open_store(o.source), o.frames)
    MAKERS[o.version](o, material)
    return open_store(o.out)


def _make_v1(o: MakeOptions, m: Material) -> None:
    latent = onex_v1().latent
    assert latent.vocab is not None
    tokens = m.ids(np.arange(o.frames), latent.grid, latent.vocab)
    write_v1(o.out, tokens, m.states, m.segments, neck_width=o.neck_width)


def _make_v2(o: MakeOptions, m: Material) -> None:
    shards = []
    for rows in np.array_split(np.arange(o.frames), o.shards):
        clips = np.arange(-(-len(rows) // CLIP_FRAMES))
        # what a step shows is its last frame; a clip that ends early is filled up with the shard's last frame
        shown = (CLIP_FRAMES * clips[:, None] + STEP_FRAMES_JK[:, -1]).clip(max=len(rows) - 1)
        shards.append(ShardData(m.states[rows], m.segments[rows], tokens=m.ids(rows[shown], GRID, _vocab_v2())))
    write_v2(o.out, shards, flat=o.flat)


def _make_raw(o: MakeOptions, m: Material) -> None:
    pictures = m.pictures()
    shards = [
        ShardData(m.states[rows], m.segments[rows], frames=(next(pictures) for _ in rows))
        for rows in np.array_split(np.arange(o.frames), o.shards)
    ]
    write_v2(o.out, shards, flat=o.flat)


def _make_test(o: MakeOptions, m: Material) -> None:
    starts = run_starts(m.segments)
    stops = np.append(starts[1:], len(m.segments))
    first = [np.arange(a, b - TEST_STATES + 1, TEST_STATES) for a, b in zip(starts, stops, strict=True)]
    rows = np.concatenate(first)[:, None] + np.arange(TEST_STATES)
    if len(rows) < o.shards:
        raise HwmError(f"recordings of {o.frames} frames hold {len(rows)} test samples of {TEST_STATES} states")
    shown = rows[:, STEP_FRAMES_JK[:CLIP_STEPS, -1]]
    write_test(o.out, m.ids(shown, GRID, _vocab_v2()), m.states[rows], files=o.shards)


def _vocab_v2() -> int:
    vocab = onex_v2().latent.vocab
    assert vocab is not None
    return vocab


MAKERS = {"1.1": _make_v1, "2.0": _make_v2, "2.0-raw": _make_raw, "2.0-test": _make_test}
