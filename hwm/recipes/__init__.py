"""Recipes: plain functions that return a complete run. A variant reads as its difference from another."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hwm.config import Config, replace
from hwm.errors import unknown
from hwm.data.mixture import DataConfig
from hwm.train.trainer import TrainConfig
from hwm.errors import HwmError


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


RECIPES: dict[str, Callable[[], Recipe]] = {}


def recipe(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a function under its own name."""
    RECIPES[function.__name__] = function
    return function


def find_recipe(name: str) -> Callable[[], Recipe]:
    """A recipe by its name, or any importable function as `package.module:function`.

    Raises:
        HwmError: no such recipe; the message shows the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            found: Callable[[], Recipe] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise HwmError(f"cannot import the recipe {name!r}: {error}") from error
        return found
    raise unknown("recipe", name, RECIPES)


from hwm.recipes import cosmos_ar, cosmos_tokenizer, flow_hwm, genie, hma, masked_hwm, next_block, tokenizer, toy  # noqa: E402, F401  they register their recipes
