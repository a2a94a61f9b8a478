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
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for family, members in groupby(recipes, key=lambda recipe: recipe.family):
        console.print(f"\n{family}", style="bold", markup=False)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(min_width=width, no_wrap=True)
        if counts:
            table.add_column(justify="right", min_width=max(len(f"{count:,}") for count in counts.values()))
        for name, what, _ in members:
            table.add_row("", name, *([f"{counts[name]:,}"] if counts else []), escape(what))
        console.print(table)


def explain(usage: str, what: str) -> None:
    """The help of a verb that takes a recipe: how it is used, and which recipes there are."""
    print(f"usage: {usage}\n\n{what}")
    print_recipes(known_recipes())
