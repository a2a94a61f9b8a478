"""Sizes of the published sets: opening takes a moment and little memory, whatever lies on the disk.

The files are sparse: their sizes are real, what is not written takes no space.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hwm.data.clips import Clips
from hwm.data.onex.layout import TREE
from hwm.data.onex.v1 import FIELDS
from hwm.data.readers import open_store

FRAMES = 112_542  # of a published shard


@contextmanager
def at_most(mebibytes: float) -> Iterator[None]:
    """Memory, and not time, which other work on the machine would spoil: `benchmarks/open_onex.py` measures that."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < mebibytes, f"{peak:.1f} MiB"


def sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_a_million_frames_of_v1(tmp_path: Path) -> None:
    n, rng = 1_000_000, np.random.default_rng(0)
    meta = {"token_dtype": "uint32", "s": 16, "h": 16, "w": 16, "vocab_size": 2**18, "hz": 30, "num_images": n}
    (tmp_path / "metadata.json").write_text(json.dumps(meta), encoding="utf-8")
    sparse(tmp_path / "video.bin", n * 1024)
    marked = np.sort(rng.choice(n, 50, replace=False))
    ids = np.memmap(tmp_path / "video.bin", "uint32", "r+", shape=(n, 16, 16))
    ids[marked] = marked[:, None, None] % 2**18
    ids.flush()
    del ids
    segments = np.sort(rng.integers(0, 1500, n)).astype(np.int32)
    segments.tofile(tmp_path / "segment_ids.bin")
    for name, widths in FIELDS.items():
        sparse(tmp_path / "actions" / f"{name}.bin", n * 4 * widths[-1])
    closure = rng.normal(size=n).astype(np.float32)
    closure.tofile(tmp_path / "actions" / "l_hand_closure.bin")

    with at_most(16):  # 1.1 GB on the disk
        store = open_store(tmp_path)
        clips = Clips(store, 16, stride=15)
        apart = Clips(store, 16, stride=15, filter_overlaps=True)
    same = segments[: n - 225] == segments[225:]
    assert len(clips) == same.sum()
    assert len(store.episodes) == len(np.unique(segments))
    valid = np.flatnonzero(same)
    since = valid - np.searchsorted(segments, segments[valid])  # the start of the recording
    assert len(apart) == (since % 240 < 15).sum()
    for i in rng.integers(0, len(clips), 20):
        assert clips.starts[i] == valid[i]
    for frame in marked:
        assert (store.latents[frame] == frame % 2**18).all()
        assert store.actions[frame][0, 21] == closure[frame]
    with at_most(48):
        assert store.statistics[0][21] == pytest.approx(closure.astype(np.float64).mean())


def test_a_hundred_shards_of_v2(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(100):
        clips = -(-FRAMES // 17)
        sparse(tmp_path / f"{TREE['video']}.bin".format(k), clips * 3 * 1024 * 4)
        sparse(tmp_path / TREE["states"].format(k), FRAMES * 100)
        segments = np.sort(rng.integers(390 * k, 390 * (k + 1), FRAMES)).astype(np.int32)
        (tmp_path / "segment_indices").mkdir(exist_ok=True)
        segments.tofile(tmp_path / TREE["segments"].format(k))
        (tmp_path / "metadata").mkdir(exist_ok=True)
        (tmp_path / TREE["metadata"].format(k)).write_text(
            json.dumps({"shard_num_frames": FRAMES, "shard_ind": k}), encoding="utf-8"
        )
    last = np.memmap(tmp_path / "videos/video_99.bin", "int32", "r+", shape=(clips, 3, 32, 32))
    last[4321] = 4321
    last.flush()
    del last

    open_store(tmp_path)  # the first time the disk is read
    with at_most(64):  # 9.3 GB on the disk, 662,100 clips
        store = open_store(tmp_path)
    with at_most(64):
        windows = Clips(store, 3)
    assert len(store.episodes) == 100 * clips
    assert 0.9 < len(windows) / len(store.episodes) < 0.96  # the others span two of 38,900 recordings
    episode = store.episodes[99 * clips + 4321]
    assert (store.latents[episode.start : episode.stop] == 4321).all()
    with at_most(16):
        assert windows.batch(rng.integers(0, len(windows), 64)).latents.shape == (64, 3, 32, 32)
