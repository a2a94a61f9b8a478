"""Columns of numbers out of the files that actions come in: parquet, npz, comma-separated text and numpy's arrays.

The last two are read whole. Of text, columns that hold no numbers are left out, unless they were meant to; an empty
place is no number and is NaN.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hwm.data.header import EpisodeError
from hwm.data.sources.base import reading

TIME = "timestamp"
KEYS = ("action", "actions")
"""Columns that are taken for the actions where none are named; of text without them, all columns of numbers."""
NUMPY = "action"
"""The name of the one column of an array without names."""


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """The columns of numbers of a file, (rows,) float64 each, by name.

    Raises:
        EpisodeError: names that are missing or occur twice, no rows, no numbers, or other values where they are meant.
        ValueError: the file is no such text.
    """
    import pyarrow as pa
    import pyarrow.csv as csv

    table = csv.read_csv(path)
    # numpy's `savetxt` writes names as a remark
    names = [name.lstrip("# " if i == 0 else " ").strip() for i, name in enumerate(table.column_names)]
    if any(_is_number(name) for name in names):
        raise EpisodeError(f"{path.name} begins with numbers: its first line is to name the columns")
    if len(set(names)) < len(names) or "" in names:
        raise EpisodeError(f"{path.name} has two columns of one name, or one without: {', '.join(map(repr, names))}")
    if not table.num_rows:
        raise EpisodeError(f"{path.name} has no rows")
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    found = dict[str, np.ndarray]()
    for name, column in zip(names, table, strict=True):
        if any(is_kind(column.type) for is_kind in kinds):
            found[name] = column.combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64)
        else:
            _check_unmeant(f"{path.name}: {name}", name in (TIME, *KEYS), column.to_pylist())
    if not found:
        there = ", ".join(map(repr, names))
        raise EpisodeError(f"{path.name} has no columns of numbers with commas between them; there are: {there}")
    return found


def _check_unmeant(where: str, meant: bool, values: list[Any]) -> None:
    """Raise where a column without a type of numbers was meant to hold them, by its name or by most of its values."""
    texts = [str(value) for value in values if value not in (None, "")]
    # a comma may stand for the decimal point
    like = sum(isinstance(v, str) and _is_number(v.replace(",", ".")) for v in values)
    if meant or 2 * like > len(texts):
        other = next((text for text in texts if not _is_number(text)), "")
        raise EpisodeError(f"{where} holds {other!r}, where numbers are expected")


def read_npy(path: Path) -> dict[str, np.ndarray]:
    """The array (rows, ...) of a file, as the one column `action`.

    Raises:
        EpisodeError: it has no rows, or holds no numbers.
        ValueError: the file is no array.
    """
    with path.open("rb") as file, _without_objects(path.name):
        values = np.lib.format.read_array(file, allow_pickle=False)
    return {NUMPY: numbers(values, path.name)}


READ_WHOLE = {".csv": read_csv, ".npy": read_npy}


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def names_in(path: Path) -> list[str]:
    """Names of the columns of a file.

    Raises:
        EpisodeError: it cannot be read. So does `columns_of`.
    """
    with reading(path.name, EpisodeError):
        if path.suffix in READ_WHOLE:
            return list(READ_WHOLE[path.suffix](path))
        if path.suffix == ".npz":
            with _npz(path) as file:
                return list(file.files)
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)


def columns_of(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some columns of a file, (N, ...) each."""
    if not names:
        return {}
    with reading(path.name, EpisodeError):
        if path.suffix in READ_WHOLE:
            columns = READ_WHOLE[path.suffix](path)
            return {name: columns[name] for name in names}
        if path.suffix == ".npz":
            with _npz(path) as file:
                return {name: _of_npz(file, name, f"{path.name}: {name}") for name in names}
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=list(names))
        return {name: column_values(table.column(name), f"{path.name}: {name}") for name in names}


def _npz(path: Path) -> Any:
    if not zipfile.is_zipfile(path):  # which numpy would take for a pickle
        raise EpisodeError(f"{path.name} cannot be read: it is damaged, or no npz file; write it with numpy.savez")
    return np.load(path, allow_pickle=False)


def _of_npz(file: Any, name: str, where: str) -> np.ndarray:
    with _without_objects(where):
        return numbers(file[name], where)


@contextmanager
def _without_objects(where: str) -> Iterator[None]:
    """Python objects are not read, as they could run what they like, and nobody is told how to do so."""
    try:
        yield
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise EpisodeError(f"{where} holds Python objects: save an array of numbers") from error


def column_values(column: Any, name: str) -> np.ndarray:
    """A column of numbers or of lists of numbers as an array, (N,) or (N, ...).

    Raises:
        EpisodeError: rows of different widths, without a value, or of something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape = [len(values)]
    while True:
        if isinstance(values.type, pa.BaseExtensionType):
            values = values.storage
        if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
                or pa.types.is_fixed_size_list(values.type)):  # fmt: skip
            break
        _all_there(values, shape, name)
        widths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(widths) > 1:
            raise EpisodeError(f"{name} has rows of different widths: {', '.join(map(str, widths))}")
        shape, values = [*shape, *(widths or [0])], values.flatten()
    _all_there(values, shape, name)
    if pa.types.is_decimal(values.type) or pa.types.is_dictionary(values.type):
        values = pc.cast(values, pa.float64())
    if len(values) and not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
                            or pa.types.is_boolean(values.type)):  # fmt: skip
        raise EpisodeError(f"{name} holds {values.type}, where numbers are expected")
    return np.asarray(values.to_numpy(zero_copy_only=False) if len(values) else np.zeros(0)).reshape(shape)


def _all_there(values: Any, shape: Sequence[int], name: str) -> None:
    """Raise an error for the first row that lacks a value."""
    if values.null_count:
        missing = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise EpisodeError(f"{name} has no value in row {missing // max(1, len(values) // max(1, shape[0]))}")


def numbers(values: Any, name: str) -> np.ndarray:
    """An array of numbers, one or more a row.

    Raises:
        EpisodeError: it holds something else, or a single value.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise EpisodeError(f"{name} holds {array.dtype.name}, where numbers are expected")
    if not array.ndim:
        raise EpisodeError(f"{name} is a single number, where one or more a step are expected")
    return array


def scalars(values: np.ndarray, name: str) -> np.ndarray:
    """One number a row, (N,), which may be stored as a list of one."""
    flat = values.reshape(len(values), -1) if len(values) else values.reshape(0, 1)
    if flat.shape[1] != 1:
        raise EpisodeError(f"{name} has {flat.shape[1]} numbers a row, where one is expected")
    return flat[:, 0]
