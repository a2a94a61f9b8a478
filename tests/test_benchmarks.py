"""Every benchmark runs, on a model too small for its figures to mean anything, and prints what it promises."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hwm.commands.training import count_parameters
from hwm.nn import layers
from hwm.objectives import maskgit
from hwm.plugins import own
from hwm.recipes import RECIPES, find_recipe
from hwm.train import bench

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(p for p in BENCHMARKS.glob("*.py") if p.name != "common.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_benchmark_prints_ours_and_a_baseline(script: Path) -> None:
    command = [sys.executable, str(script), "--json", "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert {"ours", "baseline", "ratio", "unit", "device", "versions"} <= set(result)
    assert result["ratio"] == pytest.approx(result["baseline"] / result["ours"])
    assert result["ours"] > 0


# ---------------------------------------------------------------------- straightforward training steps
def script(name: str) -> Any:
    """A benchmark as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


TRAIN_STEP = script("train_step")


class Seen(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.name()] += 1
        return func(*args, **(kwargs or {}))

    def of(self, part: str) -> int:
        return sum(n for name, n in self.count.items() if part in name)


@pytest.mark.parametrize("name", TRAIN_STEP.STEPS)
def test_a_straightforward_step_has_the_same_loss_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskgit, "LOGITS_AT_ONCE", 2**20)  # so that ours works in parts
    monkeypatch.setattr(layers, "ROWS_AT_ONCE", 64)
    losses, gradients, seen = {}, {}, {}
    for plain in (False, True):
        model, batch = TRAIN_STEP.build(name, True, plain, torch.device("cpu"))
        loss_of = TRAIN_STEP.STEPS[name].baseline if plain else TRAIN_STEP.own_loss
        with TRAIN_STEP.savings_taken_out() if plain else nullcontext(), Seen() as seen[plain]:
            torch.manual_seed(1)
            losses[plain] = loss_of(model, batch)
            losses[plain].backward()
        gradients[plain] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert losses[True].item() == pytest.approx(losses[False].item(), rel=1e-5)
    assert gradients[True].keys() == gradients[False].keys()
    largest = max(g.abs().max().item() for g in gradients[True].values())
    assert largest > 1e-3
    for key, gradient in gradients[True].items():
        torch.testing.assert_close(gradients[False][key], gradient, rtol=1e-3, atol=1e-5 * largest, msg=key.__add__)
    assert not seen[True].of("scaled_dot_product")
    assert seen[True].of("::_softmax")


def test_accumulation_sees_every_clip_once() -> None:
    _, batch = TRAIN_STEP.build("masked_hwm_base", True, False, torch.device("cpu"), clips=4)
    seen = list(TRAIN_STEP.parts(batch, 2))
    assert [len(part.latents) for part in seen] == [2, 2]
    assert torch.equal(torch.cat([part.latents for part in seen]), batch.latents)
    assert torch.equal(torch.cat([part.actions for part in seen]), batch.actions)


def test_attention_written_out_is_attention() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 8, generator=g) for heads, length in ((4, 5), (2, 5), (2, 5)))
    for options in (
        dict(enable_gqa=True),
        dict(enable_gqa=True, is_causal=True),
        dict(enable_gqa=True, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril(), scale=0.3),
    ):
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
        torch.testing.assert_close(TRAIN_STEP.scores_written_out(q, k, v, **options), theirs)


# ---------------------------------------------------------------------- the table of a GPU
GPU = script("gpu")


def test_the_table_has_every_recipe_of_size() -> None:
    rows = {name for name, _ in GPU.ROWS}
    large = {name for name in RECIPES.names() if count_parameters(name) > 20e6}
    assert large <= rows <= set(RECIPES.names())
    families = {type(find_recipe(name)().model).owner.name for name in rows}
    assert {entry.name for entry in own("hwm.models")} <= families


@pytest.mark.parametrize("name", GPU.FIRST)
def test_a_row_of_every_family_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "peak_flops", lambda device, form: 1e9)
    recipe = GPU.tiny(name).but(train=dict(device="cpu", dtype="bfloat16", compile=False))
    row = {**GPU.measured(name, recipe, 1), "recipe": name, "compiled": False}
    assert row["dtype"] == "bfloat16"
    assert row["tokens_per_second"] > 0
    assert row["frames_per_second"] > 0
    cells = GPU.line(row).split(" | ")
    assert len(cells) == len(GPU.HEADS) == GPU.page([row]).count("---")
    assert f"{row['tokens_per_second']:,.0f}" in cells


def test_as_many_clips_are_taken_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    room, tried = 3, []

    def measure(name: str, recipe: Any, steps: int) -> Any:
        tried.append(recipe.train.batch_size)
        if recipe.train.batch_size > room:
            raise torch.OutOfMemoryError("no room")
        return bench.bench(name, recipe, steps)

    monkeypatch.setattr(bench, "peak_flops", lambda device, form: 1e9)
    monkeypatch.setattr(GPU, "bench", measure)
    recipe = GPU.tiny("cosmos_ar_4b").but(train=dict(device="cpu", compile=False, batch_size=4, accumulate=2))
    assert GPU.measured("cosmos_ar_4b", recipe, 1)["batch_size"] == 2
    assert tried == [8, 4, 2]
    room = 0
    row = GPU.measured("cosmos_ar_4b", recipe, 1)
    assert "tokens_per_second" not in row
    assert row["note"] == "training does not fit, not with one clip"
    assert row["dtype"] == "bfloat16", "a prediction has weights of half the size"
    assert row["frames_per_second"] > 0


def test_a_table_says_what_it_lacks_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(device="cpu", steps=1, quick=True, threads=1, minutes=1.0, out=tmp_path)
    monkeypatch.setattr(GPU, "PATIENCE", 0.01)
    assert GPU.table([("masked_hwm_base", False)], SimpleNamespace(**options))[0]["note"] == "stopped after 0 s"
    monkeypatch.setattr(GPU, "PATIENCE", 60.0)
    rows = GPU.table([("no_such_recipe", False)], SimpleNamespace(**options))
    assert "no_such_recipe" in rows[0]["note"]
    assert rows[0]["note"].startswith("failed: ")
    rows = GPU.table([("masked_hwm_base", True)], SimpleNamespace(**options | dict(minutes=0.0)))
    assert "no time was left" in rows[0]["note"]
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["rows"] == rows
    assert "| masked_hwm_base | compiled |" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
