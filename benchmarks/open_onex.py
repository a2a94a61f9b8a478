"""Opening a 1X v1.1 folder and choosing its windows, in place, against reading it into memory and listing the windows.

The folder is written first, whole and not sparse, then read back and compared. Each way runs in a process of its own;
memory is by how much the most that it held grew.
The baseline is what a plain loader does: every array read at once, and a Python loop over all first frames.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import in_fresh_process, parser, report

WINDOW, STRIDE = 16, 15


def write(folder: str, frames: int) -> dict[str, Any]:
    """A folder of random ids, states and recordings, read back and compared; seconds that writing took."""
    from hwm.data.onex.write import write_v1

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 2**18, (frames, 16, 16), np.uint32)
    states = rng.normal(size=(frames, 25)).astype(np.float32)
    segments = np.sort(rng.integers(0, max(1, frames // 650), frames)).astype(np.int32)
    began = time.perf_counter()
    write_v1(folder, tokens, states, segments)
    took = time.perf_counter() - began
    from hwm.data.readers import open_store

    store = open_store(folder)
    assert store.latents is not None
    for i in range(0, frames, 1 << 16):
        rows = slice(i, i + (1 << 16))
        assert np.array_equal(store.latents[rows], tokens[rows])
        assert np.array_equal(store.actions[rows][:, 0], states[rows])
    return {"seconds": took}


def ours(folder: str) -> int:
    from hwm.data.clips import Clips
    from hwm.data.readers import open_store

    return len(Clips(open_store(folder), WINDOW, stride=STRIDE, filter_overlaps=True))


def baseline(folder: str) -> int:
    arrays = {p.name: np.fromfile(p, "<u4") for p in sorted(Path(folder).rglob("*.bin"))}
    segments = arrays["segment_ids.bin"]
    kept: set[int] = set()
    span = (WINDOW - 1) * STRIDE
    for i in range(len(segments) - span):
        if segments[i] == segments[i + span] and not any(i - k * STRIDE in kept for k in range(1, WINDOW)):
            kept.add(i)
    return len(kept)


def measure(way: str, folder: str) -> dict[str, Any]:
    import hwm.data.readers  # noqa: F401  imports are not what is measured

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    windows = {"ours": ours, "baseline": baseline}[way](folder)
    took = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": took, "mebibytes": grown, "windows": windows}


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        print(json.dumps(write(sys.argv[2], int(sys.argv[3]))))
        return
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3])))
        return
    p = parser(__doc__ or "")
    p.add_argument("--frames", type=int, default=1_000_000)
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "train_v1.1"
        wrote = in_fresh_process(__file__, "--write", str(folder), str(20_000 if o.quick else o.frames))
        got = {way: in_fresh_process(__file__, "--part", way, str(folder)) for way in ("ours", "baseline")}
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
    assert got["ours"]["windows"] == got["baseline"]["windows"]
    report(
        o.json, ours=got["ours"]["seconds"], baseline=got["baseline"]["seconds"], unit="s to open and choose windows",
        ours_memory_MiB=got["ours"]["mebibytes"], baseline_memory_MiB=got["baseline"]["mebibytes"],
        windows=got["ours"]["windows"], folder_MiB=size, write_seconds=wrote["seconds"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
