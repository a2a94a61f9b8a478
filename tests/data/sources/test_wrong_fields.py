"""Fields that are null, of another type, or written as another program writes them: read where they can only mean one
thing, else named with their file, and nothing else is lost for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwm.data.fields import Fields
from hwm.data.sources import Folder, SourceOptions, folder, open_source
from hwm.data.sources.columns import column_values
from hwm.data.store import EpisodeError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.errors import HwmError
from hwm.pictures.video import write_video
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_frames
from tests.data.sources.test_lerobot import write_v21
from tests.data.sources.test_robomimic import h5py, make_file

ROWS = 6
PIXELS = Pixels((32, 32))
SKIP = EncodeConfig(skip_bad=True)
ACTIONS = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)


def takes(folder: Path, columns: dict[str, Any], *, rest: bool = True) -> Path:
    """A folder of three takes, a, b and c, of which b has other columns; without the `rest` only that one."""
    folder.mkdir()
    for name in "abc" if rest else "b":
        write_video(folder / f"{name}.mp4", make_frames(ROWS), 10)
        own = columns if name == "b" else {"action": list(ACTIONS)}
        pq.write_table(pa.table({"action": list(ACTIONS), **own}), folder / f"{name}.parquet")
    return folder


def lists(kind: Callable[[pa.DataType], pa.DataType]) -> pa.Array:
    return pa.array(ACTIONS.tolist(), kind(pa.float32()))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"action": pa.array(["go"] * ROWS)}, "b.parquet: action holds string, where numbers are expected"),
        ({"action": pa.array([{"x": 1.0}] * ROWS)}, r"b.parquet: action holds struct<x: double>"),
        ({"action": pa.array([b"1"] * ROWS)}, "b.parquet: action holds binary"),
        ({"action": pa.nulls(ROWS)}, "b.parquet: action has no value in row 0"),
        ({"action": pa.array([[1.0, 2.0]] * 3 + [None] * 3)}, "b.parquet: action has no value in row 3"),
        ({"action": pa.array([[1, 2]] * 4 + [[1, None]] * 2)}, "b.parquet: action has no value in row 4"),
        ({"action": pa.array([[1.0]] * 3 + [[1.0, 2.0]] * 3)}, "b.parquet: action has rows of different widths: 1, 2"),
        ({"action": pa.array([[]] * ROWS, pa.list_(pa.float32()))}, "b.parquet: action has rows of no numbers"),
        ({"timestamp": pa.array([i * 10**8 for i in range(ROWS)], pa.timestamp("ns"))}, r"holds timestamp\[ns\]"),
        ({"timestamp": pa.array([str(i / 10) for i in range(ROWS)])}, "b.parquet: timestamp holds string"),
        ({"timestamp": pa.array([None, *(i / 10 for i in range(1, ROWS))])}, "timestamp has no value in row 0"),
        ({"timestamp": pa.array([[i / 10, 0.0] for i in range(ROWS)])}, "timestamp has 2 numbers a row, where one is"),
        ({"timestamp": [0.3] * ROWS}, "go on"),
    ],
)
def test_a_column_of_something_else_costs_one_take(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    source = open_source(takes(tmp_path / "lab", columns))
    with pytest.raises(EpisodeError, match=f"episode 'b'.*{said}"):
        source[1]
    store = encode(source, PIXELS, tmp_path / "out", SKIP)
    assert ([e.id for e in store.episodes], list(store.skipped)) == (["a", "c"], ["b"])
    # alone there is nothing to tell what actions are, and the message is the same
    with pytest.raises(HwmError, match=said):
        open_source(takes(tmp_path / "alone", columns, rest=False))[0]


@pytest.mark.parametrize(
    "columns",
    [
        {"action": lists(pa.large_list)},
        {"action": lists(lambda t: pa.list_(t, 2))},
        {"action": lists(lambda t: pa.list_(pa.field("item", t, nullable=False)))},
        {"action": pa.array([[[x] for x in row] for row in ACTIONS.tolist()], pa.large_list(pa.list_(pa.float64())))},
        {"action": pa.array([[int(x) for x in row] for row in ACTIONS], pa.list_(pa.int16()))},
        {"action": pa.chunked_array([lists(pa.list_)[:2], lists(pa.list_)[2:]])},
        {"action": pa.FixedShapeTensorArray.from_numpy_ndarray(ACTIONS)},
        {"timestamp": pa.array([[i / 10] for i in range(ROWS)])},
        {"timestamp": pa.array([[i / 10] for i in range(ROWS)], pa.large_list(pa.float32()))},
        {"timestamp": pa.array([Decimal(i) / 10 for i in range(ROWS)])},
    ],
    ids=lambda columns: ", ".join(f"{name} {column.type}" for name, column in columns.items()),
)
def test_what_can_only_mean_one_thing_is_read(tmp_path: Path, columns: dict[str, Any]) -> None:
    source = open_source(takes(tmp_path / "lab", columns, rest=False))
    episode = source[0]
    assert np.array_equal(episode.actions[1:, 0], ACTIONS[:-1])
    assert episode.times is None or np.allclose(episode.times, np.arange(ROWS) / 10)
    assert sum(1 for _ in episode.frames()) == ROWS


def test_columns_of_few_bits_and_of_no_rows() -> None:
    assert column_values(pa.array([True, False, True]), "grip").tolist() == [1, 0, 1]
    assert column_values(pa.array(np.float16([1, 2])), "x").tolist() == [1, 2]
    assert column_values(pa.array([3, 4, 3]).dictionary_encode(), "x").tolist() == [3, 4, 3]
    assert column_values(pa.array([], pa.list_(pa.string())), "x").shape == (0, 0)
    assert column_values(pa.nulls(0), "x").shape == (0,)
    assert column_values(pa.array([[1, 2], [3, 4], [5, 6]])[1:], "x").tolist() == [[3, 4], [5, 6]]


@pytest.mark.parametrize("first", [{"action": pa.array(["go"] * ROWS)}, {"action": pa.array([], pa.null())}, "video"])
def test_the_first_take_may_be_the_bad_one(tmp_path: Path, first: Any) -> None:
    folder = takes(tmp_path / "lab", {})
    if first == "video":
        (folder / "a.mp4").write_bytes(b"no film")
    else:
        pq.write_table(pa.table(first), folder / "a.parquet")
    source = open_source(folder)
    assert (source.header.fps, source.header.action_names) == (10, ("action_0", "action_1"))
    with pytest.raises(EpisodeError, match="episode 'a'"):
        encode(source, PIXELS, tmp_path / "stopped")
    assert list(encode(source, PIXELS, tmp_path / "out", SKIP).skipped) == ["a"]


def test_the_first_video_by_itself_may_be_the_bad_one(tmp_path: Path) -> None:
    folder = takes(tmp_path / "lab", {})
    (folder / "a.mp4").write_bytes(b"no film")
    source = open_source(folder, SourceOptions(kind="videos"))
    assert source.header.fps == 10
    assert list(encode(source, PIXELS, tmp_path / "out", SKIP).skipped) == ["a"]


@pytest.mark.parametrize("name", ["object", "empty", "text", "single", "torn", "raw"])
def test_an_npz_of_something_else_costs_one_take(tmp_path: Path, name: str) -> None:
    folder = takes(tmp_path / "lab", {})
    file = folder / "b.npz"
    (folder / "b.parquet").unlink()
    values = {
        "object": np.array([{}]),
        "empty": np.zeros((0, 2)),
        "text": np.array(["a"] * ROWS),
        "single": np.ones(()),
    }
    np.savez(file, action=values.get(name, ACTIONS), allow_pickle=True)
    if name == "torn":
        file.write_bytes(file.read_bytes()[:100])
    if name == "raw":
        np.save(folder / "b.npy", ACTIONS)
        (folder / "b.npy").rename(file)
    store = encode(folder, PIXELS, tmp_path / "out", SKIP)
    assert list(store.skipped) == ["b"]
    assert "b.npz" in store.skipped["b"]
    assert "allow_pickle" not in store.skipped["b"], "which nobody should be told to set"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"fps": "fast"}, r'source.json: fps is "fast", where a number is expected'),
        ({"fps": -1}, "source.json: fps is -1, where a positive number is expected"),
        ({"fps": [10]}, r"source.json: fps is \[10\], where a number"),
        ({"fps": float("nan")}, "source.json: fps is NaN, where a number"),
        ({"fps": True}, "source.json: fps is true, where a number"),
        ({"text": ["drive"]}, r'source.json: text is \["drive"\], where a text is expected'),
        ({"embodiment": 3}, "source.json: embodiment is 3, where a text is expected"),
        ({"action_names": {"a": 1}}, "source.json: action_names is .*, where a text or a list of texts is expected"),
        ({"action_names": ["a", 1]}, "source.json: action_names is .*, where a text or a list of texts is expected"),
        ({"action_names": ["a", "b", "c"]}, "source.json: action_names are 3, a.parquet has 2"),
        ([], r"source.json is \[\], where an object with fields is expected"),
        (None, "source.json is null, where an object with fields is expected"),
    ],
)
def test_a_description_of_something_else_is_named(tmp_path: Path, about: Any, said: str) -> None:
    folder = takes(tmp_path / "lab", {})
    (folder / "source.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(HwmError, match=said):
        open_source(folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_nulls_and_byte_order_marks_in_a_description(tmp_path: Path, encoding: str) -> None:
    folder = takes(tmp_path / "lab", {})
    about = {"fps": None, "text": "öffne 把手", "embodiment": None, "action_names": None}
    (folder / "source.json").write_text(json.dumps(about, ensure_ascii=False), encoding=encoding)
    source = open_source(folder)
    assert (source.header.fps, source.header.embodiment, source[0].text) == (10, "lab", "öffne 把手")


def lerobot(folder: Path, info: dict[str, Any] | None = None, **episode: Any) -> Path:
    """Three episodes with pictures in their rows; other fields in info.json, and in what is said of the second."""
    write_v21(folder, (4, 5, 6), image=True)
    about = folder / "meta/info.json"
    about.write_text(json.dumps(json.loads(about.read_bytes()) | (info or {})), encoding="utf-8")
    file = folder / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[1] |= episode
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8-sig")
    return folder


@pytest.mark.parametrize(
    ("tasks", "text"),
    [(["pick", "place"], "pick; place"), ("pick up", "pick up"), (None, ""), ([], ""), ([None, "pick"], "pick"),
     ("one\u2028two\x85", "one\u2028two\x85")],
)  # fmt: skip
def test_tasks_as_they_are_written(tmp_path: Path, tasks: Any, text: str) -> None:
    assert open_source(lerobot(tmp_path / "set", tasks=tasks))[1].text == text


@pytest.mark.parametrize(
    ("episode", "said"),
    [
        ({"tasks": {"a": 1}}, r"episodes.jsonl, line 2: tasks is \{\"a\": 1\}, where a text or a list of texts"),
        ({"tasks": [3]}, r"episodes.jsonl, line 2: tasks is \[3\]"),
        ({"length": None}, "episodes.jsonl, line 2 lacks length"),
        ({"length": "five"}, r'episodes.jsonl, line 2: length is "five", where a number is expected'),
        ({"length": 5.5}, "episodes.jsonl, line 2: length is 5.5, where a whole number is expected"),
        ({"length": 0}, "has 5 rows, where 0 are stated"),
        ({"length": 4}, "has 5 rows, where 4 are stated"),
    ],
)
def test_a_wrong_field_of_an_episode_costs_that_episode(tmp_path: Path, episode: dict[str, Any], said: str) -> None:
    source = open_source(lerobot(tmp_path / "set", **episode))
    with pytest.raises(EpisodeError, match=f"episode_000001.*{said}"):
        source[1]
    store = encode(source, PIXELS, tmp_path / "out", SKIP)
    assert list(store.skipped) == ["episode_000001"]


def test_an_episode_of_no_frames_is_left_out(tmp_path: Path) -> None:
    write_v21(tmp_path / "set", (4, 3), image=True)
    rows = tmp_path / "set/data/chunk-000/episode_000000.parquet"
    pq.write_table(pq.read_table(rows)[:0], rows)
    file = tmp_path / "set/meta/episodes.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"length": 4', '"length": 0'), encoding="utf-8")
    store = encode(tmp_path / "set", PIXELS, tmp_path / "out", SKIP)
    assert list(store.skipped) == ["episode_000000"]
    assert "has 0 frames" in store.skipped["episode_000000"]


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"fps": None}, "info.json does not say how many steps a second it has: give --source-fps"),
        ({"fps": "fast"}, r'info.json: fps is "fast", where a number is expected'),
        ({"splits": {"train": "0:80%"}}, "info.json: splits: train is '0:80%', where FIRST:END are expected"),
        ({"splits": {"train": [0, 1]}}, r"info.json: splits: train is \[0, 1\], where a text is expected"),
        ({"splits": None}, "has no split 'train'; there are: none"),
        ({"splits": "all"}, 'info.json: splits is "all", where an object with fields is expected'),
        ({"features": None}, "info.json lacks features"),
        ({"features": {"action": None}}, "has no action; there are: "),
        ({"features": {"action": {"shape": None}}}, "info.json: features: action lacks shape"),
        ({"features": {"action": {"shape": ["a"]}}}, r'info.json: features: action: shape: 0 is "a", where a number'),
        ({"features": {"action": 1}}, "info.json: features: action is 1, where an object"),
        ({"data_path": 3}, "info.json: data_path is 3, where a text is expected"),
        ({"data_path": "{nothing}"}, "info.json: data_path cannot be read: KeyError"),
        ({"codebase_version": 3}, "info.json: codebase_version is 3, where a text is expected"),
    ],
)
def test_a_wrong_field_of_a_data_set_is_named(tmp_path: Path, info: dict[str, Any], said: str) -> None:
    with pytest.raises(HwmError, match=said):
        open_source(lerobot(tmp_path / "set", info), SourceOptions(split="train", kind="lerobot"))[0]


def test_scalars_stored_as_lists_of_one(tmp_path: Path) -> None:
    write_v21(tmp_path / "set", (4,), image=True)
    file = tmp_path / "set/data/chunk-000/episode_000000.parquet"
    table = pq.read_table(file)
    lists = pa.array([[t] for t in table["timestamp"].to_pylist()], pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", lists), file)
    assert open_source(tmp_path / "set")[0].steps == 4


def attributes(path: Path, **changes: Any) -> Path:
    make_file(path)
    with h5py.File(path, "a") as file:
        about = {"env_name": "Lift", "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}}
        file["data"].attrs["env_args"] = json.dumps({**about, **changes})
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env_kwargs": None}, "does not say how many steps a second it has: give --source-fps"),
        ({"env_kwargs": "none"}, r'env_args: env_kwargs is "none", where an object with fields is expected'),
        ({"env_kwargs": {"control_freq": "often"}}, r'env_args: env_kwargs: control_freq is "often", where a number'),
        ({"env_kwargs": {"control_freq": 20, "robots": 3}}, "env_args: env_kwargs: robots is 3, where a text or a"),
        ({"env_name": 1}, "env_args: env_name is 1, where a text is expected"),
    ],
)
def test_a_wrong_attribute_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(HwmError, match=said):
        open_source(attributes(tmp_path / "a", **changes))


def test_null_attributes_are_as_none(tmp_path: Path) -> None:
    source = open_source(attributes(tmp_path / "a", env_kwargs={"control_freq": 20, "robots": None}, env_name=None))
    assert (source.header.embodiment, source.header.fps) == ("robomimic", 20)


@pytest.mark.parametrize("bad", ["actions", "obs", "text", "group"])
def test_the_first_demonstration_may_be_the_bad_one(tmp_path: Path, bad: str) -> None:
    path = make_file(tmp_path / "a")
    with h5py.File(path, "a") as file:
        demo = file["data/demo_0"]
        if bad == "group":
            del demo["actions"]
            demo.create_group("actions")
        elif bad == "text":
            demo.attrs["ep_meta"] = '{"lang": 3}'
        else:
            del demo[bad]
    store = encode(path, PIXELS, tmp_path / "out", SKIP)
    assert list(store.skipped) == ["demo_0"]


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (np.zeros((5, 8, 8, 3), np.float32), r"float32 of shape \(5, 8, 8, 3\) in obs/agentview_image"),
        (np.zeros((5, 3, 8, 8), np.uint8), r"uint8 of shape \(5, 3, 8, 8\)"),
        (np.zeros((5, 8, 8, 4), np.uint8), r"uint8 of shape \(5, 8, 8, 4\)"),
    ],
)
def test_pictures_of_another_form_are_named(tmp_path: Path, pictures: np.ndarray, said: str) -> None:
    path = make_file(tmp_path / "a", (5,))
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_image"]
        file["data/demo_0/obs/agentview_image"] = pictures
    for camera in ((), ("agentview_image",)):
        with pytest.raises(HwmError, match=said + r".*where pictures are uint8 of shape \(frames, height, width, 3\)"):
            open_source(path, SourceOptions(camera=camera))


def test_all_that_is_to_be_chosen_is_told_at_once(tmp_path: Path) -> None:
    rlds = Path(__file__).parent / "rlds" / "toy_arm"
    with pytest.raises(HwmError, match=r"(?s)name one with --camera.*give --source-fps.*name one with --split"):
        open_source(rlds)
    path = make_file(tmp_path / "a", cameras=("agentview_image", "wrist"))
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env_args"]
    with pytest.raises(HwmError, match=r"name one with --camera.*give --source-fps"):
        open_source(path)
    lab = Path(__file__).parent / "lerobot"
    with pytest.raises(HwmError, match=r"name one with --camera.*Name others with --action-keys"):
        open_source(lab, SourceOptions(action_keys=("torque",)))


def torn(*_: Any, **__: Any) -> Iterator[Any]:
    raise RuntimeError("the object header is torn")


def torn_frames(*_: Any, **__: Any) -> Iterator[Any]:
    yield from make_frames(1)
    torn()


def test_whatever_opening_ends_in_is_an_error_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "__init__", torn)
    with pytest.raises(HwmError, match="lab cannot be read: RuntimeError: the object header is torn"):
        open_source(takes(tmp_path / "lab", {}))


@pytest.mark.parametrize("where", [(Folder, "read", torn), (folder, "read_video", torn_frames)], ids=lambda w: w[1])
def test_whatever_reading_ends_in_costs_one_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str, Any]
) -> None:
    source = open_source(takes(tmp_path / "lab", {}))
    monkeypatch.setattr(*where)
    with pytest.raises(HwmError, match=r"none of 3 .* episode 'a': it cannot be read: RuntimeError: the object header"):
        encode(source, PIXELS, tmp_path / "out", SKIP)


def test_fields_tell_their_place() -> None:
    fields = Fields("a.json", {"a": {"b": [1, "x"]}, "n": "12"})
    assert fields.whole("n") == 12
    assert fields.part("none").get("x") is None
    with pytest.raises(HwmError, match=r'^a.json: a: b: 1 is "x", where a number is expected$'):
        fields.part("a").wholes("b")
