"""robomimic's HDF5: demonstrations, cameras and splits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hwm.data.sources import SourceOptions, open_source, recognise
from hwm.data.store import EpisodeError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.errors import HwmError
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_frames

h5py = pytest.importorskip("h5py", reason="needs h5py, of the extra hdf5")


def make_file(
    path: Path, lengths: tuple[int, ...] = (5, 4, 6), cameras: tuple[str, ...] = ("agentview_image",)
) -> Path:
    """Demonstrations demo_0, demo_2, demo_10, ...: names that do not sort as their numbers do."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {"control_freq": 20, "robots": ["Panda"]}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": kwargs})
        for e, n in enumerate(lengths):
            demo = data.create_group(f"demo_{(0, 2, 10, 11)[e]}")
            demo.attrs["num_samples"] = n
            demo["actions"] = np.random.default_rng(e).normal(size=(n, 7))
            demo["abs_actions"] = demo["actions"][()] + 100
            for camera in cameras:
                demo[f"obs/{camera}"] = np.stack(make_frames(n, seed=e))
            demo["obs/robot0_eef_pos"] = np.zeros((n, 3))
        file["mask/train"] = np.array([b"demo_10", b"demo_0"])
        file["mask/valid"] = np.array([b"demo_2"])
    return path


def test_demonstrations_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = make_file(tmp_path / "lift.hdf5")
    assert recognise(path) == "robomimic"
    source = open_source(path)
    assert list(source.ids) == ["demo_0", "demo_2", "demo_10"]
    assert (source.header.embodiment, source.header.fps, source.steps) == ("panda", 20, 15)
    for e, episode in enumerate(source):
        taken = np.random.default_rng(e).normal(size=(episode.steps, 7)).astype(np.float32)
        assert np.array_equal(episode.actions[1:, 0], taken[:-1])
        frames = np.stack(make_frames(episode.steps, seed=e))
        assert np.array_equal(np.stack(list(episode.frames())), frames)
        assert np.array_equal(np.stack(list(episode.frames(2, 1, 4))), frames[1:4:2])


def test_splits_cameras_and_other_actions(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a", cameras=("agentview_image", "robot0_eye_in_hand_image"))
    with pytest.raises(
        HwmError, match=r"2 cameras \(agentview_image, robot0_eye_in_hand_image\): name one with --camera"
    ):
        open_source(path)
    options = SourceOptions(camera=("agentview_image",), split="train", action_keys=("abs_actions",))
    source = open_source(path, options)
    assert list(source.ids) == ["demo_0", "demo_10"]
    assert source[1].actions.min() > 50
    with pytest.raises(HwmError, match="no split 'test'; there are: train, valid"):
        open_source(path, SourceOptions(camera=("agentview_image",), split="test"))


def test_it_goes_through_encode(tmp_path: Path) -> None:
    store = encode(make_file(tmp_path / "a"), Pixels((32, 32)), tmp_path / "out", EncodeConfig(every=2))
    assert {e.id: e.steps for e in store.episodes} == {"demo_0": 3, "demo_2": 2, "demo_10": 3}
    assert (store.header.fps, store.header.actions_per_step) == (10, 2)
    assert store.latents is not None
    for episode, seed in zip(store.episodes, (0, 2, 1), strict=True):  # a store sorts by name
        frames = np.stack(make_frames((5, 4, 6)[seed], seed=seed))[::2]
        assert np.array_equal(store.latents[episode.start : episode.stop], frames.transpose(0, 3, 1, 2))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a")
    with h5py.File(path, "a") as file:
        del file["data/demo_2/actions"]
        del file["data/demo_10/obs"]
    source = open_source(path)
    with pytest.raises(EpisodeError, match="'demo_2': has no actions; there are: abs_actions, obs"):
        source[1]
    with pytest.raises(EpisodeError, match="'demo_10': has no pictures of agentview_image"):
        source[2]
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env_args"]
    with pytest.raises(HwmError, match="does not say how many steps a second it has: give --source-fps"):
        open_source(path)
    with h5py.File(path, "a") as file:
        del file["data"]
    with pytest.raises(HwmError, match="has no group data"):
        open_source(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(HwmError, match="cannot be read"):
        open_source(path)


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_file(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(HwmError, match=r"pip install 'humanoid-world-models\[hdf5\]'"):
        open_source(path)


def test_several_cameras(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a", cameras=("agentview_image", "robot0_eye_in_hand_image"))
    with h5py.File(path, "a") as file:
        hand = np.stack(make_frames(5, 16, 16, seed=9))
        del file["data/demo_0/obs/robot0_eye_in_hand_image"], file["data/demo_2/obs/robot0_eye_in_hand_image"]
        file["data/demo_0/obs/robot0_eye_in_hand_image"] = hand
        file["data/demo_2/obs/robot0_eye_in_hand_image"] = hand[:3]
    source = open_source(path, SourceOptions(camera=("robot0_eye_in_hand_image", "agentview_image")))
    assert source.header.views == ("robot0_eye_in_hand_image", "agentview_image")
    shown = np.stack(list(source[0].frames()))
    assert shown.shape == (5, 32, 16, 3)
    assert np.array_equal(shown[:, :16], hand)
    with pytest.raises(EpisodeError, match=r"pictures of shape \(3, 16, 16, 3\) of robot0_eye_in_hand_image for 4"):
        source[1]
