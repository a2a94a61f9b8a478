"""Small folders in 1X's layouts with known contents, and their rules written out frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwm.data.onex.write import ShardData, write_v1, write_v2

STATES = 25


def states_of(frames: int, offset: int = 0) -> np.ndarray:
    """States (N, 25) that tell their frame and dimension: frame + dimension / 100."""
    return (np.arange(offset, offset + frames)[:, None] + np.arange(STATES) / 100).astype(np.float32)


def segments_of(lengths: list[int], first: int = 0) -> np.ndarray:
    """Segment ids of recordings of these lengths."""
    return np.repeat(np.arange(first, first + len(lengths)), lengths).astype(np.int32)


def make_v1(path: Path, lengths: list[int], seed: int = 0, **more: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A folder of v1.1; what is in it: ids, states, segments."""
    n = sum(lengths)
    ids = np.random.default_rng(seed).integers(0, 2**18, (n, 16, 16))
    states, segments = states_of(n), segments_of(lengths)
    write_v1(path, ids, states, segments, **more)
    return ids, states, segments


def make_v2(path: Path, shards: list[list[int]], *, flat: bool = False, seed: int = 0) -> list[ShardData]:
    """A folder of v2.0 tokens whose shards hold recordings of these lengths; what is in it."""
    rng, data, before, segment = np.random.default_rng(seed), [], 0, 0
    for lengths in shards:
        n = sum(lengths)
        tokens = rng.integers(0, 64_000, (-(-n // 17), 3, 32, 32))
        data.append(ShardData(states_of(n, before), segments_of(lengths, segment), tokens))
        before, segment = before + n, segment + len(lengths)
    write_v2(path, data, flat=flat)
    return data


def steps_by_hand(shard: ShardData) -> list[tuple[int, int, list[int]]]:
    """Every usable step of a shard, from the rules alone: clip, step of the clip, and the 8 frames of its actions.

    A step counts when all frames of its clip up to its own last one are there and of the clip's first recording.
    """
    assert shard.tokens is not None
    steps = []
    for clip in range(len(shard.tokens)):
        for step, last in enumerate((0, 8, 16)):
            frames = range(17 * clip, 17 * clip + last + 1)
            if frames[-1] < len(shard.states) and len({int(shard.segments[f]) for f in frames}) == 1:
                own = [17 * clip] * 8 if step == 0 else list(range(17 * clip + last - 7, 17 * clip + last + 1))
                steps.append((clip, step, own))
    return steps


def windows_by_hand(segments: np.ndarray, window: int, stride: int) -> list[int]:
    """First frames of v1.1's windows: those whose first and last frame are of one recording."""
    span = (window - 1) * stride
    return [i for i in range(len(segments) - span) if segments[i] == segments[i + span]]


def without_overlaps(starts: list[int], window: int, stride: int) -> list[int]:
    """From left to right, leave out a window that begins at a later frame of one that was kept."""
    kept: set[int] = set()
    for i in starts:
        if not any(i - k * stride in kept for k in range(1, window)):
            kept.add(i)
    return sorted(kept)
