"""Recipes: plain functions that return a complete run. A variant reads as its difference from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hwm.config import Config, replace
from hwm.data.mixture import DataConfig
from hwm.plugins import Table, import_object
from hwm.train.trainer import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete run: which model, on which data, trained how.

    Attributes:
        model: config of a registered model or tokenizer.
        data: training and held-out stores, and windows.
        train: optimizer, schedule, precision, checkpoints.
        tokenizer: whose latents the model reads, for showing pictures; a shipped name or a folder.
    """

    model: Config
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tokenizer: str = ""

    def but(self, **changes: Any) -> Recipe:
        """A copy with some fields changed: `but(model=dict(variant="full"))`."""
        new: Recipe = replace(self, changes)
        return new


def _wrong(name: str, part: Any) -> str:
    return "" if callable(part) else "it is no function that returns a Recipe"


RECIPES: Table[Callable[[], Recipe]] = Table("recipe", ("hwm.recipes",), _wrong)


def recipe(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a function under its own name."""
    RECIPES[function.__name__] = function
    return function


def find_recipe(name: str) -> Callable[[], Recipe]:
    """A recipe by its name, or any importable function as `package.module:function`.

    Raises:
        HwmError: no such recipe; the message shows the nearest.
    """
    if ":" in name:
        function: Callable[[], Recipe] = import_object("recipe", name)
        return function
    return RECIPES.find(name)


from hwm.recipes import cosmos_ar, cosmos_tokenizer, flow_hwm, genie, hma, masked_hwm, next_block, tokenizer, toy  # noqa: E402, F401  they register their recipes
