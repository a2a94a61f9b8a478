"""Arrays that are read when they are asked for, and sums over them in bounded memory.

Shape suffixes: N rows, K actions a step, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Array(Protocol):
    """What is asked of the arrays of a store: rows along the first axis, by number, slice or integer array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Lazy:
    """An array of which `take(rows)` computes the rows, given as (n,) numbers in 0..len-1."""

    def __init__(self, shape: tuple[int, ...], take: Callable[[np.ndarray], np.ndarray]) -> None:
        self.shape, self.take = shape, take

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        n = len(self)
        wanted = np.arange(*rows.indices(n)) if isinstance(rows, slice) else np.asarray(rows)
        if wanted.dtype.kind not in "iu" and wanted.size:
            raise IndexError(f"rows are given by number, slice or integer array, not by {wanted.dtype}")
        if wanted.size and not (-n <= wanted.min() and wanted.max() < n):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {n}")
        flat = np.where(wanted < 0, wanted + n, wanted).ravel().astype(np.int64)
        return self.take(flat).reshape((*wanted.shape, *self.shape[1:]))[()]


class Shards:
    """The rows of several files of one element type, one file after the other; each is mapped when first needed.

    Args:
        files: raw, little-endian, row-major.
        rows: how many rows of each file count.
        dtype, shape: of a row.
    """

    def __init__(self, files: Sequence[Path], rows: Sequence[int], dtype: str, shape: tuple[int, ...]) -> None:
        self.files, self.rows, self.dtype = files, rows, np.dtype(dtype)
        self.ends = np.cumsum(np.array(rows, np.int64))
        self.starts = self.ends - rows
        self.shape = (int(self.ends[-1]), *shape)
        self._maps: dict[int, np.memmap] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, number: int) -> np.memmap:
        """The rows of one file."""
        if number not in self._maps:
            shape = (self.rows[number], *self.shape[1:])
            self._maps[number] = np.memmap(self.files[number], self.dtype, "r", shape=shape)
        return self._maps[number]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, (...) -> (..., *shape)."""
        which = np.searchsorted(self.ends, rows, side="right")
        out = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        for number in np.unique(which):
            mine = which == number
            out[mine] = self.part(number)[rows[mine] - self.starts[number]]
        return out


def pieces(actions_NKA: Array, rows: int = 1 << 16) -> Iterator[np.ndarray]:
    """All actions as (rows, A), in order and a bounded number at a time."""
    n, k, a = actions_NKA.shape
    steps = max(1, rows // k)
    for i in range(0, n, steps):
        yield np.asarray(actions_NKA[i : i + steps]).reshape(-1, a)


def moments(actions_NKA: Array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each action dimension, in float64 and bounded memory."""
    n, k, a = actions_NKA.shape
    total, square = np.zeros(a), np.zeros(a)
    origin = np.asarray(actions_NKA[0], np.float64)[0]  # sums of squares about a value near the mean do not cancel
    for piece in pieces(actions_NKA):
        part = piece.astype(np.float64) - origin
        total += part.sum(0)
        square += (part**2).sum(0)
    mean = total / (n * k)
    return mean + origin, np.sqrt(np.maximum(square / (n * k) - mean**2, 0))
