"""Recipes: plain functions that return a complete run. A variant reads as its difference from another.

A file a family. Each is imported when one of its recipes is asked for (`hwm/entry_points.txt`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hwm.catalogue import RECIPES as RECIPES
from hwm.catalogue import find_recipe as find_recipe
from hwm.config import Config, replace
from hwm.data.mixture import DataConfig
from hwm.errors import HwmError
from hwm.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete run: which model, on which data, trained how.

    Attributes:
        model: config of a registered model or tokenizer.
        data: training and held-out stores, and windows.
        train: optimizer, schedule, precision, checkpoints.
        tokenizer: whose latents the model reads, for showing pictures; a shipped name or a folder. Stores name their
            own, which is taken unless the command line names one; another than theirs is refused.
    """

    model: Config
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tokenizer: str = ""

    def but(self, **changes: Any) -> Recipe:
        """A copy with some fields changed: `but(model=dict(variant="full"))`."""
        new: Recipe = replace(self, changes)
        return new


def recipe(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a function under its own name."""
    RECIPES[function.__name__] = function
    return function


def make_recipe(name: str) -> Recipe:
    """The run that a recipe describes, by the recipe's name.

    Raises:
        HwmError: as `find_recipe`, or the recipe returns something else.
    """
    made = find_recipe(name)()
    if not isinstance(made, Recipe):
        raise HwmError(f"the recipe {name!r} returned a {type(made).__name__}, where a Recipe is wanted")
    return made
