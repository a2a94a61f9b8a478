"""Fetching 1X's data from the Hugging Face hub: what is wanted of it, resumably, with sizes checked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from hwm.errors import HwmError, unknown
from hwm.progress import track


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


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set: its path there, and its size in bytes."""

    path: str
    size: int

    @property
    def shard(self) -> int | None:
        match = NUMBER.search(self.path)
        return int(match[1]) if match else None


class Hub(Protocol):
    """Where files come from."""

    def files(self, repo: str, folder: str) -> Iterable[RemoteFile]:
        """All files under a folder; `OSError` if it cannot be reached."""

    def fetch(self, repo: str, path: str, out: Path) -> None:
        """Write a file to out/path, going on with what an earlier call left."""


class HuggingFace:
    """The Hugging Face hub; needs the extra `hub`.

    Args:
        endpoint: another address than the public one, such as a mirror's.
        kind: of the repositories: "dataset" or "model".
        token: to show; None takes what the client finds in the environment and in the user's folder, False none.
    """

    def __init__(self, endpoint: str | None = None, kind: str = "dataset", token: str | bool | None = None) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise HwmError(
                "downloading needs huggingface_hub: pip install 'humanoid-world-models[hub]'. Or fetch the files by "
                "any other means: they are read where they lie"
            ) from error
        self.api, self.endpoint, self.kind, self.token = huggingface_hub, endpoint, kind, token

    def files(self, repo: str, folder: str) -> Iterable[RemoteFile]:
        with _as_oserror():
            client = self.api.HfApi(self.endpoint, token=self.token)
            tree = client.list_repo_tree(repo, folder or None, recursive=True, repo_type=self.kind)
            return [RemoteFile(entry.path, entry.size) for entry in tree if isinstance(entry, self.api.hf_api.RepoFile)]

    def fetch(self, repo: str, path: str, out: Path) -> None:
        with _as_oserror():
            self.api.hf_hub_download(
                repo, path, repo_type=self.kind, local_dir=out, endpoint=self.endpoint, token=self.token
            )


@contextmanager
def _as_oserror() -> Iterator[None]:
    """What goes wrong in the client is the network's doing; which library's error it is depends on its version."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


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
    if missing := wanted - {f.shard for f in files}:
        known = sorted(f.shard for f in files if f.shard is not None)
        there = f"its shards are {known[0]} to {known[-1]}" if known else "it is not in shards"
        raise HwmError(f"{name}, {split} has no shard {min(missing)}: {there}")
    files = [f for f in files if not wanted or f.shard is None or f.shard in wanted]
    files.sort(key=lambda f: (-1 if f.shard is None else f.shard, f.path))
    fetch_all(hub, published.repo, files, path, path / folder, "fetch fewer shards at a time", say)
    return path / folder


def fetch_all(
    hub: Hub,
    repo: str,
    files: Iterable[RemoteFile],
    path: Path,
    folder: Path,
    too_large: str,
    say: Callable[[str], None],
) -> None:
    """Fetch files of a repository into a path: those that are not there in full.

    Args:
        folder: where in the path they lie, for people to read.
        too_large: what to do where there is too little space.

    Raises:
        HwmError: too little space; a connection that fails; a file of another size than the hub says, or outside the
            path.
    """
    files = list(files)
    for file in files:
        if ".." in PurePosixPath(file.path).parts or PurePosixPath(file.path).is_absolute():
            raise HwmError(f"{repo} names a file outside its folder: {file.path}")
    todo = [f for f in files if not _whole(path, f)]
    size, total = sum(f.size for f in todo), sum(f.size for f in files)
    say(f"{len(todo)} of {len(files)} files to fetch, {size / 1e9:.2f} of {total / 1e9:.2f} GB, into {folder}")
    path.mkdir(parents=True, exist_ok=True)
    if size > shutil.disk_usage(path).free:
        raise HwmError(f"{path} has {shutil.disk_usage(path).free / 1e9:.2f} GB free; {too_large}")
    for file in track(todo, len(todo), f"fetching {folder.name}", scale=size / 1e6 / max(1, len(todo)), unit="MB"):
        try:
            hub.fetch(repo, file.path, path)
        except OSError as error:
            raise HwmError(f"{file.path} cannot be fetched: {error}. The same command goes on from here") from error
        if not _whole(path, file):
            have = (path / file.path).stat().st_size if (path / file.path).is_file() else 0
            raise HwmError(
                f"{path / file.path} has {have:,} bytes, the hub says {file.size:,}: remove it and give the same "
                "command"
            )


def _whole(path: Path, file: RemoteFile) -> bool:
    local = path / file.path
    return local.is_file() and local.stat().st_size == file.size
