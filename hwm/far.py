"""Files that are not on this disk: addresses such as `s3://bucket/data`, through fsspec and a cache of bounded size.

Every address has a place in the cache, and every place in it is an address: `s3://bucket/data` is
`CACHE/far/s3/bucket/data` (`located`). So whatever works on paths works on addresses, where it asks for a file before
it opens it (`near`), or for stretches of one that is too large to fetch whole (`read`). All of these leave a path that
is on this disk as it is.

What was fetched is kept until it is the longest unused and the cache is full. It is known by its size and by what its
server tells of its version, and fetched anew where that is another.

    HWM_CACHE        folder of the cache, by default ~/.cache/hwm
    HWM_CACHE_SIZE   how much it may hold of files that are far away, such as 200GB; 50GB by default
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from hwm.errors import HwmError
from hwm.files import checksum, write_atomically

T = TypeVar("T")
Span = tuple[int, int]
"""First byte of a stretch, and its end."""

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+([^/].*)")  # paths join slashes: s3:/bucket is s3://bucket
PIECE, AT_ONCE = 8 << 20, 4
"""Bytes of a file that are fetched as one, and how many of these at a time."""
WAITS = (1.0, 5.0, 20.0, 60.0)
"""Seconds before a server that cannot be reached is asked again."""
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "created")
"""What servers call that by which one version of a file differs from another; the first that there is counts."""
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
STALE = 24 * 3600
"""Seconds after which a download that nobody goes on with may be removed."""


class FarError(HwmError):
    """A server that does not answer, or not to us: it says nothing of what is asked for."""


class Version(NamedTuple):
    """Which version of a file a server has: bytes, and a number that stands for the rest."""

    size: int
    mark: int


class Found(NamedTuple):
    """A file of the cache: when it was last used, its bytes, and where it is; a copy has its file by a second name."""

    used: float
    size: int
    names: list[Path]


_versions: dict[Path, Version] = {}
_held: dict[Path, BinaryIO] = {}  # the locks of the copies that this process works with
_unswept = 0  # bytes that were fetched since the cache was last looked through


def cache() -> Path:
    """The folder of everything that is fetched or computed once and can be made again."""
    named = os.environ.get("HWM_CACHE")
    given = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwm"
    return given.absolute()


def bound() -> int:
    """Bytes that may be kept of files that are far away."""
    text = os.environ.get("HWM_CACHE_SIZE", "50GB")
    if not (match := SIZE.fullmatch(text.strip())):
        raise HwmError(f"HWM_CACHE_SIZE={text!r} is no size; write for example 200GB")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def located(name: str | Path) -> Path:
    """The path of a name: of an address its place in the cache, else the name itself.

    An address that is named anew is looked at anew: another version of a file is found.
    """
    match = ADDRESS.fullmatch(str(name))
    if not match:
        return Path(name)
    parts = [part for part in match[2].split("/") if part]
    if ".." in parts or "." in parts:
        raise HwmError(f"{name} is no address: write it without dots for folders")
    place = _root() / match[1] / Path(*parts)
    for known in [path for path in _versions if path == place or place in path.parents]:
        del _versions[known]
    return place


def is_far(path: Path) -> bool:
    return path.is_relative_to(_root())


def address(path: Path) -> str:
    """What to call a path: a place in the cache, and a copy of one, by its address."""
    root = next((root for root in (_root(), _copies()) if path.is_relative_to(root)), None)
    if root is None:
        return str(path)
    protocol, *parts = path.relative_to(root).parts
    return f"{protocol}://{'/' * (protocol == 'file')}{'/'.join(parts)}"


def is_file(path: Path) -> bool:
    if not is_far(path):
        return path.is_file()
    client, place = _client(address(path))
    return bool(_asked(address(path), lambda: client.isfile(place)))


def is_dir(path: Path) -> bool:
    if not is_far(path):
        return path.is_dir()
    client, place = _client(address(path))
    return bool(_asked(address(path), lambda: client.isdir(place)))


def size(path: Path) -> int:
    """Bytes of a file, 0 where it is not there."""
    if is_far(path):
        return version(path).size
    return path.stat().st_size if path.is_file() else 0


def files(path: Path) -> list[Path]:
    """All files under a far folder, in order; empty where there is no such folder."""
    client, place = _client(address(path))
    found: dict[str, Any] = _asked(address(path), lambda: client.find(place, detail=True))
    there = {path / name[len(place.rstrip("/")) + 1 :]: info for name, info in found.items() if name != place}
    _versions.update({p: _version(info) for p, info in there.items()})
    return sorted(there)


def copy(path: Path) -> Path:
    """All of a far folder, or a far file, in a folder of the cache in which nothing is removed until this process ends.

    For data that is read by its paths. What is there already is left alone.

    Raises:
        HwmError: there is nothing, or more than the cache may hold.
    """
    names = [path] if is_file(path) else files(path)
    if not names:
        raise HwmError(f"{address(path)} is not there: it was removed or renamed, or the address is misspelt")
    if (total := sum(version(name).size for name in names)) > bound():
        raise HwmError(
            f"{address(path)} has {total / 1e9:.2f} GB, and data of its kind is fetched whole; the cache may hold "
            f"{bound() / 1e9:.2f}: set HWM_CACHE_SIZE, or fetch it by other means and name its folder"
        )
    place = _copied(path)
    _hold(place)
    copies = {_copied(name): name for name in names}
    for to, name in copies.items():
        if not _kept(to, version(name)):
            to.parent.mkdir(parents=True, exist_ok=True)
            to.unlink(missing_ok=True)
            os.link(near(name), to)
    for old in [found for found in place.rglob("*") if found.is_file() and found not in copies]:
        old.unlink()
    return place


def version(path: Path) -> Version:
    """The version of a far file when it was first asked for."""
    if path not in _versions:
        _versions[path] = _current(path)
    return _versions[path]


def near(path: Path) -> Path:
    """The path of a file, which is on this disk then; an interrupted download goes on where it stopped.

    Raises:
        HwmError: it is not there.
        FarError: it may not be read, changes meanwhile, or its server is not reached.
    """
    if not is_far(path) or _kept(path, version(path)):
        return path
    import fcntl

    wanted = version(path)
    part = path.with_name(f".{path.name}.{wanted.mark:x}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # one process fetches, the others wait
        if _kept(path, wanted):
            return path
        while (have := file.tell()) < wanted.size:
            starts = range(have, wanted.size, PIECE)[:AT_ONCE]
            for piece in _fetched(path, [(start, min(start + PIECE, wanted.size)) for start in starts]):
                file.write(piece)
            file.flush()
        _unchanged(path, wanted, part)
        os.fsync(file.fileno())
        _marked(part, wanted)
        os.replace(part, path)
    _sweep(wanted.size, path)
    return path


def read(path: Path, spans: Sequence[Span], wanted: Version) -> list[bytes | mmap.mmap]:
    """Stretches of a version of a far file, each kept in the cache by itself; those that lack are fetched together.

    Raises:
        HwmError: as `near`.
    """
    folder = path.parent / f".{path.name}.{wanted.mark:x}"
    places = [folder / f"{start:012x}" for start, _ in spans]
    found: dict[int, bytes | mmap.mmap | None] = {
        i: _mapped(places[i], stop - start, wanted.mark) for i, (start, stop) in enumerate(spans)
    }
    lacking = [i for i, piece in found.items() if piece is None]
    if lacking:
        pieces = _fetched(path, [spans[i] for i in lacking])
        _unchanged(path, wanted)
        folder.mkdir(parents=True, exist_ok=True)
        for i, piece in zip(lacking, pieces, strict=True):
            write_atomically(places[i], piece)
            _marked(places[i], Version(len(piece), wanted.mark))
            found[i] = piece
        _sweep(sum(map(len, pieces)), *(places[i] for i in lacking))
    return [found[i] or b"" for i in range(len(spans))]


def send(folder: Path, names: Iterable[str], to: Path, sent: Path) -> None:
    """Write files of a folder to a far one, in their order; those that are noted in `sent` as they are were written."""
    noted = dict(json.loads(line) for line in sent.read_text(encoding="utf-8").splitlines()) if sent.is_file() else {}
    with sent.open("a", encoding="utf-8") as notes:
        for name in names:
            url, crc = address(to / name), checksum(folder / name)
            if noted.get(name) == crc:
                continue
            client, place = _client(url)
            _asked(url, lambda: client.put_file(str(folder / name), place))  # noqa: B023  called at once
            print(json.dumps([name, crc]), file=notes, flush=True)
            _versions.pop(to / name, None)


def _root() -> Path:
    return cache() / "far"


def _copies() -> Path:
    return cache() / "copies"


def _copied(path: Path) -> Path:
    return _copies() / path.relative_to(_root())


def _lock(copy: Path) -> Path:
    return cache() / "locks" / copy.relative_to(_copies()) / ".lock"


def _hold(copy: Path) -> None:
    """Have nothing of a copy removed until this process, and those forked from it, have ended."""
    import fcntl

    if copy not in _held:
        _lock(copy).parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(copy).open("wb")
        fcntl.flock(lock, fcntl.LOCK_SH)
        _held[copy] = lock


@contextmanager
def _free(name: Path) -> Iterator[bool]:
    """Whether a file is of no copy that a process holds; inside, none begins to hold it."""
    import fcntl

    copies = [place for place in (name, *name.parents) if _copies() in place.parents and _lock(place).is_file()]
    with ExitStack() as stack:
        try:
            for copy in copies:
                fcntl.flock(stack.enter_context(_lock(copy).open("wb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def remove(path: Path) -> None:
    """Remove a folder and all that is in it."""
    shutil.rmtree(path, ignore_errors=True)  # of a far one what is kept of it
    if is_far(path):
        client, place = _client(address(path))
        _asked(address(path), lambda: client.rm(place, recursive=True))


def staged(place: Path) -> Path:
    """Where on this disk what is to be sent to a far folder is made."""
    return cache() / "staged" / place.relative_to(_root())


def _client(url: str) -> tuple[Any, str]:
    """The file system of an address, and what it is called there. A process that was forked gets one of its own."""
    try:
        from fsspec.core import url_to_fs

        client, place = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise HwmError(
            f"{url} cannot be opened: {error}; pip install 'humanoid-world-models[remote]' (gs:// needs gcsfs, and "
            "hf:// huggingface_hub)"
        ) from error
    except ValueError as error:
        raise HwmError(f"{url} is no path and no address that is known: {error}") from error
    return client, str(place)


def _asked(url: str, question: Callable[[], T]) -> T:
    """The answer of a server, which is asked again where it cannot be reached."""
    for wait in (*WAITS, None):
        try:
            return question()
        except FileNotFoundError as error:
            raise HwmError(
                f"{url} is not there: it was removed or renamed, or the address is misspelt ({error})"
            ) from error
        except Exception as error:  # the client's own; which library's it is depends on the address
            if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
                raise FarError(
                    f"{url} may not be accessed ({error}): check the credentials. s3:// goes by AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY or `aws configure`, gs:// by `gcloud auth application-default login`, hf:// "
                    "by HF_TOKEN"
                ) from error
            if wait is None:
                raise FarError(f"{url} cannot be reached: {error!r}. The same command goes on from here") from error
            time.sleep(wait)
    raise AssertionError


def _current(path: Path) -> Version:
    client, place = _client(address(path))
    info: dict[str, Any] = _asked(address(path), lambda: client.info(place))
    if info.get("type") != "file" or info.get("size") is None:
        raise HwmError(f"{address(path)} is no file of known size")
    return _version(info)


def _version(info: dict[str, Any]) -> Version:
    told = next((info[key] for key in VERSIONS if info.get(key)), "")
    told = told.timestamp() if isinstance(told, datetime) else told  # some list as a number what `info` tells as a time
    return Version(int(info["size"]), zlib.crc32(f"{info['size']} {told}".encode()) >> 1)


def _unchanged(path: Path, wanted: Version, part: Path | None = None) -> None:
    """Raise unless the server still has the version that was fetched."""
    if _current(path) != wanted:
        if part:
            part.unlink()
        raise FarError(f"{address(path)} was changed while it was read: give the same command again")


def _fetched(path: Path, spans: Sequence[Span]) -> list[bytes]:
    """Stretches of a far file, at the same time where the client can."""
    url = address(path)
    client, place = _client(url)

    def question() -> list[bytes]:
        starts, stops = zip(*spans, strict=True)
        pieces = client.cat_ranges([place] * len(spans), list(starts), list(stops), on_error="raise")
        for piece, (start, stop) in zip(pieces, spans, strict=True):
            if len(piece) != stop - start:
                raise OSError(f"{len(piece):,} of {stop - start:,} bytes came")
        return list(pieces)

    return _asked(url, question)


def _marked(place: Path, wanted: Version) -> None:
    """Note when a file was last used, and which version it is of: its two times are otherwise of no use here."""
    os.utime(place, (time.time(), wanted.mark))


def _kept(place: Path, wanted: Version) -> bool:
    """Whether the cache has this version of a file; it counts as used."""
    try:
        about = place.stat()
        if (about.st_size, int(about.st_mtime)) != wanted:
            return False
        _marked(place, wanted)
    except FileNotFoundError:
        return False
    return True


def _mapped(place: Path, length: int, mark: int) -> mmap.mmap | None:
    """A file of the cache; None where it lacks."""
    if not _kept(place, Version(length, mark)):
        return None
    try:
        with place.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:  # another process has just made room
        return None


def _sweep(fetched: int, *new: Path) -> None:
    """Remove what was not used for longest, until the cache is within its bound again.

    It is looked through each time that a 32nd of the bound was fetched: as much over it each process may go.
    """
    global _unswept
    _unswept += fetched
    most = bound()
    if _unswept < most / 32:
        return
    _unswept = 0
    kept = sorted(_contents(), key=lambda found: found.used)
    total = sum(found.size for found in kept)
    for found in kept:
        if total <= most:
            return
        under_way = found.names[0].suffix in (".part", ".new") and time.time() - found.used < STALE
        if under_way or not set(new).isdisjoint(found.names):
            continue
        with _free(found.names[-1]) as free:  # a copy comes last
            if free:
                for name in found.names:
                    name.unlink(missing_ok=True)
                total -= found.size


def _contents() -> list[Found]:
    """All that is kept."""
    found = dict[tuple[int, int], Found]()
    for root in (_root(), _copies()):
        for folder, _, names in os.walk(root):
            for name in names:
                place = Path(folder, name)
                try:
                    about = place.stat()
                except FileNotFoundError:
                    continue
                used = max(about.st_atime, about.st_mtime) if place.suffix == ".part" else about.st_atime
                key = about.st_dev, about.st_ino
                found.setdefault(key, Found(used, about.st_size, [])).names.append(place)
    return list(found.values())
