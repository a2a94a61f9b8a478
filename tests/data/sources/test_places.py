"""Where episodes lie in a video that they share: what does not fit together is shifted, and is not stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwm.data.sources import SourceOptions, open_source
from hwm.data.sources.places import Place, astray
from hwm.data.store import EpisodeError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.tokenizers.pixels import Pixels

HERE = Path(__file__).parent / "lerobot"  # episodes of 7, 5 and 9 frames at 10 a second
PIXELS, SKIP = Pixels((48, 64)), EncodeConfig(skip_bad=True)
FRONT = "videos/observation.images.front/"


def wrong(*begins: float, known: tuple[int, ...] = (), frames: int = 40, length: int = 10) -> set[int]:
    """Of episodes of ten frames, by number, each that begins there; negative for those that are not there."""
    placed = [Place(b, b + length, e) for e, b in enumerate(begins) if b >= 0]
    return astray(placed, {*known, *(p.episode for p in placed)}, lambda: frames)


@pytest.mark.parametrize("shift", [1, -1, 2, 7])
@pytest.mark.parametrize("episode", range(4))
def test_one_that_is_shifted_is_found(episode: int, shift: int) -> None:
    begins = [0.0, 10.0, 20.0, 30.0]
    begins[episode] += shift
    if begins[0] >= 0:
        assert wrong(*begins) == {episode}


def test_a_row_is_where_an_end_of_the_file_confirms_it() -> None:
    assert wrong(0, 10, 20, 30) == set()
    assert wrong(0, 10, 21, 31) == {2, 3}, "no end of the file confirms the second half"
    assert wrong(0, 10, 21, 31, frames=41) == set(), "it ends with the file: a frame of no episode lies between"
    assert wrong(1, 11, 21, 31) == {0, 1, 2, 3}
    assert wrong(1, 11, 21, 31, frames=41) == set()
    assert wrong(0.04, 10.02, 19.98, 30.01) == set(), "times are rounded"
    assert wrong(30, 0, 10, 20) == set(), "in another order"


def test_of_what_was_taken_out_nothing_is_known() -> None:
    assert wrong(0, -1, 20, -1, 40, frames=99) == set()
    assert wrong(-1, 10, 20, frames=99) == set()
    assert wrong(-1, 10, 20, known=(0,), frames=99) == {1, 2}, "its first one lies in another file"
    assert wrong(0, -1, 5, 30) == {2}, "where they have frames in common, nothing was taken out between them"


def test_frames_are_of_one_episode() -> None:
    assert wrong(0, 0, 10, frames=20) == {0, 1}, "both begin with the file, and one of them is followed by the next"
    assert wrong(0, 10, 0, 10, frames=20) == {0, 1, 2, 3}


def test_no_frames_are_counted_where_all_fits() -> None:
    def count() -> int:
        raise AssertionError

    assert astray([Place(0, 4, 0), Place(4, 9, 1)], {0, 1}, count) == set()


def test_an_episode_of_no_frames_is_left_out_and_its_neighbours_touch(tmp_path: Path) -> None:
    folder = changed(tmp_path / "set", 1)
    meta, data = folder / "meta/episodes/chunk-000/file-000.parquet", folder / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(meta).to_pylist()
    rows[2][f"{FRONT}from_timestamp"] = rows[1][f"{FRONT}from_timestamp"]  # as if the video lacked it
    rows[2][f"{FRONT}to_timestamp"] = 1.6
    rows[1] |= {"length": 0, f"{FRONT}to_timestamp": rows[1][f"{FRONT}from_timestamp"]}
    pq.write_table(pa.Table.from_pylist(rows), meta)
    pq.write_table(pq.read_table(data, filters=[("episode_index", "!=", 1)]), data)
    store = encode(open_source(folder, SourceOptions(camera=("front",))), PIXELS, tmp_path / "out", SKIP)
    assert [(e.id, e.steps) for e in store.episodes] == [("episode_000000", 7), ("episode_000002", 9)]
    assert "has 0 frames" in store.skipped["episode_000001"]


def changed(folder: Path, row: int, **values: float | None) -> Path:
    """A data set of three episodes in one video with other values for one of them."""
    shutil.copytree(HERE, folder)
    file = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for key, value in values.items():
        column = table[FRONT + key].to_pylist()
        column[row] = value
        table = table.set_column(table.column_names.index(FRONT + key), FRONT + key, pa.array(column))
    pq.write_table(table, file)
    return folder


@pytest.mark.parametrize(
    ("row", "values", "said"),
    [
        (1, {"from_timestamp": 0.8}, "from_timestamp and to_timestamp are 4 frames apart, the episode has 5"),
        (1, {"to_timestamp": 1.4}, "are 7 frames apart, the episode has 5"),
        (1, {"from_timestamp": 0.8, "to_timestamp": 1.3}, "from_timestamp is frame 8 of file-000.mp4"),
        (0, {"from_timestamp": 0.1, "to_timestamp": 0.8}, "from_timestamp is frame 1 of file-000.mp4"),
        (2, {"from_timestamp": 1.1, "to_timestamp": 2.0}, "from_timestamp is frame 11 of file-000.mp4"),
        (1, {"from_timestamp": np.nan}, "from_timestamp is NaN, where a number is expected"),
    ],
)
def test_a_shifted_episode_is_left_out_and_no_other(
    tmp_path: Path, row: int, values: dict[str, float], said: str
) -> None:
    source = open_source(changed(tmp_path / "set", row, **values), SourceOptions(camera=("front",)))
    with pytest.raises(EpisodeError, match=f"row {row}: {FRONT}.*{said}"):
        source[row]
    store = encode(source, PIXELS, tmp_path / "out", SKIP)
    assert list(store.skipped) == [f"episode_{row:06d}"]


def rows(folder: Path, name: str, values: list[object], kind: pa.DataType) -> Path:
    """A data set of three episodes in one file of rows with other values for a column."""
    shutil.copytree(HERE, folder)
    file = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values, kind)), file)
    return folder


@pytest.mark.parametrize("begins", [(0, 7, 12), (1, 1, 1)], ids=["of all rows", "late by one"])
def test_times_do_not_reach_into_another_episode(tmp_path: Path, begins: tuple[int, ...]) -> None:
    times = [(begin + i) / 10 for begin, steps in zip(begins, (7, 5, 9), strict=True) for i in range(steps)]
    source = open_source(rows(tmp_path / "set", "timestamp", [*times], pa.float32()), SourceOptions(camera=("front",)))
    with pytest.raises(EpisodeError, match=r"'episode_000001': timestamp runs from .* where 5 frames from 0 s on are"):
        list(source[1].frames())


def test_a_row_without_actions_costs_its_own_episode_only(tmp_path: Path) -> None:
    width = len(pq.read_table(HERE / "data/chunk-000/file-000.parquet")["action"][0])
    actions = [None if i == 9 else [0.0] * width for i in range(21)]
    folder = rows(tmp_path / "set", "action", [*actions], pa.list_(pa.float32()))
    store = encode(open_source(folder, SourceOptions(camera=("front",))), PIXELS, tmp_path / "out", SKIP)
    assert list(store.skipped) == ["episode_000001"]
    assert "action has no value in row 2" in store.skipped["episode_000001"]


@pytest.mark.parametrize("key", ["from_timestamp", "file_index", "chunk_index"])
def test_a_place_that_is_not_told_is_not_guessed(tmp_path: Path, key: str) -> None:
    source = open_source(changed(tmp_path / "set", 0, **{key: None}), SourceOptions(camera=("front",)))
    with pytest.raises(EpisodeError, match=f"row 0 lacks {FRONT}{key}"):
        list(source[0].frames())
    assert len(list(source[1].frames())) == 5
