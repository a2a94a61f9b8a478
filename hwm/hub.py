"""Fetching files from the Hugging Face hub: resumably, with sizes checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from hwm.errors import HwmError
from hwm.progress import track


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set: its path there, and its size in bytes."""

    path: str
    size: int


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
