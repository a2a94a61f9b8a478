"""Folders in exactly 1X's layouts: for tests, for trying things, and for handing own data to programs that read them.

Shape suffixes: N frames, A action dimension, C clips, S samples, F states of a sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwm.data.onex.layout import CLIP_FRAMES, CLIP_STEPS, FLAT, GRID, STATES, TREE
from hwm.data.onex.specs import onex_v1
from hwm.data.onex.v1 import FIELDS, LAYOUT
from hwm.data.store import StoreError
from hwm.files import listed
from hwm.pictures.video import write_video


@dataclass(frozen=True)
class ShardData:
    """What goes into one shard of v2.0.

    Attributes:
        states: (N, 25), in the order of `ACTIONS_1X`.
        segments: (N,) the recording of each frame.
        tokens: (ceil(N / 17), 3, 32, 32) ids below 64,000; of a shard of tokens.
        frames: N pictures, uint8 (H, W, 3); of a shard of video.
    """

    states: np.ndarray
    segments: np.ndarray
    tokens: np.ndarray | None = None
    frames: Iterable[np.ndarray] | None = None


def write_v1(
    out: str | Path, tokens: np.ndarray, states: np.ndarray, segments: np.ndarray, *, neck_width: int = 3, hz: int = 30
) -> Path:
    """A folder of v1.1.

    Args:
        tokens: (N, 16, 16) ids below 2^18.
        states: (N, 25), in the order of `ACTIONS_1X`.
        segments: (N,) the recording of each frame, not decreasing.
        neck_width: columns of neck_desired, 3 as published or 1 as on the card; each is the joint NECK_PITCH here.

    Raises:
        StoreError: arrays that do not belong together, or a folder that holds something.
    """
    latent, n = onex_v1().latent, len(tokens)
    _check("tokens", tokens, (n, *latent.grid), latent.vocab)
    _check("states", states, (n, STATES))
    _check("segments", segments, (n,))
    if neck_width not in FIELDS["neck_desired"]:
        raise StoreError(f"neck_desired has 1 or 3 columns, not {neck_width}")
    path = _new_folder(out)
    (path / "actions").mkdir()
    stop = 0
    for name in LAYOUT:
        start, stop = stop, stop + FIELDS[name][0]
        _write(path / "actions" / f"{name}.bin", states[:, start:stop], "float32")
    _write(path / "actions" / "neck_desired.bin", np.repeat(states[:, 20:21], neck_width, 1), "float32")
    _write(path / "video.bin", tokens, "uint32")
    _write(path / "segment_ids.bin", segments, "int32")
    side = latent.grid[0]
    meta = {"token_dtype": "uint32", "s": side, "h": side, "w": side, "vocab_size": latent.vocab, "hz": hz,
            "tokenizer_ckpt": "data/magvit2.ckpt", "num_images": n}  # fmt: skip
    _write_json(path / "metadata.json", meta)
    return path


def write_v2(out: str | Path, shards: Sequence[ShardData], *, flat: bool = False, hz: int = 30) -> Path:
    """A folder of v2.0, tokens or video by what the shards hold.

    Args:
        flat: all files side by side, as in the validation split, instead of in a tree of folders.

    Raises:
        StoreError: arrays that do not belong together, or a folder that holds something.
    """
    if not shards:
        raise StoreError("a folder of no shards")
    for i, shard in enumerate(shards):
        n = len(shard.states)
        if (shard.tokens is None) == (shard.frames is None):
            raise StoreError(f"shard {i} holds either tokens or frames")
        _check("states", shard.states, (n, STATES))
        _check("segments", shard.segments, (n,))
        if shard.tokens is not None:
            _check("tokens", shard.tokens, (-(-n // CLIP_FRAMES), CLIP_STEPS, *GRID), 64_000)
    path, places = _new_folder(out), FLAT if flat else TREE
    for place in places.values():
        (path / place).parent.mkdir(exist_ok=True)
    for i, shard in enumerate(shards):
        n = len(shard.states)
        _write(path / places["states"].format(i), shard.states, "float32")
        _write(path / places["segments"].format(i), shard.segments, "int32")
        video = path / places["video"].format(i)
        if shard.tokens is not None:
            _write(video.with_name(f"{video.name}.bin"), shard.tokens, "int32")
        else:
            assert shard.frames is not None
            shown = write_video(video.with_name(f"{video.name}.mp4"), shard.frames, hz)
            if shown != n:
                raise StoreError(f"shard {i} has {shown} frames and {n} states")
        _write_json(path / places["metadata"].format(i), {"shard_num_frames": n, "shard_ind": i})
    frames = sum(len(shard.states) for shard in shards)
    _write_json(path / "metadata.json", {"num_shards": len(shards), "query": None, "hz": hz, "num_images": frames})
    return path


def write_test(out: str | Path, tokens: np.ndarray, states: np.ndarray, *, files: int = 1) -> Path:
    """A folder of v2.0 test samples.

    Args:
        tokens: (S, 3, 32, 32) ids below 64,000.
        states: (S, F, 25); published are 64 a sample.
        files: how many pairs of files the samples are spread over.

    Raises:
        StoreError: arrays that do not belong together, or a folder that holds something.
    """
    samples = len(tokens)
    _check("tokens", tokens, (samples, CLIP_STEPS, *GRID), 64_000)
    _check("states", states, (samples, states.shape[1] if states.ndim == 3 else CLIP_FRAMES, STATES))
    if not 1 <= files <= samples:
        raise StoreError(f"{samples} samples do not spread over {files} files")
    path = _new_folder(out)
    for i, part in enumerate(np.array_split(np.arange(samples), files)):
        _write(path / f"{FLAT['video'].format(i)}.bin", tokens[part], "int32")
        _write(path / FLAT["states"].format(i), states[part], "float32")
    _write_json(path / "metadata.json", {"num_shards": files, "query": None, "hz": 30, "num_samples": samples})
    return path


def _check(name: str, values: np.ndarray, shape: tuple[int, ...], vocab: int | None = None) -> None:
    if values.shape != shape or not len(values):
        raise StoreError(f"{name} of shape {values.shape}, expected {shape} with at least one row")
    if vocab is not None and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= vocab):
        raise StoreError(f"{name} are whole numbers from 0 to {vocab - 1:,}")


def _new_folder(out: str | Path) -> Path:
    path = Path(out)
    if path.exists() and (not path.is_dir() or listed(path)):
        raise StoreError(f"{path} holds something already; choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, values: np.ndarray, dtype: str, rows: int = 1 << 16) -> None:
    """Raw, little-endian and row-major, in bounded memory."""
    with path.open("wb") as file:
        for i in range(0, len(values), rows):
            file.write(np.ascontiguousarray(values[i : i + rows], np.dtype(dtype).newbyteorder("<")).tobytes())


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
