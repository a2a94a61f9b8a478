"""Descriptions that come with data, such as JSON files: each field is of the type that is asked for, or an error says
which one is not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hwm.data.header import StoreError


class Fields:
    """The fields of a description. One that is null is as one that is not there.

    Args:
        where: the file that they are from, and the place in it.
        values: what was read there.

    Raises:
        StoreError: that is no object. So do all methods for a field that is missing or of another type; it names file
            and field.
    """

    def __init__(self, where: object, values: Any) -> None:
        if not isinstance(values, dict):
            raise StoreError(f"{where} is {shown(values)}, where an object with fields is expected")
        self.where, self.values = str(where), {str(k): v for k, v in values.items() if v is not None}

    @classmethod
    def read(cls, file: Path, optional: bool = False) -> Fields:
        """The object in a JSON file, in any of Unicode's encodings, with a byte-order mark or without; of an optional
        one that is not there no fields."""
        if optional and not file.is_file():
            return cls(file, {})
        try:
            values = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{file} cannot be read: {error}") from error
        return cls(file, values)

    @classmethod
    def read_lines(cls, file: Path) -> list[Fields]:
        """The objects in a file of JSON lines."""
        try:
            data = file.read_bytes()
            lines = data.decode(json.detect_encoding(data)).split("\n")  # other separators may stand within texts
            rows = [(i, json.loads(line)) for i, line in enumerate(lines, 1) if line.strip()]
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{file} cannot be read: {error}") from error
        return [cls(f"{file}, line {i}", row) for i, row in rows]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def get(self, key: str) -> Any:
        """A field as it is; None where it is not there."""
        return self.values.get(key)

    def need(self, *keys: str) -> None:
        """Fields that must be there."""
        if missing := [key for key in keys if key not in self]:
            raise StoreError(f"{self.where} lacks {', '.join(missing)}")

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, which may be written as text."""
        value = self._there(key, default)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self._wrong(key, "a number")
        return number

    def rate(self, key: str, default: float | None = None) -> float:
        """A positive number: steps a second."""
        number = self.number(key, default)
        if number <= 0 and number != default:
            raise self._wrong(key, "a positive number")
        return number

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        """A whole number, from `least` on."""
        number = self.number(key, default)
        if number < least or number != int(number):
            raise self._wrong(key, "a whole number")
        return int(number)

    def wholes(self, key: str, least: int = 0) -> list[int]:
        """A list of whole numbers; empty where the field is not there."""
        items = Fields(f"{self.where}: {key}", dict(enumerate(self.items(key))))
        return [items.whole(number, least=least) for number in items]

    def text(self, key: str, default: str | None = None) -> str:
        value = self._there(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or one by itself; none where the field is not there."""
        values = self.items(key, "a text or a list of texts", str)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "a text or a list of texts")
        return tuple(values)

    def items(self, key: str, what: str = "a list", single: type | tuple[type, ...] = ()) -> list[Any]:
        """A list without the nulls in it; empty where the field is not there. A `single` value is a list of it."""
        value = self.get(key)
        if isinstance(value, single):
            return [value]
        if value is not None and not isinstance(value, (list, tuple)):
            raise self._wrong(key, what)
        return [item for item in value or () if item is not None]

    def part(self, key: str) -> Fields:
        """The fields of a field; none where it is not there."""
        value = self.get(key)
        return Fields(f"{self.where}: {key}", {} if value is None else value)

    def parts(self, key: str) -> list[Fields]:
        """A list of such; empty where the field is not there."""
        return [Fields(f"{self.where}: {key} {number}", item) for number, item in enumerate(self.items(key))]

    def _there(self, key: str, default: Any) -> Any:
        if key not in self and default is None:
            raise StoreError(f"{self.where} lacks {key}")
        return self.values.get(key, default)

    def _wrong(self, key: str, what: str) -> StoreError:
        return StoreError(f"{self.where}: {key} is {shown(self.get(key))}, where {what} is expected")


def shown(value: Any) -> str:
    """A value in an error, as JSON has it, cut to what can be read at a glance."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
