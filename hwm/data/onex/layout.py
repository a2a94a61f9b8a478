"""Where the files of 1X's v2.0 lie, and which of them a folder holds.

Shape suffixes: C clips of a shard, N frames of a shard, J step of a clip, K actions a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwm.data.arrays import Array
from hwm.data.fields import Fields
from hwm.data.onex.specs import ACTIONS_1X
from hwm.data.store import StoreError

CLIP_FRAMES = 17
"""Frames of a clip, which was encoded apart from all others."""
CLIP_STEPS = 3
"""Latent steps of a clip: frame 0, frames 1 to 8, frames 9 to 16."""
GRID = (32, 32)
STATES = len(ACTIONS_1X)
CLIP_BYTES = CLIP_STEPS * GRID[0] * GRID[1] * 4
STEP_FRAMES_JK = np.stack([np.zeros(8, np.int64), np.arange(1, 9), np.arange(9, 17)])
"""Frames of a clip whose states are the actions that lead to each of its steps. One alone leads to a clip's first
frame; it stands in all eight places, as at the beginning of any episode."""

TREE = {
    "metadata": "metadata/metadata_{}.json",
    "video": "videos/video_{}",
    "states": "robot_states/states_{}.bin",
    "segments": "segment_indices/segment_idx_{}.bin",
}
"""The training splits: a folder for each kind of file."""
FLAT = {kind: place.split("/")[1] for kind, place in TREE.items()}
"""The validation splits: all files side by side."""


@dataclass(frozen=True)
class Shard:
    """One shard, whose files agree with each other.

    Attributes:
        number: in the names of its files.
        frames: N.
        video: (ceil(N / 17), 3, 32, 32) int32 ids, or an mp4 of N frames.
        states: (N, 25) float32.
        segments: (N,) int32, the recording that each frame is of.
    """

    number: int
    frames: int
    video: Path
    states: Path
    segments: Path

    @property
    def clips(self) -> int:
        return -(-self.frames // CLIP_FRAMES)

    def map_segments(self) -> np.memmap:
        return np.memmap(self.segments, "int32", "r", shape=(self.frames,))


def place_of(path: Path, kind: str, number: int | str, suffix: str = "") -> Path:
    """A file of a folder in either layout; `suffix` is that of video files."""
    places = TREE if (path / "videos").is_dir() else FLAT
    return path / (places[kind].format(number) + (suffix if kind == "video" else ""))


def numbers_of(path: Path, kind: str, suffix: str = "") -> set[int]:
    """Numbers of the shards that a folder has a file of this kind of."""
    place = place_of(path, kind, "*", suffix)
    pattern = re.compile(re.escape(place.name).replace(r"\*", r"(\d+)"))
    found = (pattern.fullmatch(file.name) for file in place.parent.glob(place.name))
    return {int(match[1]) for match in found if match}


def shard_files(path: Path, suffix: str, kinds: Iterable[str]) -> dict[int, dict[str, Path]]:
    """The files of each shard of which there is any, by number and kind.

    Raises:
        StoreError: a shard lacks some of its files, or there is none.
    """
    held = {kind: numbers_of(path, kind, suffix) for kind in kinds}
    numbers = sorted(set().union(*held.values()))
    for number in numbers:
        for kind, have in held.items():
            if number not in have:
                raise StoreError(
                    f"{place_of(path, kind, number, suffix)} is missing, though other files of shard {number} are "
                    f"there: finish the download (hwm data download ... --shards {number}), or remove that shard"
                )
    if not numbers:
        raise StoreError(f"{path} holds no shard, that is no file {place_of(path, 'video', 0, suffix).name}")
    return {number: {kind: place_of(path, kind, number, suffix) for kind in held} for number in numbers}


def find_shards(path: Path, suffix: str) -> list[Shard]:
    """All shards of a folder, ".bin" or ".mp4", with their sizes compared.

    Raises:
        StoreError: a file is missing or of another size than its neighbours and the metadata say.
    """
    shards = []
    for number, files in shard_files(path, suffix, ("video", "states", "segments")).items():
        frames = _rows(files["states"], 4 * STATES)
        shard = Shard(number, frames, files["video"], files["states"], files["segments"])
        metadata = place_of(path, "metadata", number)
        if metadata.is_file():
            check(metadata, "shard_num_frames", Fields.read(metadata).whole("shard_num_frames"), frames)
        check(shard.segments, "frames", _rows(shard.segments, 4), frames)
        if suffix == ".bin":
            check(shard.video, "clips", _rows(shard.video, CLIP_BYTES), shard.clips)
        shards.append(shard)
    return shards


def in_words(path: Path, shards: int) -> str:
    """How many shards are there, and of how many where the metadata state others."""
    stated = Fields.read(path / "metadata.json", optional=True).whole("num_shards", shards)
    return str(shards) if stated == shards else f"{shards} of {stated}"


def check(file: Path, what: str, have: int, want: int) -> None:
    if have != want:
        raise StoreError(
            f"{file} has {have:,} {what}, the states of its shard make it {want:,}: one of the files is truncated or "
            "of another shard; fetch them again"
        )


def _rows(file: Path, size: int) -> int:
    """How many rows of so many bytes a file holds."""
    have = file.stat().st_size
    if have % size or not have:
        raise StoreError(f"{file} has {have:,} bytes, which is no whole number of rows of {size}: fetch it again")
    return have // size


def rate_of(path: Path) -> float:
    """Frames a second of a folder: 30 where nothing else is said."""
    return Fields.read(path / "metadata.json", optional=True).rate("hz", 30)


def run_starts(segments_N: Array, piece: int = 1 << 20) -> np.ndarray:
    """Where the frames of another recording begin, 0 included; read in pieces."""
    starts = [np.zeros(1, np.int64)]
    for i in range(0, len(segments_N), piece):
        part = np.asarray(segments_N[max(0, i - 1) : i + piece])
        starts.append(np.flatnonzero(part[1:] != part[:-1]) + 1 + max(0, i - 1))
    return np.concatenate(starts)


def real_frames(starts: np.ndarray, frames: int) -> np.ndarray:
    """How many frames of each clip of a shard are real and of one recording, (C,): 1 to 17, counted from its first.

    Clips were cut every 17 frames wherever recordings ended, and the last one of a shard was filled up.

    Args:
        starts: of the recordings, as `run_starts` gives them.
        frames: N.
    """
    first_C = np.arange(0, frames, CLIP_FRAMES)
    ends = np.append(starts[1:], frames)
    return np.minimum(ends[np.searchsorted(ends, first_C, side="right")] - first_C, CLIP_FRAMES)


def whole_steps(real_C: np.ndarray) -> np.ndarray:
    """Steps of a clip that show nothing but its first so many frames: 1, 2 or 3."""
    return 1 + (real_C - 1) // 8
