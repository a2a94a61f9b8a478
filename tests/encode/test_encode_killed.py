"""Encoding that is killed at any moment loses nothing and doubles nothing."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

from hwm.data.store import Store
from hwm.encode.episodes import EncodeConfig, encode
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_store
from tests.encode.killed import run

KILLS = 10


def same(one: Store, other: Store) -> bool:
    """Whether two stores hold the same, byte for byte."""
    names = [f"{a}.bin" for a in ("actions", "latents", "segments")] + [f"video/{e.id}.mp4" for e in other.episodes]
    return one.episodes == other.episodes and all(
        (one.path / name).read_bytes() == (other.path / name).read_bytes() for name in names
    )


def test_ten_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    recording = make_store(tmp_path / "r", [9, 7, 12, 5, 8, 10, 6, 11], latent=None, tokenizer="", video=True)
    whole = encode(recording.path, Pixels((16, 16)), tmp_path / "whole", EncodeConfig(keep_video=True))
    # children come from a server that has imported everything, so that they begin at once
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.encode.killed"])
    first = processes.Process(target=int)
    first.start()
    first.join()
    rng, kills, finished, took = random.Random(4), 0, 0, 0.0
    out, stages = tmp_path / "out_0", set[int]()
    while kills < KILLS or not finished:
        child = processes.Process(target=run, args=(recording.path, out))
        began = time.monotonic()
        child.start()
        # the first is not killed, and says how long it takes
        child.join(rng.uniform(0, took) if took else None)
        if child.exitcode is None:
            child.kill()
            kills += 1
        child.join()
        partial = out / ".partial"
        if child.exitcode == 0:
            took = took or time.monotonic() - began
            finished += 1
            store = Store(out)
            store.verify()
            assert same(store, whole)
            assert not partial.exists()
            out = tmp_path / f"out_{finished}"
        elif partial.is_dir():
            stages.add(sum(p.is_dir() and not p.name.startswith(".") for p in partial.iterdir()))
    assert len(stages) > 2, "the kills came at different moments of the work"
    encode(recording.path, Pixels((16, 16)), out, EncodeConfig(keep_video=True))
    assert same(Store(out), whole)
