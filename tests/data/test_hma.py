"""HMA's encoded folders, read where they lie: told from 1X's, actions with the frames that they lead to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwm.data.hma import HMA
from hwm.data.onex.v1 import OneXV1
from hwm.data.readers import open_store
from hwm.data.store import StoreError
from hwm.encode.episodes import encode
from hwm.tokenizers.pixels import Pixels
from tests.data.onex_toys import make_v1

LENGTHS, RUNS = [4, 1, 3], np.repeat([0, 1, 5], [4, 1, 3]).astype(np.int32)
N = len(RUNS)
IDS = {"token_dtype": "uint32", "h": 4, "w": 6, "vocab_size": 2**18, "latent_channels": None, "encoder_type": "magvit"}
VAE = {
    "token_dtype": "float16",
    "h": 4,
    "w": 4,
    "vocab_size": None,
    "latent_channels": 4,
    "encoder_type": "temporalvae",
}
RAW = {"token_dtype": "uint8", "h": 2, "w": 1, "vocab_size": None, "latent_channels": None, "encoder_type": "magvit"}


def write(path: Path, video: np.ndarray, actions: dict[str, np.ndarray], meta: dict[str, Any]) -> Path:
    """A folder as HMA's encoders and `merge_shards.py` leave it."""
    (path / "actions").mkdir(parents=True)
    video.tofile(path / "video.bin")
    RUNS.tofile(path / "segment_ids.bin")
    for name, part in actions.items():
        part.astype(np.float32).tofile(path / "actions" / f"{name}.bin")
    width = sum(part.shape[1] for part in actions.values())
    common = {"action_dim": width, "s": 16, "hz": 10, "num_images": N, "name": "droid", "num_shards": 2}
    (path / "metadata.json").write_text(json.dumps({**common, **meta}), encoding="utf-8")
    return path


@pytest.fixture
def taken() -> np.ndarray:
    """The action taken at frame n, (N, 2), is n and n + 0.5."""
    return np.arange(N)[:, None] + np.array([0, 0.5])


def test_ids_and_the_actions_that_lead_to_them(tmp_path: Path, taken: np.ndarray) -> None:
    ids = np.random.default_rng(0).integers(0, 2**18, (N, 4, 6)).astype(np.uint32)
    store = open_store(write(tmp_path / "droid_magvit_max1000000_train", ids, {"actions": taken}, IDS))
    assert isinstance(store, HMA)
    store.verify()
    assert np.array_equal(store.latents[:], ids)
    assert store.header.latent is not None
    assert (store.header.latent.grid, store.header.latent.levels) == ((4, 6), (512, 512))
    assert (store.header.embodiment, store.header.fps, store.header.tokenizer) == ("droid", 10, "magvit2")
    assert store.header.action_names == ("action_0", "action_1")
    assert [e.steps for e in store.episodes] == LENGTHS
    assert [e.info["segment"] for e in store.episodes] == [0, 1, 5]
    led = [0, 0, 1, 2, 4, 5, 5, 6]  # the one before, and none across a seam
    assert store.actions[:][:, 0, 0].tolist() == led
    assert store.actions[5][0].tolist() == [5, 5.5]
    assert store.actions[[6, 3]][:, 0, 1].tolist() == [5.5, 2.5]
    mean, std = store.statistics  # of every action once, as they were recorded
    assert mean == pytest.approx(taken.mean(0))
    assert std == pytest.approx(taken.std(0))


def test_latents_are_scaled_and_files_of_actions_joined_by_name(tmp_path: Path, taken: np.ndarray) -> None:
    latents = np.random.default_rng(0).normal(0, 5, (N, 4, 4, 4)).astype(np.float16)
    store = open_store(write(tmp_path / "vae", latents, {"b": taken[:, 1:], "a": taken[:, :1]}, VAE))
    assert (store.header.tokenizer, store.header.latent_shape, store.header.dtype) == ("svd-vae", (4, 4, 4), "float16")
    want = latents.astype(np.float32) * 0.18215
    assert np.allclose(store.latents[:], want, atol=2e-3)
    assert np.allclose(store.latents[[6, 1]], want[[6, 1]], atol=2e-3)
    assert store.actions[1][0].tolist() == [0, 0.5]


@pytest.mark.parametrize("sides", [(2, 1), (32, 16)])
def test_pictures_are_a_recording(tmp_path: Path, taken: np.ndarray, sides: tuple[int, int]) -> None:
    """Sides are told in pixels, or in cells of 16."""
    pictures = np.random.default_rng(0).integers(0, 256, (N, *sides, 3), dtype=np.uint8)
    store = open_store(write(tmp_path / "raw", pictures, {"actions": taken}, RAW))
    assert (store.latents, store.has_video, store.header.tokenizer) == (None, True, "")
    assert np.array_equal(np.stack(list(store.frames(store.episodes[2]))), pictures[5:])
    assert np.array_equal(np.stack(list(store.frames(store.episodes[0], 2, 1, 4))), pictures[1:4:2])
    made = encode(tmp_path / "raw", Pixels(sides), tmp_path / "out")
    assert made.latents is not None
    assert np.array_equal(made.latents, pictures.transpose(0, 3, 1, 2))
    assert np.array_equal(made.actions, store.actions[:])


def test_1x_is_told_from_it_by_content(tmp_path: Path) -> None:
    make_v1(tmp_path / "v1", [3])
    assert isinstance(open_store(tmp_path / "v1"), OneXV1)
    assert not HMA.recognises(tmp_path / "v1")
    (tmp_path / "v1/metadata.json").write_text("nothing", encoding="utf-8")
    with pytest.raises(StoreError, match=r"metadata.json cannot be read"):
        open_store(tmp_path / "v1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hz": None}, r"metadata.json lacks hz"),
        ({"hz": 0}, r"metadata.json: hz is 0, where a positive number is expected"),
        ({"num_images": 9}, r"actions has actions.bin of 64 bytes: 9 frames of 2 float32 are wanted"),
        ({"action_dim": 3}, r"8 frames of 3 float32 are wanted"),
        ({"h": 5}, r"video.bin has 768 bytes; 8 steps of shape \(5, 6\) uint32 take 960"),
        ({"token_dtype": "words"}, r"elements of words with vocab_size .* are neither ids"),
        ({"num_images": "many"}, r'metadata.json: num_images is "many", where a number is expected'),
        ({"action_dim": [2]}, r"metadata.json: action_dim is \[2\], where a number is expected"),
        ({"vocab_size": None}, r"elements of uint32 with vocab_size None and latent_channels None are neither"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, taken: np.ndarray, change: dict[str, Any], message: str) -> None:
    ids = np.zeros((N, 4, 6), np.uint32)
    path = write(tmp_path / "bad", ids, {"actions": taken}, {**IDS, **change})
    with pytest.raises(StoreError, match=message):
        open_store(path)


def test_encoded_pictures_are_not_seen(tmp_path: Path, taken: np.ndarray) -> None:
    store = open_store(write(tmp_path / "ids", np.zeros((N, 4, 6), np.uint32), {"actions": taken}, IDS))
    assert not store.has_video
    with pytest.raises(StoreError, match="has no pictures: they are encoded"):
        store.frames(store.episodes[0])
