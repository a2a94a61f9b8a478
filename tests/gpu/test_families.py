"""Every family on a device, in the number format used there, beside the CPU's float32.

The bounds are some four times what bfloat16 is off by on a CPU, over several seeds: it rounds alike wherever it is
computed. Attention without its mask, for one, is off by more in every family that has a mask.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from hwm.config import registered
from hwm.devices import Runtime
from hwm.models.base import WorldModel
from hwm.plugins import own
from hwm.train.blocks import arithmetic
from hwm.train.config import TrainConfig
from hwm.train.trainer import Trainer
from hwm.types import Batch
from tests.gpu.beside import CARD, CPU, DEVICES, SameDraws, disagreement, error, flat, runtime, twin
from tests.models.test_registry import FAMILIES, OneClip, build, clip, opened, window

TOKENIZERS = sorted(entry.name for entry in own("hwm.tokenizers"))


class Bounds(NamedTuple):
    """How far from the CPU's float32.

    Attributes:
        loss: as a share of it.
        gradient: of all gradients together, as a share of their norm; twice that of each that is not small.
        update: one less the cosine between what an update adds to the weights.
        rollout: share of ids that are others, or of the norm of latents.
    """

    loss: float
    gradient: float
    update: float
    rollout: float


BOUNDS = {"float32": Bounds(2e-3, 0.01, 0.01, 0.05), "bfloat16": Bounds(0.01, 0.05, 0.02, 0.1)}
"""An NVIDIA card's float32 products round their factors to 10 bits (TF32); bfloat16 has 7."""

FORMATS: list[Any] = [
    ("cpu", "bfloat16"),
    *(pytest.param("cuda", form, marks=pytest.mark.gpu) for form in BOUNDS if CARD),
]


def gradients(model: WorldModel, batch: Batch, where: Runtime) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch, and the gradients."""
    with SameDraws(), arithmetic(where, "none"):
        loss, _ = model(batch.to(where.device))
    loss.backward()
    return loss.item(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def lively(name: str) -> WorldModel:
    """A family's model whose every part matters: attention that looks somewhere, and gates that are open."""
    torch.manual_seed(0)
    model = build(name)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize(("device", "form"), FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_the_cpu(name: str, device: str, form: str) -> None:
    model, where, bounds = lively(name), runtime(device, form), BOUNDS[form]
    there, batch = twin(model, where.device), clip(model)
    (loss, wanted), (got_loss, got) = gradients(model, batch, CPU), gradients(there, batch, where)
    assert got_loss == pytest.approx(loss, rel=bounds.loss)
    assert got.keys() == wanted.keys()
    assert error(flat(got), flat(wanted)) < bounds.gradient
    largest = max(float(g.norm()) for g in wanted.values())
    for key, gradient in wanted.items():
        if float(gradient.norm()) > 0.01 * largest:
            assert error(got[key], gradient) < 2 * bounds.gradient, key


def updated(name: str, device: str, form: str, updates: int, run: Path) -> tuple[list[float], torch.Tensor]:
    """Losses of so many updates by the trainer, and what the first of them adds to the weights."""
    torch.manual_seed(0)
    model = opened(build(name))
    begun = flat(model.state_dict())
    config = TrainConfig(
        batch_size=2, warmup=0, lr=1e-3, weight_decay=0.0, device=device, dtype=form, log_every=0, threads=1
    )  # type: ignore[arg-type]
    with SameDraws():
        trainer = Trainer(config, model, OneClip(clip(model), model.spec), None, run)  # type: ignore[arg-type]
        batches, losses, added = trainer._batches(), list[float](), torch.empty(0)
        for trainer.step in range(updates):
            losses.append(float(trainer.update(batches)["loss"]))
            added = flat(trainer.module.state_dict()) - begun if trainer.step == 0 else added
    return losses, added


@pytest.mark.parametrize(("device", "form"), FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_update_is_that_of_the_cpu(name: str, device: str, form: str, tmp_path: Path) -> None:
    wanted, added = updated(name, "cpu", "float32", 3, tmp_path / "cpu")
    losses, there = updated(name, device, form, 3, tmp_path / "there")
    assert losses == pytest.approx(wanted, rel=3 * BOUNDS[form].loss)
    assert F.cosine_similarity(there, added, dim=0) > 1 - BOUNDS[form].update


@cache
def overfitted(name: str) -> WorldModel:
    """A family's model that knows one clip, on the CPU: what it predicts does not hang on the last bit."""
    torch.manual_seed(0)
    model = opened(build(name))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(60):
        with SameDraws():
            model(clip(model))[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def rollout(model: WorldModel, where: Runtime, use_cache: bool) -> torch.Tensor:
    """Three predictions, one after the other."""
    w, horizon = window(model), model.config.horizon
    further = w.actions[:, -horizon:]
    batch = Batch(w.latents, torch.cat([w.actions, further, further], 1), w.embodiment).to(where.device)
    with SameDraws(), where.autocast():
        return model.rollout(batch, use_cache=use_cache).latents


@pytest.mark.parametrize(("device", "form"), FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_rollout_is_that_of_the_cpu(name: str, device: str, form: str) -> None:
    model, where = overfitted(name), runtime(device, form)
    there = twin(model, where.device)
    wanted = rollout(model, CPU, use_cache=True)
    for use_cache in (True, False):
        got = rollout(there, where, use_cache)
        assert got.device == next(there.parameters()).device
        assert disagreement(got, wanted) < BOUNDS[form].rollout, f"use_cache={use_cache}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_shows_what_it_shows_on_the_cpu(name: str, device: str) -> None:
    """In bfloat16 weights, as `hwm encode` may have them: pictures from the same latents, and how many ids agree."""
    tokenizer = tiny_tokenizer(name)
    there = twin(tokenizer, torch.device(device)).to(torch.bfloat16)
    video = torch.rand(1, tokenizer.latent.frames(2), 3, *tokenizer.size, generator=torch.Generator().manual_seed(0))
    latents = tokenizer.encode(video)
    got = there.encode(video.to(device))
    assert disagreement(got, latents) < 0.1
    pictures, shown = tokenizer.decode(latents), there.decode(latents.to(device))
    assert shown.device.type == device
    assert error(shown, pictures) < 0.03


def tiny_tokenizer(name: str) -> Any:
    from hwm.recipes.specs import pixels

    torch.manual_seed(0)
    return registered(name).tiny().build(pixels(32)).eval()  # type: ignore[attr-defined]
