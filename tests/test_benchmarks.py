"""Every benchmark runs, on a model too small for its figures to mean anything, and prints what it promises."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hwm.nn import layers
from hwm.objectives import maskgit

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
