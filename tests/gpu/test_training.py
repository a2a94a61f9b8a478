"""Training on a device: resumed runs, compiled and recomputed blocks, and the memory that was foretold."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.config import Trainable
from hwm.data.clips import fake_batch
from hwm.recipes import find_recipe
from hwm.train.blocks import arithmetic, compile_blocks, recompute
from hwm.train.config import TrainConfig
from hwm.train.lora import choose
from hwm.train.memory import _Live, training_memory
from hwm.train.optim import gradient_norm, optimizers
from hwm.train.trainer import Trainer
from hwm.types import DataSpec
from tests.gpu.beside import CARD, cases, error, flat, runtime
from tests.models.test_registry import FAMILIES, OneClip, build, clip, opened


# ---------------------------------------------------------------------- resuming
def trained(name: str, device: str, run: Path, stops: tuple[int, ...]) -> Tensor:
    """The weights, and their average, of a run that is stopped at each of these updates and resumed."""
    for stop in stops:
        torch.manual_seed(0)
        model = opened(build(name))
        data = OneClip(clip(model), model.spec)
        config = TrainConfig(
            steps=4, batch_size=2, warmup=1, lr=1e-3, ema=0.9, optimizer="muon", save_every=0, device=device, threads=1
        )
        trainer = Trainer(config, model, data, None, run)  # type: ignore[arg-type]
        while trainer.step < stop:
            trainer.update(trainer._batches())
            trainer.step += 1
        trainer.save()
    assert trainer.average is not None
    return torch.cat([flat(trainer.module.state_dict()), flat(trainer.average.weights)])


@pytest.mark.parametrize(("device", "name"), cases(("masked_hwm", "hma_continuous"), FAMILIES))
def test_a_resumed_run_is_the_uninterrupted_one(name: str, device: str, tmp_path: Path) -> None:
    """A card adds in varying order, so that two uninterrupted runs may differ; a resumed one differs no more."""
    whole, again = (trained(name, device, tmp_path / run, (4,)) for run in ("whole", "again"))
    parts, shorter = trained(name, device, tmp_path / "parts", (2, 4)), trained(name, device, tmp_path / "half", (2,))
    noise, learnt = error(again, whole), error(shorter, whole)
    assert noise < 0.1 * learnt, "two runs must be alike for this to say anything"
    assert error(parts, whole) <= 4 * noise + 1e-3 * learnt * bool(noise)


# ---------------------------------------------------------------------- waiting
@pytest.mark.parametrize(("device", "name"), cases((), FAMILIES))
def test_an_update_waits_for_nothing(name: str, device: str) -> None:
    """PyTorch's own watch over waits, from the second update on: the first one sends what is sent once.

    The same without a card is in tests/pretend/test_waits.py.
    """
    torch.manual_seed(0)
    model = opened(build(name)).to(device).train()
    batch, made = clip(model), optimizers(model, "muon", 1e-3, 0.01, (0.9, 0.95))
    for waits in ("default", "error"):
        torch.cuda.set_sync_debug_mode(waits)
        try:
            with arithmetic(runtime(device, "bfloat16"), "none"):
                loss, _ = model(batch.to(torch.device(device)))
            loss.backward()
            gradient_norm(model, 1.0)
            for optimizer in made:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------------- compiling
BLOCKS = ("masked_hwm", "flow_hwm", "cosmos_ar")
"""Families that are compiled with each way of recomputing: a block over space and time, over streams, over tokens."""

COMPILED: list[Any] = [
    *(("cpu", name, "selective") for name in BLOCKS[:1]),
    *(pytest.param("cuda", name, "none", marks=pytest.mark.gpu) for name in FAMILIES if CARD),
    *(pytest.param("cuda", name, m, marks=pytest.mark.gpu) for name in BLOCKS for m in ("selective", "full") if CARD),
]


@pytest.mark.parametrize(("device", "name", "mode"), COMPILED)
def test_compiled_blocks_learn_what_others_learn(
    device: str, name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card by the compiler that training uses; on the CPU its graphs are only traced."""
    torch.compiler.reset()
    backend = "inductor" if device == "cuda" else "eager"
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    torch.manual_seed(0)
    where, model = runtime(device, "bfloat16"), opened(build(name))
    model, batch, found = model.to(where.device), clip(model).to(where.device), []
    for compiled in (False, True):
        if compiled:
            recompute(model, mode)
            compile_blocks(model)
        model.zero_grad()
        torch.manual_seed(0)
        with arithmetic(where, mode):
            loss, _ = model(batch)
        loss.backward()
        found.append(flat({k: p.grad for k, p in model.named_parameters() if p.grad is not None}))
    assert len(found[0]) == len(found[1])
    assert error(found[1], found[0]) < 0.03


# ---------------------------------------------------------------------- memory
SMALL = dict(dim=128, depth=2, heads=2)
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "masked_hwm_base": dict(cuda=dict(depth=6), cpu=SMALL),
    "flow_hwm_base": dict(cuda=dict(depth=3), cpu=SMALL),
    "genie_35m": dict(cuda={}, cpu=SMALL),
    "hma_continuous_base": dict(cuda={}, cpu=SMALL | dict(action_tokens=4, head_depth=1, head_width=32)),
    "cosmos_ar_100m": dict(cuda={}, cpu=SMALL | dict(heads=4, kv_heads=2, head_dim=8, mlp_dim=64)),
}
"""Recipes, and their changes: on a card of real size, but not so many blocks that it takes minutes."""


def step(module: Trainable, batch: Any, made: list[Any], how: TrainConfig) -> None:
    with arithmetic(runtime(batch.latents.device.type, how.dtype), how.activation_checkpoint):
        loss, _ = module(batch)
    loss.backward()
    gradient_norm(module, 1.0)
    for optimizer in made:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def taken(config: Any, spec: DataSpec, steps: int, how: TrainConfig, device: str) -> float:
    """Bytes at the peak of the second step: a card's own count, or what the CPU's tensors take."""
    torch.manual_seed(0)
    gc.collect()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    with torch.device(device):
        module = config.build(spec)
    choose(module, how.only, how.lora)
    recompute(module, how.activation_checkpoint)
    made = optimizers(module, how.optimizer, 1e-4, 0.01, (0.9, 0.95))
    batch = fake_batch(spec, how.batch_size, steps).to(torch.device(device))
    step(module, batch, made, how)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(module, batch, made, how)
        return float(torch.cuda.max_memory_allocated() - before)
    state = [x for o in made for s in o.state.values() for x in s.values()]
    kept = [*module.parameters(), *module.buffers(), *state]
    kept += [p.grad for p in module.parameters() if p.grad is not None]
    with _Live({t.untyped_storage()._cdata for t in (*kept, batch.latents, batch.actions)}) as live:
        step(module, batch, made, how)
    return live.peak + sum(t.nbytes for t in kept)


FORETOLD: list[Any] = [
    *(("cpu", name, "selective") for name in ("flow_hwm_base", "genie_35m", "cosmos_ar_100m")),
    *(
        pytest.param("cuda", name, mode, marks=pytest.mark.gpu)
        for name in SIZES
        for mode in ("none", "selective", "full")
        if CARD
    ),
]


@pytest.mark.parametrize(("device", "name", "mode"), FORETOLD)
def test_a_step_takes_the_memory_that_was_foretold(device: str, name: str, mode: str) -> None:
    recipe = find_recipe(name)().but(model=SIZES[name][device])
    spec = recipe.data.expects
    assert spec is not None
    if device == "cpu":
        spec = replace(spec, latent=replace(spec.latent, grid=(8, 8)))
    how = TrainConfig(batch_size=2, dtype="bfloat16", activation_checkpoint=mode)  # type: ignore[arg-type]
    foretold = training_memory(recipe.model, spec, recipe.data.steps, how)
    took = taken(recipe.model, spec, recipe.data.steps, how, device)
    assert foretold.total == pytest.approx(took, rel=0.25)
