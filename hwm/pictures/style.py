"""The style sheet of all pages, and the colours that charts take from it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from hwm.errors import HwmError


@cache
def page_style() -> str:
    """The style sheet, as CSS."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def variables() -> str:
    """Its first part: the colours as variables, in light and in dark."""
    return page_style()[: page_style().index("* {")]


@cache
def _names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.findall(r"--([a-z]+):", variables())))


def stand_in(name: str) -> str:
    """A colour that stands for a variable in what knows no variables, until `with_variables` puts it in its place."""
    if name not in _names():
        raise HwmError(f"page.css has no colour {name!r}, but {', '.join(_names())}")
    return f"#abc0{_names().index(name):02x}"


def with_variables(svg: str) -> str:
    """The variables in the place of the colours that stand for them."""
    return re.sub("#abc0([0-9a-f]{2})", lambda m: f"var(--{_names()[int(m[1], 16)]})", svg)
