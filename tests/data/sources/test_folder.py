"""Videos with a file of actions beside each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwm.data.sources import Folder, SourceOptions, open_source, recognise
from hwm.data.store import EpisodeError
from hwm.encode.files import is_video
from hwm.errors import HwmError
from hwm.pictures.video import read_video, write_video
from tests.conftest import make_frames


def make_folder(
    path: Path, lengths: tuple[int, ...] = (6, 4), fps: float = 10.0, **columns: object
) -> list[np.ndarray]:
    """NAME.mp4 and NAME.npz each; returns the actions of each episode."""
    path.mkdir()
    taken = []
    for e, n in enumerate(lengths):
        actions = np.random.default_rng(e).normal(size=(n, 2)).astype(np.float32)
        write_video(path / f"take_{e}.mp4", make_frames(n, seed=e), fps)
        np.savez(path / f"take_{e}.npz", action=actions, **columns)  # type: ignore[arg-type]
        taken.append(actions)
    return taken


def test_a_row_a_frame(tmp_path: Path) -> None:
    taken = make_folder(tmp_path / "lab")
    assert recognise(tmp_path / "lab") == "folder"
    assert not is_video(tmp_path / "lab"), "its actions would be lost if its videos were encoded one by one"
    source = open_source(tmp_path / "lab")
    assert isinstance(source, Folder)
    assert (source.header.embodiment, source.header.fps) == ("lab", 10)
    assert source.header.action_names == ("action_0", "action_1")
    for i, episode in enumerate(source):
        assert episode.id == f"take_{i}"
        assert np.array_equal(episode.actions[1:, 0], taken[i][:-1])
        film = list(read_video(tmp_path / "lab" / f"take_{i}.mp4"))
        assert np.array_equal(np.stack(list(episode.frames())), np.stack(film))
        assert episode.save_video is not None
        episode.save_video(tmp_path / "copy.mp4")
        assert (tmp_path / "copy.mp4").read_bytes() == (tmp_path / "lab" / f"take_{i}.mp4").read_bytes()


def test_time_stamps_find_the_frames_of_a_faster_video(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    write_video(tmp_path / "lab/a.mp4", make_frames(30), 30)
    actions, times = np.arange(10, dtype=np.float32), np.arange(10) / 10
    table = pa.table({"gripper": actions, "joints": list(np.ones((10, 3), np.float32)), "timestamp": times})
    pq.write_table(table, tmp_path / "lab/a.parquet")
    source = open_source(tmp_path / "lab", SourceOptions(action_keys=("joints", "gripper")))
    assert source.header.fps == 10
    assert source.header.action_names == ("joints_0", "joints_1", "joints_2", "gripper")
    episode = source[0]
    assert episode.actions[:, 0, 3].tolist() == [0, *range(9)]
    film = list(read_video(tmp_path / "lab/a.mp4"))
    assert np.array_equal(np.stack(list(episode.frames())), np.stack(film[::3]))
    assert np.array_equal(np.stack(list(episode.frames(2, 3, 8))), np.stack(film[9:24:6]))


def test_a_description_says_the_rest(tmp_path: Path) -> None:
    make_folder(tmp_path / "lab")
    about = {"embodiment": "cart", "action_names": ["speed", "turn"], "text": "drive", "fps": 10}
    (tmp_path / "lab/source.json").write_text(json.dumps(about), encoding="utf-8")
    source = open_source(tmp_path / "lab")
    assert (source.header.embodiment, source.header.action_names) == ("cart", ("speed", "turn"))
    assert source[1].text == "drive"
    (tmp_path / "lab/source.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(HwmError, match=r"source.json cannot be read"):
        open_source(tmp_path / "lab")


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "lab", (6, 4, 5))
    np.savez(tmp_path / "lab/take_1.npz", action=np.zeros((4, 3), np.float32))
    write_video(tmp_path / "lab/take_2.mp4", make_frames(5), 25)
    source = open_source(tmp_path / "lab")
    with pytest.raises(
        EpisodeError, match=r"'take_1' has actions of shape \(4, 1, 3\), where those of 'lab' are \(N, 1, 2\)"
    ):
        source[1]
    with pytest.raises(EpisodeError, match=r"'take_2': take_2.mp4 has 25 frames a second, where 10 are stated"):
        source[2]
    np.savez(tmp_path / "lab/take_1.npz", action=np.zeros((3, 2), np.float32))
    with pytest.raises(EpisodeError, match=r"'take_1': take_1.mp4 shows 4 frames, its actions are of 3"):
        source[1]
    np.savez(tmp_path / "lab/take_1.npz", torque=np.zeros((4, 2), np.float32))
    with pytest.raises(EpisodeError, match=r"'take_1': take_1.npz has no column action; there are: torque"):
        open_source(tmp_path / "lab", SourceOptions(action_keys=("action",)))[1]
    (tmp_path / "lab/take_1.npz").write_bytes(b"nothing")
    with pytest.raises(EpisodeError, match=r"'take_1': take_1.npz cannot be read"):
        source[1]
    (tmp_path / "lab/take_1.npz").unlink()
    assert list(open_source(tmp_path / "lab").ids) == ["take_0", "take_2"]


def test_time_that_runs_back_is_noticed(tmp_path: Path) -> None:
    make_folder(tmp_path / "lab", (4,), timestamp=np.array([0, 0.1, 0.1, 0.3]))
    with pytest.raises(EpisodeError, match=r"time does not go on from step 1 \(0.1 s\) to the next \(0.1 s\)"):
        open_source(tmp_path / "lab")[0]


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    make_folder(tmp_path / "lab", (4,))
    np.savez(tmp_path / "lab/take_0.npz", action=np.array([{"a": 1}], dtype=object))
    with pytest.raises(EpisodeError, match=r"take_0.npz cannot be read"):
        open_source(tmp_path / "lab")


def test_rows_of_different_widths(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    write_video(tmp_path / "lab/a.mp4", make_frames(2), 10)
    pq.write_table(pa.table({"action": [[1.0, 2.0], [3.0]]}), tmp_path / "lab/a.parquet")
    with pytest.raises(EpisodeError, match="rows of different widths"):
        open_source(tmp_path / "lab")
