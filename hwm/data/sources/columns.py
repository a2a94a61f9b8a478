"""Files of actions without a schema: comma-separated text with names in the first line, and numpy's arrays.

Both are read whole. Of text, columns that hold no numbers are left out; an empty place is no number and is NaN.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwm.data.store import EpisodeError

NUMPY = "action"
"""The name of the one column of an array without names."""


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """The columns of numbers of a file, (rows,) float64 each, by name.

    Raises:
        EpisodeError: names that are missing or occur twice.
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
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    numbers = {n: c for n, c in zip(names, table, strict=True) if any(is_kind(c.type) for is_kind in kinds)}
    return {n: c.combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64) for n, c in numbers.items()}


def read_npy(path: Path) -> dict[str, np.ndarray]:
    """The array (rows, ...) of a file, as the one column `action`.

    Raises:
        EpisodeError: it has no rows, or holds no numbers.
        ValueError: the file is no array.
    """
    with path.open("rb") as file:
        values = np.lib.format.read_array(file, allow_pickle=False)
    if not values.ndim or values.dtype.kind not in "fiub":
        raise EpisodeError(f"{path.name} holds an array of shape {values.shape} of {values.dtype}, not rows of numbers")
    return {NUMPY: values}


READ_WHOLE = {".csv": read_csv, ".npy": read_npy}


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
