"""Tokenizers, a file a kind. Those with weights are imported when a checkpoint names them (`hwm/entry_points.txt`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwm.plugins import Table
from hwm.types import Tokenizer


def _wrong(name: str, part: Any) -> str:
    return "" if callable(part) else "it cannot be called to make a tokenizer"


TOKENIZERS: Table[Callable[[], Tokenizer]] = Table("tokenizer", ("hwm.tokenizers",), _wrong)
"""By name, what makes a tokenizer that needs no checkpoint: a class or a function, called without arguments."""
