"""RLDS: what tensorflow-datasets wrote is read without it, as it reads it itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hwm.data.sources import RLDS, SourceOptions, open_source, recognise
from hwm.data.sources.rlds import open_x
from hwm.data.store import EpisodeError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.errors import HwmError
from hwm.tokenizers.pixels import Pixels
from tests.data.sources.test_tfrecord import write_records

HERE = Path(__file__).parent / "rlds"
EXPECTED = np.load(HERE / "expected.npz")


def options(**changes: object) -> SourceOptions:
    return SourceOptions(**{"camera": ("image",), "split": "train", "source_fps": 5.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("camera", ["image", "wrist_image"])
@pytest.mark.parametrize(("split", "episodes"), [("train", 3), ("val", 1)])
def test_a_tensor_of_actions(camera: str, split: str, episodes: int) -> None:
    source = open_source(HERE / "toy_arm", options(camera=(camera,), split=split))
    assert isinstance(source, RLDS)
    assert len(source) == episodes
    assert source.header.action_names == tuple(f"action_{i}" for i in range(7))
    assert (source.header.embodiment, source.header.fps) == ("toy_arm", 5)
    for i, episode in enumerate(source):
        taken = EXPECTED[f"toy_arm/{split}/{i}/action"]
        assert np.array_equal(episode.actions[1:, 0], taken[:-1]), "an action leads to the frame after it"
        assert np.array_equal(episode.actions[0, 0], taken[0])
        assert episode.text == str(EXPECTED[f"toy_arm/{split}/{i}/text"])
        frames = np.stack(list(episode.frames())).astype(int)
        truth = EXPECTED[f"toy_arm/{split}/{i}/{camera}"].astype(int)
        assert frames.shape == truth.shape
        assert abs(frames - truth).mean() < 2, "TensorFlow decodes JPEG with a faster transform"
        if len(truth) > 1:
            assert abs(frames[1:] - truth[:-1]).mean() > 3 * abs(frames - truth).mean(), "in their order"


def test_a_dictionary_of_actions_and_exact_pictures() -> None:
    source = open_source(HERE / "toy_base" / "0.1.0", options(camera=()))
    names = source.header.action_names
    assert names[:2] == ("gripper_closedness_action", "open_gripper")
    assert names[2:5] == ("terminate_episode_0", "terminate_episode_1", "terminate_episode_2")
    for i, episode in enumerate(source):
        keys = ("gripper_closedness_action", "open_gripper", "terminate_episode", "world_vector")
        parts = [EXPECTED[f"toy_base/train/{i}/action/{k}"].reshape(episode.steps, -1) for k in keys]
        assert np.array_equal(episode.actions[1:, 0], np.concatenate(parts, 1).astype(np.float32)[:-1])
        assert np.array_equal(np.stack(list(episode.frames(2, 1))), EXPECTED[f"toy_base/train/{i}/rgb"][1::2])


def test_chosen_actions_in_the_order_asked_for() -> None:
    source = open_source(HERE / "toy_base", options(camera=(), action_keys=("world_vector", "open_gripper")))
    assert source.header.action_names == (*(f"world_vector_{i}" for i in range(3)), "open_gripper")


def test_it_goes_through_encode(tmp_path: Path) -> None:
    store = encode(open_source(HERE / "toy_base", options(camera=())), Pixels((24, 32)), tmp_path / "out")
    assert [e.steps for e in store.episodes] == [len(EXPECTED[f"toy_base/train/{i}/rgb"]) for i in range(3)]
    assert store.latents is not None
    first = store.episodes[0]
    assert np.array_equal(store.latents[: first.stop], EXPECTED["toy_base/train/0/rgb"].transpose(0, 3, 1, 2))
    assert first.info["text"] == str(EXPECTED["toy_base/train/0/text"])
    store.verify()


def test_the_table_of_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_x()
    assert sum(known.hma_fps > 0 for known in table.values()) == 54
    assert table["language_table"].actions == {"action": 2}
    assert (table["bridge"].fps, table["droid"].fps, table["kuka"].hma_fps) == (5, 15, 2)
    rlds = [known for known in table.values() if known.camera]
    assert len(rlds) > 54
    assert all(known.actions for known in rlds)
    known = table["bridge"]
    made_up = type(known)(7.0, 7.0, "wrist_image", {"action": 6})
    monkeypatch.setitem(table, "toy_arm", made_up)
    source = open_source(HERE / "toy_arm", SourceOptions(split="val"))
    assert (source.header.fps, source.chosen) == (7, ("wrist_image",))  # type: ignore[attr-defined]
    assert any("action has 7 numbers here, where 6 are usual" in note for note in source.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera": ()}, r"2 cameras \(image, wrist_image\): name one with --camera"),
        ({"camera": ("depth",)}, "no camera 'depth'; there are: image, wrist_image"),
        ({"split": ""}, r"2 splits \(train, val\): name one with --split"),
        ({"split": "test"}, "no split 'test'"),
        ({"source_fps": 0.0}, "does not say how many steps a second it has: give --source-fps"),
        ({"action_keys": ("world_vector",)}, "has no action/world_vector in its steps; there are: action"),
    ],
)
def test_what_is_not_said_is_asked_for(changes: dict, message: str) -> None:
    with pytest.raises(HwmError, match=message):
        open_source(HERE / "toy_arm", options(**changes))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(HERE / "toy_arm", tmp_path / "toy_arm")
    return tmp_path / "toy_arm" / "0.1.0"


def record_file(folder: Path) -> Path:
    return next(folder.glob("*-train.*"))


def test_missing_files_and_features_are_named(copy: Path) -> None:
    other = copy.parent / "0.2.0"
    shutil.copytree(copy, other)
    with pytest.raises(HwmError, match=r"2 versions: name the folder of one \(0.1.0, 0.2.0\)"):
        open_source(copy.parent, options())
    record_file(other).unlink()
    with pytest.raises(HwmError, match="lacks 1 of the 1 files of 'train'"):
        open_source(other, options())
    features = json.loads((copy / "features.json").read_text(encoding="utf-8"))
    del features["featuresDict"]["features"]["steps"]
    (copy / "features.json").write_text(json.dumps(features), encoding="utf-8")
    with pytest.raises(HwmError, match="not of episodes: it has no steps"):
        open_source(copy, options())
    assert recognise(copy.parent.parent) == ""


def test_a_damaged_record_is_one_bad_episode(copy: Path, tmp_path: Path) -> None:
    file = record_file(copy)
    data = bytearray(file.read_bytes())
    data[40] ^= 255
    file.write_bytes(data)
    with pytest.raises(EpisodeError, match=r"episode 'train_0000000'.*does not match its checksum"):
        encode(open_source(copy, options()), Pixels((24, 32)), tmp_path / "all")
    store = encode(open_source(copy, options()), Pixels((24, 32)), tmp_path / "some", EncodeConfig(skip_bad=True))
    assert [e.id for e in store.episodes] == ["train_0000001", "train_0000002"]
    assert list(store.skipped) == ["train_0000000"]


def test_a_record_without_actions_is_one_bad_episode(copy: Path) -> None:
    write_records(record_file(copy), b"\x0a\x00" * 2, b"\x0a\x00" * 2, b"\x0a\x00" * 2)
    source = open_source(copy, options())
    with pytest.raises(EpisodeError, match="'train_0000001': action is missing"):
        source[1]


def test_another_number_of_records_is_noticed(copy: Path) -> None:
    write_records(record_file(copy), b"\x0a\x00" * 2)
    with pytest.raises(EpisodeError, match="has 1 episodes, where 3 are listed"):
        open_source(copy, options())[0]


def test_as_tensorflow_datasets_reads_it() -> None:
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets, which nothing else here does")
    for split in ("train", "val"):
        read = tfds.builder_from_directory(str(HERE / "toy_base" / "0.1.0")).as_dataset(split=split)
        for episode, truth in zip(
            open_source(HERE / "toy_base", options(camera=(), split=split)), tfds.as_numpy(read), strict=True
        ):
            steps = list(truth["steps"])
            assert np.array_equal(np.stack(list(episode.frames())), np.stack([s["observation"]["rgb"] for s in steps]))
            assert np.array_equal(
                episode.actions[1:, 0, 5:], np.stack([s["action"]["world_vector"] for s in steps])[:-1]
            )


def test_several_cameras() -> None:
    source = open_source(HERE / "toy_arm", options(camera=("wrist_image", "image")))
    assert source.header.views == ("wrist_image", "image")
    assert "cameras wrist_image, image of" in source.notes[0]
    for i, episode in enumerate(source):
        frames = np.stack(list(episode.frames())).astype(int)
        truth = np.concatenate([EXPECTED[f"toy_arm/train/{i}/{view}"] for view in source.header.views], 1)
        assert frames.shape == truth.shape
        assert abs(frames - truth).mean() < 2
