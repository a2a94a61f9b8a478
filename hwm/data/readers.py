"""What kinds of store there are: a table of readers, each of which recognises its own folders."""

from __future__ import annotations

from pathlib import Path

from hwm import far
from hwm.assets import resolve_store
from hwm.data.hma import HMA
from hwm.data.onex.raw import OneXRaw
from hwm.data.onex.v1 import OneXV1
from hwm.data.onex.v2 import OneXTest, OneXV2, OneXV2Joined
from hwm.data.store import Store, StoreError
from hwm.errors import unknown

READERS: dict[str, type[Store]] = {
    "hwm": Store,
    "hma": HMA,  # its files have the names of 1X v1.1, and its metadata say more
    "1x-v1.1": OneXV1,
    "1x-v2.0": OneXV2,
    "1x-v2.0-joined": OneXV2Joined,
    "1x-v2.0-raw": OneXRaw,
    "1x-v2.0-test": OneXTest,
}
"""A name that says so (`--data.reader`) takes precedence over what a folder is recognised as."""


def open_store(name: str | Path, reader: str = "") -> Store:
    """Open a store of any known layout: one that ships with the package by name, else a folder or its address.

    Args:
        reader: read it as this, a name out of `READERS`, instead of as what it is recognised as.

    Raises:
        HwmError: there is nothing of that name, no reader knows it, or its files are incomplete or damaged.
    """
    path = resolve_store(name)
    if far.is_far(path):
        return Store(path)
    if reader:
        if reader not in READERS:
            raise unknown("reader of stores", reader, READERS)
        return READERS[reader](path)
    for kind in READERS.values():
        if kind.recognises(path):
            return kind(path)
    raise StoreError(f"{path} is not a store: it is no folder of one of the layouts {', '.join(READERS)}")
