"""What a folder holds, files that are there whole or not at all, and checksums to tell that they still are."""

from __future__ import annotations

import os
import threading
import zlib
from pathlib import Path


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds of a pattern, in order, without hidden files: those are no data.

    File managers and copying programs leave them beside every file (`._NAME` and `.DS_Store` of macOS, for one).
    """
    found = folder.glob(pattern)
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def checksum(path: Path) -> int:
    """CRC-32 of a file, read in pieces."""
    value = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            value = zlib.crc32(piece, value)
    return value


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
