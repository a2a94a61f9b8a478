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
    with pytest.raises(HwmError, match=r"source.json is \[1\], where an object with fields is expected"):
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
    with pytest.raises(EpisodeError, match=r"take_0.npz: action holds Python objects: save an array of numbers"):
        open_source(tmp_path / "lab")


def test_rows_of_different_widths(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    write_video(tmp_path / "lab/a.mp4", make_frames(2), 10)
    pq.write_table(pa.table({"action": [[1.0, 2.0], [3.0]]}), tmp_path / "lab/a.parquet")
    with pytest.raises(EpisodeError, match="rows of different widths"):
        open_source(tmp_path / "lab")


# ---------------------------------------------------------------------- csv and npy
def make_film(path: Path, frames: int = 5) -> Path:
    path.mkdir(exist_ok=True)
    write_video(path / "a.mp4", make_frames(frames), 10)
    return path


def test_names_of_a_csv_are_those_of_the_actions(tmp_path: Path) -> None:
    lab = make_film(tmp_path / "lab")
    lines = ["\ufeffspeed, turn,grip,who,timestamp"]  # as spreadsheets write it, with a byte-order mark
    lines += [f"{i}.5,{-i},{str(i % 2 == 0).lower()},Ångström,{i / 10}" for i in range(5)]
    (lab / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    assert recognise(lab) == "folder"
    source = open_source(lab)
    assert source.header.action_names == ("speed", "turn", "grip")
    episode = source[0]
    want = np.array([[i + 0.5, -i, i % 2 == 0] for i in range(5)], np.float32)
    assert np.array_equal(episode.actions[1:, 0], want[:-1])
    assert episode.times is not None
    assert episode.times.tolist() == pytest.approx([i / 10 for i in range(5)])
    chosen = open_source(lab, SourceOptions(action_keys=("turn", "speed")))
    assert chosen.header.action_names == ("turn", "speed")
    assert np.array_equal(chosen[0].actions[1:, 0], want[:-1, [1, 0]])
    with pytest.raises(EpisodeError, match=r"a.csv has no column who; there are: speed, turn, grip, timestamp"):
        open_source(lab, SourceOptions(action_keys=("who",)))


def test_columns_of_every_csv_are_found_by_name(tmp_path: Path) -> None:
    lab = make_film(tmp_path / "lab", 3)
    write_video(lab / "b.mp4", make_frames(3), 10)
    np.savetxt(lab / "a.csv", np.arange(6).reshape(3, 2), delimiter=",", header="x,y")  # "# x,y"
    (lab / "b.csv").write_text("y,x\n1,0\n3,2\n5,4\n", encoding="utf-8")
    source = open_source(lab)
    assert source.header.action_names == ("x", "y")
    assert np.array_equal(source[0].actions, source[1].actions)
    (lab / "b.csv").write_text("y\n1\n3\n5\n", encoding="utf-8")
    with pytest.raises(EpisodeError, match=r"'b': b.csv has no column x"):
        source[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.1,0.2\n0.3,0.4\n", "begins with numbers: its first line is to name the columns"),
        ("x,x\n1,2\n", "two columns of one name"),
        ("x,\n1,2\n", "two columns of one name, or one without"),
        ("x,y\n1\n", "a.csv cannot be read: .*Expected 2 columns, got 1"),
        ("", "a.csv cannot be read"),
        ("who\nme\n", "a.csv has no columns of numbers with commas between them; there are: 'who'"),
        ("x;y\n1;2\n", "no columns of numbers with commas between them; there are: 'x;y'"),
        ("x,y\n", "a.csv has no rows"),
        ("x,y\n1,2\n1,-\n1,2\n", "a.csv: y holds '-', where numbers are expected"),
        ('x,y\n1,"0,5"\n1,"0,6"\n', "a.csv: y holds '0,5', where numbers are expected"),
        ('x,action\n1,"[1, 2]"\n1,"[3, 4]"\n', r"a.csv: action holds '\[1, 2\]', where numbers are expected"),
        ("x,timestamp\n1,2024-01-01 10:00:00\n", "a.csv: timestamp holds '2024-01-01 10:00:00', where numbers"),
        ("x,timestamp\n1,\n", "a.csv: timestamp holds '', where numbers are expected"),
        ("x,y\n1,\n2,3\n1,2\n", "action 'y' is nan at step 0"),
    ],
)
def test_a_csv_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    lab = make_film(tmp_path / "lab", 3)
    (lab / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(EpisodeError, match=said):
        open_source(lab)[0]


def test_an_array_of_numpy(tmp_path: Path) -> None:
    lab = make_film(tmp_path / "lab")
    taken = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.save(lab / "a.npy", taken)
    source = open_source(lab)
    assert source.header.action_names == ("action_0", "action_1", "action_2")
    assert np.array_equal(source[0].actions[1:, 0], taken[:-1])
    (lab / "source.json").write_text(json.dumps({"action_names": ["x", "y", "z"]}), encoding="utf-8")
    assert open_source(lab).header.action_names == ("x", "y", "z")
    np.save(lab / "a.npy", np.array([{"a": 1}] * 5, dtype=object))
    with pytest.raises(EpisodeError, match=r"a\.npy holds Python objects"):
        open_source(lab)
    np.save(lab / "a.npy", np.array(["left"] * 5))
    with pytest.raises(EpisodeError, match=r"a\.npy holds str128, where numbers are expected"):
        open_source(lab)


def test_actions_are_not_chosen_by_guessing(tmp_path: Path) -> None:
    lab = make_film(tmp_path / "lab")
    (lab / "a.json").write_text("{}", encoding="utf-8")
    with pytest.raises(HwmError, match=r"no video with a file of actions beside it .*; a.json is of a kind"):
        open_source(lab, SourceOptions(kind="folder"))
    np.save(lab / "a.npy", np.zeros((5, 1)))
    np.savez(lab / "a.npz", action=np.zeros((5, 2)))
    with pytest.raises(HwmError, match=r"beside a.mp4 lie actions as .npz and .npy: keep one of them there"):
        open_source(lab)


# ---------------------------------------------------------------------- several cameras
def make_cameras(path: Path, wrist: int = 6) -> None:
    """Two takes of two cameras; of the second the wrist's may have another length."""
    path.mkdir()
    for e, frames in enumerate((6, wrist)):
        write_video(path / f"take_{e}.top.mp4", make_frames(6, seed=e), 10)
        write_video(path / f"take_{e}.wrist.mp4", make_frames(frames, seed=e + 5), 10)
        np.savez(path / f"take_{e}.npz", action=np.ones((6, 2), np.float32))


def test_several_cameras_are_named_in_the_names_of_their_videos(tmp_path: Path) -> None:
    make_cameras(tmp_path / "lab")
    assert recognise(tmp_path / "lab") == "folder"
    with pytest.raises(HwmError, match=r"2 cameras \(top, wrist\): name one with --camera"):
        open_source(tmp_path / "lab")
    both = open_source(tmp_path / "lab", SourceOptions(camera=("wrist", "top")))
    assert (both.header.views, list(both.ids)) == (("wrist", "top"), ["take_0", "take_1"])
    wrist = open_source(tmp_path / "lab", SourceOptions(camera=("wrist",)))
    assert wrist.header.views == ()
    for e in range(2):
        films = [np.stack(list(read_video(tmp_path / f"lab/take_{e}.{view}.mp4"))) for view in ("wrist", "top")]
        assert np.array_equal(np.stack(list(both[e].frames(2))), np.concatenate(films, 1)[::2])
        assert np.array_equal(np.stack(list(wrist[e].frames())), films[0])
        save = wrist[e].save_video
        assert save is not None
        save(tmp_path / "copy.mp4")
        assert (tmp_path / "copy.mp4").read_bytes() == (tmp_path / f"lab/take_{e}.wrist.mp4").read_bytes()


def test_a_camera_of_another_length_is_named(tmp_path: Path) -> None:
    make_cameras(tmp_path / "lab", wrist=5)
    both = open_source(tmp_path / "lab", SourceOptions(camera=("top", "wrist")))
    with pytest.raises(EpisodeError, match=r"take_1.wrist.mp4 shows 5 frames, its actions are of 6"):
        both[1]
    (tmp_path / "lab/take_0.wrist.mp4").unlink()
    both = open_source(tmp_path / "lab", SourceOptions(camera=("top", "wrist")))
    with pytest.raises(EpisodeError, match="take_0 has no video of camera 'wrist'; there are those of: top"):
        both[0]
    with pytest.raises(HwmError, match="a camera is named twice"):
        open_source(tmp_path / "lab", SourceOptions(camera=("top", "top")))


def test_a_video_that_is_called_as_its_actions_is_the_one_camera(tmp_path: Path) -> None:
    make_folder(tmp_path / "lab", (6, 4))
    write_video(tmp_path / "lab/take_0.slow.mp4", make_frames(3), 10)
    assert [e.id for e in open_source(tmp_path / "lab")] == ["take_0", "take_1"]
    make_folder(tmp_path / "plain")
    with pytest.raises(HwmError, match="of one camera: leave out --camera"):
        open_source(tmp_path / "plain", SourceOptions(camera=("top",)))
    write_video(tmp_path / "lab/take_0.mkv", make_frames(6), 10)
    with pytest.raises(HwmError, match=r"take_0.mkv and take_0.mp4 are of the same actions: remove one"):
        open_source(tmp_path / "lab")
