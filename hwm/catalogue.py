"""Which recipes there are, and what they say of themselves. A recipe needs PyTorch, a list of them does not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cache
from inspect import Parameter, signature
from typing import Any, NamedTuple

from hwm.errors import HwmError
from hwm.plugins import Table, docstrings, first_line, import_object, own


def _wrong(name: str, part: Any) -> str:
    if not callable(part):
        return "it is no function that returns a Recipe"
    optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    parameters = signature(part).parameters.values()
    needed = [p.name for p in parameters if p.default is Parameter.empty and p.kind not in optional]
    return f"it takes arguments ({', '.join(needed)}), and recipes are called without any" if needed else ""


RECIPES: Table[Callable[[], Any]] = Table("recipe", ("hwm.recipes",), _wrong, shipped=own("hwm.recipes"))
"""By name, functions that return an `hwm.recipes.Recipe`."""


class Listed(NamedTuple):
    """What is said of a recipe: its name, the first lines of its docstring and of that of its module."""

    name: str
    what: str
    family: str


def find_recipe(name: str) -> Callable[[], Any]:
    """A recipe by its name, or any importable function as `package.module:function`.

    Raises:
        HwmError: no such recipe, and the message shows the nearest; or it is something else.
    """
    if ":" in name:
        function: Callable[[], Any] = import_object("recipe", name)
        if wrong := _wrong(name, function):
            raise HwmError(f"{name!r} is no recipe: {wrong}")
        return function
    return RECIPES.find(name)


def listed(names: Iterable[str], note: Callable[[HwmError], None]) -> list[Listed]:
    """What is said of recipes, read from their sources; one is imported only where its source cannot be read.

    Args:
        names: as of `find_recipe`.
        note: told why one cannot be had, which is left out.
    """
    offers, read = RECIPES.offered(), cache(docstrings)
    found = []
    for name in names:
        entry = None if name in RECIPES or len(offers.get(name, ())) != 1 else offers[name][0]
        if entry and entry.attr in (said := read(entry.module)):
            found.append(Listed(name, said[entry.attr], said[""] or entry.module))
            continue
        try:
            function = find_recipe(name)
        except HwmError as error:
            note(error)
            continue
        module = sys.modules[function.__module__]
        found.append(Listed(name, first_line(function.__doc__), first_line(module.__doc__) or module.__name__))
    return found
