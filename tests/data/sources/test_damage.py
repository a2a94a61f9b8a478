"""Files with changed or missing bytes end in an error that says so, or in what was there, and in nothing else."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwm.data.sources import SourceOptions, open_source
from hwm.errors import HwmError
from tests.data.sources.test_folder import make_folder
from tests.data.sources.test_lerobot import write_v21
from tests.data.sources.test_robomimic import make_file

HERE = Path(__file__).parent
TRIES = 60


def npz(folder: Path) -> tuple[Path, SourceOptions]:
    make_folder(folder, (6,))
    return folder / "take_0.npz", SourceOptions(source_fps=10.0)


def compressed(folder: Path) -> tuple[Path, SourceOptions]:
    make_folder(folder, (6,))
    np.savez_compressed(folder / "take_0.npz", action=np.random.default_rng(0).normal(size=(6, 2)))
    return folder / "take_0.npz", SourceOptions(source_fps=10.0)


def parquet(folder: Path) -> tuple[Path, SourceOptions]:
    make_folder(folder, (6,))
    (folder / "take_0.npz").unlink()
    pq.write_table(pa.table({"action": list(np.ones((6, 2), np.float32))}), folder / "take_0.parquet")
    return folder / "take_0.parquet", SourceOptions(source_fps=10.0)


def video(folder: Path) -> tuple[Path, SourceOptions]:
    make_folder(folder, (6,))
    return folder / "take_0.mp4", SourceOptions(source_fps=10.0)


def rows(folder: Path) -> tuple[Path, SourceOptions]:
    write_v21(folder, (6,), image=True)
    return folder / "data/chunk-000/episode_000000.parquet", SourceOptions()


def episodes(folder: Path) -> tuple[Path, SourceOptions]:
    shutil.copytree(HERE / "lerobot", folder)
    return folder / "meta/episodes/chunk-000/file-000.parquet", SourceOptions(camera=("front",))


def lines(folder: Path) -> tuple[Path, SourceOptions]:
    write_v21(folder, (6,))
    return folder / "meta/episodes.jsonl", SourceOptions()


def info(folder: Path) -> tuple[Path, SourceOptions]:
    shutil.copytree(HERE / "lerobot", folder)
    return folder / "meta/info.json", SourceOptions(camera=("front",), kind="lerobot")


def features(folder: Path) -> tuple[Path, SourceOptions]:
    shutil.copytree(HERE / "rlds/toy_base/0.1.0", folder)
    return folder / "features.json", SourceOptions(split="val", source_fps=5.0)


def record(folder: Path) -> tuple[Path, SourceOptions]:
    shutil.copytree(HERE / "rlds/toy_base/0.1.0", folder)
    return next(folder.glob("*-val.*")), SourceOptions(split="val", source_fps=5.0)


def demonstrations(folder: Path) -> tuple[Path, SourceOptions]:
    folder.mkdir()
    return make_file(folder / "a.hdf5", (4,)), SourceOptions(kind="robomimic")


@pytest.mark.parametrize(
    "make",
    [npz, compressed, parquet, video, rows, episodes, lines, info, features, record, demonstrations],
    ids=lambda f: f.__name__,
)
def test_damage_is_said_to_be_damage(
    tmp_path: Path, make: Callable[[Path], tuple[Path, SourceOptions]], capfd: pytest.CaptureFixture[str]
) -> None:
    file, options = make(tmp_path / "data")
    whole, rng, found = file.read_bytes(), random.Random(1), 0
    for i in range(TRIES):
        data = bytearray(whole)
        if i % 2:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 9) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data)
        try:
            episode = open_source(file if options.kind == "robomimic" else tmp_path / "data", options)[0]
            assert sum(frame.ndim == 3 for frame in episode.frames()) <= 64
        except HwmError:
            found += 1
    assert found > TRIES // 4
