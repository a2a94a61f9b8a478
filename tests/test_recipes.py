"""Recipes: complete runs by name, and their differences."""

from __future__ import annotations

import json
import re
import sys
import types

import pytest
import torch

from hwm import cli
from hwm.config import from_json, to_json
from hwm.errors import HwmError
from hwm.models.masked_hwm import MaskedHWM
from hwm.recipes import RECIPES, Recipe, find_recipe, make_recipe


@pytest.mark.parametrize("name", RECIPES.names())
def test_a_recipe_survives_json_and_builds(name: str) -> None:
    recipe = make_recipe(name)
    assert find_recipe(name).__doc__
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe
    assert recipe.data.expects is not None
    with torch.device("meta"):
        module = recipe.model.build(recipe.data.expects)
    assert sum(p.numel() for p in module.parameters()) > 10_000


def test_a_variant_reads_as_its_difference() -> None:
    base = find_recipe("masked_hwm_base")()
    variant = base.but(model={"variant": "full"}, train={"lr": 1.0})
    assert variant.model == MaskedHWM.Config(**{**vars(base.model), "variant": "full"})
    assert (variant.train.lr, variant.train.batch_size) == (1.0, base.train.batch_size)
    assert base.train.lr != 1.0
    with pytest.raises(HwmError, match=r"no field of MaskedHWM.Config called 'varient'; did you mean variant"):
        base.but(model={"varient": "full"})


def test_the_recipes_of_the_paper_differ_in_one_thing() -> None:
    base = find_recipe("masked_hwm_base")()
    for variant in ("modality", "full", "split"):
        assert find_recipe(f"masked_hwm_{variant}")() == base.but(model={"variant": variant})


def test_unknown_recipes_show_the_nearest() -> None:
    with pytest.raises(HwmError, match="no recipe called 'masked_hwm_bass'; did you mean masked_hwm_base"):
        find_recipe("masked_hwm_bass")


def test_any_importable_function_is_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = types.ModuleType("my_lab_runs")
    lab.mine = lambda: find_recipe("masked_hwm_toy")().but(train={"steps": 3})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_lab_runs", lab)
    assert find_recipe("my_lab_runs:mine")().train.steps == 3
    for wrong in ("my_lab_runs:yours", "no_such_lab:mine"):
        with pytest.raises(HwmError, match=f"cannot import the recipe '{wrong}'"):
            find_recipe(wrong)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (3, "'my_lab_runs:it' is no recipe: it is no function"),
        (Recipe, r"'my_lab_runs:it' is no recipe: it takes arguments \(model\)"),
        (lambda size, *, name="x", **_: None, r"it takes arguments \(size\)"),
        (lambda *_: None, "'my_lab_runs:it' returned a NoneType, where a Recipe is wanted"),
    ],
)
def test_what_is_no_recipe_is_not_run(monkeypatch: pytest.MonkeyPatch, capsys, thing: object, message: str) -> None:
    lab = types.ModuleType("my_lab_runs")
    lab.it = thing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_lab_runs", lab)
    with pytest.raises(HwmError, match=message):
        make_recipe("my_lab_runs:it")
    assert cli.main(["train", "my_lab_runs:it"]) == 2
    assert re.search(message, capsys.readouterr().err)
