"""Data of everybody: a table of kinds, each of which recognises its own folders and files.

A kind is a `Source`: a list of episodes that are decoded when they are asked for. To add one, write the class and name
it in `SOURCES`, or in the entry points `hwm.sources` of a package of your own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hwm import far
from hwm.assets import STORES
from hwm.data.sources.base import AS_IT_IS, reading
from hwm.data.sources.base import Episode as Episode
from hwm.data.sources.base import Source as Source
from hwm.data.sources.base import SourceOptions as SourceOptions
from hwm.data.sources.folder import Folder, none_beside
from hwm.data.sources.lerobot import LeRobot, find_dataset
from hwm.data.sources.rlds import RLDS
from hwm.data.sources.robomimic import Robomimic
from hwm.data.sources.stored import Stored
from hwm.data.sources.videos import Videos, is_video, videos_in
from hwm.data.sources.views import Resampled, Selected, Split
from hwm.errors import HwmError
from hwm.plugins import ELSEWHERE, Table


def _wrong(name: str, part: Any) -> str:
    return "" if isinstance(part, type) and issubclass(part, Source) else "it is no subclass of hwm.data.sources.Source"


SOURCES: Table[type[Source]] = Table(
    "kind of source",
    ("hwm.sources",),
    _wrong,
    {"store": Stored, "lerobot": LeRobot, "rlds": RLDS, "robomimic": Robomimic, "folder": Folder, "videos": Videos},
)
"""Kinds by name; the first that recognises a path reads it, those of installed packages after all that are here."""


def recognise(path: Path) -> str:
    """The kind of a folder or file; empty where no kind knows it."""
    there = list(SOURCES)
    offered = [name for name in SOURCES.names() if name not in SOURCES]
    return next((name for name in there + offered if SOURCES.find(name).recognises(path)), "")


def open_source(name: str | Path, options: SourceOptions = AS_IT_IS) -> Source:
    """Open data of any known kind: a path, an address, a store that ships with the package, or a LeRobot data set
    OWNER/NAME.

    Raises:
        HwmError: there is nothing of that name, no kind knows it, or what it holds does not suit the options.
    """
    return seen_as(open_plain(name, options), options)


def open_plain(name: str | Path, options: SourceOptions = AS_IT_IS) -> Source:
    """The same with all its episodes and actions, at its own rate."""
    path = STORES.get(str(name)) or far.located(name)
    if far.is_far(path):
        path = _described(path)
    elif not path.exists():
        path = find_dataset(str(name), options)
    with reading(path):
        kind = options.kind or recognise(path)
        if not kind:
            raise _of_no_kind(path)
        source = SOURCES.find(kind)(path, replace(options, split=options.split.partition("[")[0]))
    if not len(source):
        raise HwmError(f"{path} has no episodes")
    source.options = replace(options, kind=kind)
    return source


def _of_no_kind(path: Path) -> HwmError:
    if is_video(path) or (path.is_dir() and videos_in(path)):
        found = none_beside(path) if path.is_dir() else f"{path} is one video, and no folder with actions beside it"
        return HwmError(
            f"{found}. Is that meant? Videos without actions are read with --kind videos, and hwm tokenizer encode "
            "makes files of latents of videos by themselves"
        )
    return HwmError(
        f"{path} is none of the known kinds of data ({', '.join(SOURCES.names())}); see docs/data.md{ELSEWHERE}"
    )


def _described(path: Path) -> Path:
    """A far folder whose description is here, where its kind fetches the rest by itself; else a copy of all of it."""
    if far.is_file(path / "meta.json"):
        return far.near(path / "meta.json").parent
    meta = far.files(path / "meta")
    if path / "meta" / "info.json" not in meta:
        return far.copy(path)
    for file in meta:
        far.near(file)
    return path


def seen_as(source: Source, options: SourceOptions) -> Source:
    """The part of a source, the actions and the rate that the options ask for."""
    _, bracket, bounds = options.split.partition("[")
    if bracket:
        source = Split(source, bracket + bounds)
    if options.actions or options.embodiment not in ("", source.header.embodiment):
        source = Selected(source, options.actions, options.embodiment)
    return Resampled(source, options.fps) if options.fps else source
