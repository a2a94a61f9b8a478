"""Recipes in tables, family by family, and what `hwm train --help` says; none of it imports PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import groupby

from hwm.catalogue import RECIPES, Listed, listed
from hwm.errors import HwmError


def known_recipes(names: Iterable[str] = ()) -> list[Listed]:
    """What is said of recipes. Without names of all, and of those that cannot be had a note on standard error.

    Raises:
        HwmError: one that is named cannot be had.
    """
    if names:
        return listed(names, _stop)
    return listed(RECIPES.offered() | RECIPES, lambda error: print(f"note: {error}", file=sys.stderr))


def _stop(error: HwmError) -> None:
    raise error


def print_recipes(recipes: list[Listed], counts: Mapping[str, int] | None = None) -> None:
    """Recipes below the names of their families, with their parameter counts where these are given."""
    from rich.console import Console

    from hwm.tables import Figures

    console, width = Console(highlight=False), max((len(recipe.name) for recipe in recipes), default=0)
    console.print()
    for family, members in groupby(recipes, key=lambda recipe: recipe.family):
        table = Figures("", "", *([""] if counts else []), title=family, words=2, ruled=False)
        for name, what, _ in members:
            table.add(f"  {name:<{width}}", what, *([f"{counts[name]:,}"] if counts else []))
        console.print(table)


def explain(usage: str, what: str) -> None:
    """The help of a verb that takes a recipe: how it is used, and which recipes there are."""
    print(f"usage: {usage}\n\n{what}")
    print_recipes(known_recipes())
