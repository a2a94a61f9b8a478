"""Recipes: plain functions that return a complete run. A variant reads as its difference from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any

from hwm.config import Config, replace
from hwm.data.mixture import DataConfig
from hwm.errors import HwmError
from hwm.plugins import Table, import_object
from hwm.train.config import TrainConfig


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
    if not callable(part):
        return "it is no function that returns a Recipe"
    optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    parameters = signature(part).parameters.values()
    needed = [p.name for p in parameters if p.default is Parameter.empty and p.kind not in optional]
    return f"it takes arguments ({', '.join(needed)}), and recipes are called without any" if needed else ""


RECIPES: Table[Callable[[], Recipe]] = Table("recipe", ("hwm.recipes",), _wrong)


def recipe(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a function under its own name."""
    RECIPES[function.__name__] = function
    return function


def find_recipe(name: str) -> Callable[[], Recipe]:
    """A recipe by its name, or any importable function as `package.module:function`.

    Raises:
        HwmError: no such recipe, and the message shows the nearest; or it is something else.
    """
    if ":" in name:
        function: Callable[[], Recipe] = import_object("recipe", name)
        if wrong := _wrong(name, function):
            raise HwmError(f"{name!r} is no recipe: {wrong}")
        return function
    return RECIPES.find(name)


def make_recipe(name: str) -> Recipe:
    """The run that a recipe describes, by the recipe's name.

    Raises:
        HwmError: as `find_recipe`, or the recipe returns something else.
    """
    made = find_recipe(name)()
    if not isinstance(made, Recipe):
        raise HwmError(f"the recipe {name!r} returned a {type(made).__name__}, where a Recipe is wanted")
    return made


from hwm.recipes import cosmos_ar, cosmos_tokenizer, flow_hwm, genie, hma, masked_hwm, next_block, tokenizer, toy  # noqa: E402, F401  they register their recipes
