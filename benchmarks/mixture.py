"""Batches out of forty robots' stores: how many windows a second, and how much memory that takes.

The stores are made for it: ids of 16 x 16 cells and actions of 7 numbers, of sizes from 1 to 40, mixed by the cube root
of their sizes. Ours maps files into memory and computes where windows begin. The baseline is the same mixture with all
arrays read into memory first, as loaders commonly do. Memory is private memory that opening and drawing adds to a
process of its own: mapped files count for nothing, since the system takes their pages back when it needs to. `late` is
what the second half of the batches added. Both draw the same windows.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from common import in_fresh_process, parser, report

from hwm.data.clips import Clips
from hwm.data.mixture import Mixture
from hwm.data.store import Header, Store
from hwm.data.writer import Writer
from hwm.types import LatentSpec

PARTS = ("mapped", "in memory")
STORES, CELLS, ACTIONS, WINDOW, BATCH = 40, 16, 7, 12, 8


def make(root: Path, unit: int) -> None:
    """Store i has i + 1 episodes of `unit` steps, of a robot of its own."""
    rng = np.random.default_rng(0)
    for i in range(STORES):
        header = Header(
            embodiment=f"robot_{i}",
            action_names=tuple(f"joint_{a}" for a in range(ACTIONS)),
            actions_per_step=1,
            fps=2.0,
            latent=LatentSpec((CELLS, CELLS), vocab=2**18, levels=(512, 512)),
            tokenizer="magvit2",
        )
        writer = Writer(root / f"{i:02d}", header)
        for e in range(i + 1):
            latents = rng.integers(2**18, size=(unit, CELLS, CELLS), dtype=np.int32)
            writer.add(f"e{e}", rng.standard_normal((unit, 1, ACTIONS), np.float32), latents)
        writer.finish()


def private_bytes() -> int:
    """Memory of this process that is not a file's (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(part: str, root: Path, batches: int) -> dict[str, float]:
    before, start = private_bytes(), time.perf_counter()
    stores = [Store(path) for path in sorted(root.iterdir())]
    if part == "in memory":
        for store in stores:
            store.latents, store.actions = np.array(store.latents), np.array(store.actions)
    mixture = Mixture([Clips(store, WINDOW) for store in stores])
    opened = time.perf_counter()
    drawn = crc = halfway = 0
    for step in range(batches):
        if step == batches // 2:
            halfway = private_bytes()
        batch = mixture.batch(0, step, BATCH)
        drawn += len(batch.latents)
        crc = zlib.crc32(batch.latents.numpy(), crc)
    end = time.perf_counter()
    return {
        "bytes": private_bytes() - before,
        "late": private_bytes() - halfway,
        "open": opened - start,
        "windows": drawn / (end - opened),
        "crc": crc,
    }


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--unit", type=int, default=250, help="steps of an episode; there are 820 of them")
    p.add_argument("--batches", type=int, default=2000)
    p.add_argument("--part", nargs=2, metavar=("PART", "FOLDER"), help="measure one part and print its JSON")
    a = p.parse_args()
    unit, batches = (20, 50) if a.quick else (a.unit, a.batches)
    if a.part:
        print(json.dumps(measure(a.part[0], Path(a.part[1]), batches)))
        return
    if not Path("/proc/self/status").exists():
        raise SystemExit(json.dumps({"skipped": "private memory is read from /proc, which is Linux's"}))
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), unit)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*.bin"))
        options = ["--quick"] if a.quick else ["--unit", str(unit), "--batches", str(batches)]
        script = str(Path(__file__))
        mapped, loaded = (in_fresh_process(script, "--part", part, folder, *options) for part in PARTS)
    if mapped["crc"] != loaded["crc"]:
        raise SystemExit("the windows differ")
    report(
        a.json,
        ours=mapped["bytes"] / 1e6,
        baseline=loaded["bytes"] / 1e6,
        unit="MB of private memory",
        data_mb=size / 1e6,
        late_mb=mapped["late"] / 1e6,
        windows_per_second=mapped["windows"],
        baseline_windows_per_second=loaded["windows"],
        open_seconds=mapped["open"],
        baseline_open_seconds=loaded["open"],
        stores=STORES,
        batches=batches,
        batch=BATCH,
    )


if __name__ == "__main__":
    sys.exit(main())
