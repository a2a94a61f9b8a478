"""Arrays of stores that are not on this disk: blocks of rows, fetched when they are asked for."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from hwm import far
from hwm.data.arrays import Array, Lazy

BLOCK = 1 << 20
"""Bytes that are fetched as one: few enough that a window of a few steps brings little else along, and enough that the
time of a request is not all that counts."""
AT_ONCE = 64
"""Blocks that are fetched, and held in memory, together."""


class FarArray(Lazy):
    """The rows of a raw file that is far away, as `np.memmap` has those of one that is not.

    Args:
        path: in the cache (`hwm.far.located`).
        dtype, shape: of the whole, row-major; the file has as many bytes.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        super().__init__(shape, self._take)
        self.path, self.dtype, self.version = path, np.dtype(dtype), far.version(path)
        self.width = self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        self.block = max(1, BLOCK // self.width)
        self._held = dict[int, np.ndarray]()

    def fetch(self, rows: np.ndarray) -> None:
        """Have rows at hand for when they are asked for; they are fetched together, as far as they lack."""
        numbers = np.unique(rows // self.block)
        for i in range(0, len(numbers), AT_ONCE):
            self._blocks(numbers[i : i + AT_ONCE])

    def _take(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        of = rows // self.block
        numbers = np.unique(of)
        for i in range(0, len(numbers), AT_ONCE):
            some = numbers[i : i + AT_ONCE]
            for number, block in zip(some, self._blocks(some), strict=True):
                mine = of == number
                out[mine] = block[rows[mine] - number * self.block]
        return out

    def _blocks(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Blocks of rows by number; the last may be short."""
        size, held = self.block * self.width, self._held
        lacking = [n for n in numbers.tolist() if n not in held]
        if lacking:
            spans = [(n * size, min((n + 1) * size, len(self) * self.width)) for n in lacking]
            pieces = far.read(self.path, spans, self.version)
            rows = (np.frombuffer(piece, self.dtype).reshape(-1, *self.shape[1:]) for piece in pieces)
            held = held | dict(zip(lacking, rows, strict=True))
            self._held = dict(list(held.items())[-AT_ONCE:])  # a new one: another thread may be reading from it
        return [held[n] for n in numbers.tolist()]

    def checksum(self) -> int:
        """CRC-32 of the file, as `hwm.files.checksum` has it of one that is here."""
        crc = 0
        for i in range(0, len(self), self.block):
            crc = zlib.crc32(self[i : i + self.block].data, crc)
        return crc


def opened(path: Path, dtype: str, shape: tuple[int, ...]) -> Array:
    """The rows of a raw file, which has as many bytes: mapped where it is on this disk."""
    return FarArray(path, dtype, shape) if far.is_far(path) else np.memmap(path, dtype, "r", shape=shape)
