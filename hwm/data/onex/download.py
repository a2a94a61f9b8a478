"""Fetching 1X's data from the Hugging Face hub: what is wanted of it, resumably, with sizes checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hwm.errors import HwmError, unknown
from hwm.hub import Hub, HuggingFace, RemoteFile, fetch_all


@dataclass(frozen=True)
class Published:
    """A data set on the hub.

    Attributes:
        repo: owner and name.
        splits: folder of each split.
        licence: as its card states it.
    """

    repo: str
    splits: dict[str, str]
    licence: str


TOKENS, VIDEO = "1x-technologies/worldmodel", "1x-technologies/worldmodel_raw_data"
DATASETS = {
    "1x-v1.1": Published(TOKENS, {"train": "train_v1.1", "val": "val_v1.1"}, "Apache-2.0"),
    "1x-v2.0": Published(TOKENS, {"train": "train_v2.0", "val": "val_v2.0", "test": "test_v2.0"}, "Apache-2.0"),
    "1x-v2.0-raw": Published(
        VIDEO,
        {"train": "train_v2.0_raw", "val": "val_v2.0_raw"},
        "CC-BY-NC-SA-4.0 (attribution, no commercial use, share alike)",
    ),
}
KINDS = (".bin", ".json", ".mp4")
NUMBER = re.compile(r"_(\d+)\.\w+$")


def shard_of(file: RemoteFile) -> int | None:
    """The shard that a file is of, by its name; None for what is of all."""
    match = NUMBER.search(file.path)
    return int(match[1]) if match else None


def download(
    name: str,
    split: str,
    out: str | Path,
    shards: Iterable[int] = (),
    hub: Hub | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Fetch a split of a data set into out/FOLDER, or some of its shards; returns that folder.

    What is there in full is left alone, what is there in part is completed. Shards are fetched one after the other, so
    those that are complete can be read while others are missing.

    Raises:
        HwmError: no such data set, split or shard; too little space; a connection that fails; a file of another size
            than the hub says.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    published = DATASETS[name]
    if split not in published.splits:
        raise unknown(f"split of {name}", split, published.splits)
    folder, path, wanted = published.splits[split], Path(out), set(shards)
    hub = hub or HuggingFace()
    say(f"{name}, {split}: {published.repo}/{folder} on the Hugging Face hub. Licence: {published.licence}")
    try:
        files = [f for f in hub.files(published.repo, folder) if PurePosixPath(f.path).suffix in KINDS]
    except OSError as error:
        raise HwmError(f"{published.repo}/{folder} cannot be listed: {error}") from error
    if not files:
        raise HwmError(f"{published.repo} has no files in {folder}: the data set has been moved or renamed")
    if missing := wanted - {shard_of(f) for f in files}:
        known = sorted(n for f in files if (n := shard_of(f)) is not None)
        there = f"its shards are {known[0]} to {known[-1]}" if known else "it is not in shards"
        raise HwmError(f"{name}, {split} has no shard {min(missing)}: {there}")
    files = [f for f in files if not wanted or shard_of(f) is None or shard_of(f) in wanted]
    files.sort(key=lambda f: (-1 if shard_of(f) is None else shard_of(f), f.path))
    fetch_all(hub, published.repo, files, path, path / folder, "fetch fewer shards at a time", say)
    return path / folder
