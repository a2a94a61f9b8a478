"""Parts by name: the package's own, those of installed packages, and those of modules that were imported.

A package offers a part by an entry point, `name = "module:object"` in a group such as `hwm.models`; it is imported when
its name is asked for, and no sooner. The package's own models, tokenizers and recipes stand in the same form in
`entry_points.txt` beside this file: in the metadata of an editable installation they would be as old as the
installation.

Only what is installed or what the user names is imported. A name that is read from data, such as the class in a
checkpoint's config, finds parts that are known, and never makes a module known.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from hwm.errors import HwmError, unknown

T = TypeVar("T")
ELSEWHERE = ". One of another package is known once that is installed, or by --import MODULE"
"""What to add to the message for a name that is not there."""


class Table(dict[str, T], Generic[T]):
    """Parts of one kind by name: those that were imported, and by `find` also those that packages offer.

    Args:
        kind: what the parts are called in messages.
        groups: of entry points that offer such parts.
        wrong: of a name and what it stands for, why that is no such part; empty where it is one.
        parts: those that are there from the beginning.
        shipped: those that this package itself offers.
    """

    def __init__(
        self,
        kind: str,
        groups: tuple[str, ...],
        wrong: Callable[[str, Any], str],
        parts: Mapping[str, T] | None = None,
        shipped: Sequence[EntryPoint] = (),
    ) -> None:
        super().__init__(parts or {})
        self.kind, self.groups, self.wrong, self.shipped = kind, groups, wrong, tuple(shipped)

    def find(self, name: str) -> T:
        """The part of a name.

        Raises:
            HwmError: there is none, two packages offer one, it cannot be imported, or it is something else.
        """
        offers = self.offered().get(name, [])
        if len(offers) > 1:
            both = " and ".join(map(describe, offers))
            raise HwmError(f"the {self.kind} {name!r} is offered twice, {both}: uninstall one of them")
        if name in self:
            return self[name]
        if not offers:
            raise HwmError(f"{unknown(self.kind, name, self.names())}{ELSEWHERE}")
        self[name] = self._load(offers[0])
        return self[name]

    def names(self) -> list[str]:
        """All names that `find` knows."""
        return sorted({*self, *self.offered()})

    def offered(self) -> dict[str, list[EntryPoint]]:
        """What this package and installed ones offer by each name, imported or not; what leads to one place is one."""
        found: dict[str, dict[str, EntryPoint]] = {}
        for entry in [*self.shipped, *(e for group in self.groups for e in entry_points(group=group))]:
            found.setdefault(entry.name, {})[entry.value] = entry
        return {name: list(by_value.values()) for name, by_value in found.items()}

    def _load(self, entry: EntryPoint) -> T:
        what = f"the {self.kind} {entry.name!r}, {describe(entry)},"
        try:
            part: T = entry.load()
        except Exception as error:  # whatever the code of another package does
            raise HwmError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
        if wrong := self.wrong(entry.name, part):
            raise HwmError(f"{what} is none: {wrong}")
        return part


@cache
def own(group: str) -> tuple[EntryPoint, ...]:
    """What this package itself offers in a group."""
    parser = configparser.ConfigParser(delimiters="=", interpolation=None)
    parser.read_string(Path(__file__).with_name("entry_points.txt").read_text(encoding="utf-8"))
    return tuple(EntryPoint(name, value, group) for name, value in parser[group].items())


def describe(entry: EntryPoint) -> str:
    """Where an entry point leads, and whose it is."""
    return f"{entry.value} of {entry.dist.name if entry.dist else 'this package'}"


def docstrings(module: str) -> dict[str, str]:
    """First lines of the docstrings of a module's functions, by name, and of its own under "".

    They are read from the source, and nothing is imported; empty where that cannot be read.
    """
    path = source_of(module)
    try:
        tree = ast.parse(path.read_bytes() if path else "")
    except (OSError, SyntaxError, ValueError):
        return {}
    said = {"": first_line(ast.get_docstring(tree))}
    return said | {f.name: first_line(ast.get_docstring(f)) for f in tree.body if isinstance(f, ast.FunctionDef)}


def first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]


def source_of(module: str) -> Path | None:
    """The source file of a module; neither it nor the packages around it are imported."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first)
    for name in rest:
        places = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(f"{spec.name}.{name}", places) if spec and places else None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def import_module(name: str, wanted: str = "") -> Any:
    """Import a module that the user has named. The working folder is searched too, after all other places.

    Args:
        wanted: for what, in messages; by default the module itself.

    Raises:
        HwmError: it is not there, or fails.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's code does
        written = "; name it as Python does, without .py" if name.endswith(".py") else ""
        raise HwmError(f"cannot import {wanted or repr(name)}: {type(error).__name__}: {error}{written}") from error


def import_object(kind: str, name: str) -> Any:
    """What the user has named as `package.module:object`.

    Raises:
        HwmError: the module cannot be imported, or has no such object.
    """
    module, _, attribute = name.partition(":")
    found = import_module(module, f"the {kind} {name!r}")
    if not hasattr(found, attribute):
        raise HwmError(f"cannot import the {kind} {name!r}: {module} has no {attribute!r}")
    return getattr(found, attribute)
