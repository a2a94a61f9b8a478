"""Every registered model and tokenizer on a card that is not there: nothing is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hwm.config import Trainable, registered
from hwm.devices import Runtime
from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.objectives.edm import EDMSampler
from hwm.plugins import own
from hwm.train.optim import MovingAverage, gradient_norm, optimizers
from hwm.types import Batch, DataSpec, LatentSpec
from tests.models.test_registry import FAMILIES, build, clip, opened, window
from tests.pretend.device import pretending
from tests.pretend.tensors import Card, DeviceError, Pretend

TOKENIZERS = sorted(entry.name for entry in own("hwm.tokenizers"))
PICTURES = DataSpec(LatentSpec((32, 32), channels=3), {}, "pixels-32x32")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cosmos_ar, digits": ("cosmos_ar", {"factorized": True, "own_past": 0.5, "action_deltas": True}),
    "cosmos_ar, video alone": ("cosmos_ar", {"actions": False, "begin": True, "max_corrupt": 0.2,
                                             "absolute": "float32"}),
    "diffusion, guided": ("diffusion", {"horizon": 2, "dropped_actions": 0.5, "short_past": 0.5,
                                        "sampler": EDMSampler(steps=2, solver="heun", guidance=2.0)}),
    "flow_hwm, split": ("flow_hwm", {"variant": "split", "objective": "shortcut", "clean_context": True,
                                     "direct": True}),
    "flow_hwm, full": ("flow_hwm", {"variant": "full", "any_horizon": True, "horizon": 2, "context_noise": (0.1, 0.5)}),
    "genie, actions": ("genie", {"actions": True, "qk_norm": True, "mlp_drop": 0.3}),
    "genie, narrow": ("genie", {"dim": 8}),  # narrower than the logits, as recipes are: those of masked tokens alone
    "hma_continuous, actions": ("hma_continuous", {"following_actions": True, "action_loss": 1.0, "action_drop": 0.5,
                                                   "context_noise": (0.1, 0.5)}),
    "hma_discrete, actions": ("hma_discrete", {"following_actions": True, "action_loss": 1.0, "action_drop": 0.5}),
    "masked_hwm, split": ("masked_hwm", {"variant": "split", "parallel": True, "own_past": 0.5, "learned_steps": 1,
                                         "reach": 1, "copy_previous": True, "action_deltas": True}),
    "masked_hwm, digits": ("masked_hwm", {"variant": "full", "factorized": True, "digit_moves": 0.5,
                                          "label_smoothing": 0.1}),
    "masked_hwm_shared, factors": ("masked_hwm_shared", {"clip_factors": 3, "past": 3, "horizon": 3}),
    "masked_hwm_shared, streams": ("masked_hwm_shared", {"stream_embedding": True, "spatial_pool": True}),
    "next_block, digits": ("next_block", {"max_corrupt": 0.2, "factorized": True}),
}  # fmt: skip
"""Further ways of some families, whose code is not run by the smallest configs: family, and what to change of that."""
CASES = {**{name: (name, {}) for name in FAMILIES}, **VARIANTS}


@pytest.fixture(params=["cuda", "mps"])
def card(request: pytest.FixtureRequest) -> Iterator[Card]:
    with pretending(request.param) as found:
        yield found


def on(card: Card, case: str) -> WorldModel:
    """A model on the card, whose gates let pass."""
    name, changes = CASES[case]
    config = replace(registered(name).tiny(), **changes)
    torch.manual_seed(0)
    model = opened(config.build(build(name).spec))
    model.to(card.device)
    return model


def train(card: Card, module: Trainable, batch: Batch) -> None:
    """Updates in both number formats, by both kinds of optimizer, and the average of the weights."""
    average = MovingAverage(module, 0.9)
    for format, kind in (("float32", "adamw"), ("bfloat16", "muon")):
        with Runtime(card.device, format).autocast():
            loss, metrics = module(batch)
        loss.backward()
        gradient_norm(module, 1.0)
        for optimizer in optimizers(module, kind, 1e-3, 0.1, (0.9, 0.95)):
            optimizer.step()
            optimizer.zero_grad()
        average.update(module, 1)
        assert loss.isfinite()
        assert all(isinstance(x, Pretend) for x in [loss, *metrics.values(), *average.weights.values()])


@pytest.mark.parametrize("case", CASES)
def test_models_are_trained(card, case):
    model = on(card, case)
    batch = clip(model).to(card.device)
    train(card, model, batch)
    model.eval()
    with torch.no_grad():
        assert isinstance(model.validation_loss(batch)[0], Pretend)


@pytest.mark.parametrize("case", CASES)
def test_models_predict(card, case):
    model = on(card, case).eval()
    known = window(model).to(card.device)
    ahead = known.actions[:, -model.group :].repeat(1, 2 * max(1, model.config.horizon // model.group), 1, 1)
    longer = replace(known, actions=torch.cat([known.actions[:, : model.config.past], ahead], 1))
    rows = [torch.Generator(card.device).manual_seed(i) for i in range(2)]
    made = model.predict(known, generator=rows, logits=True)
    if made.logits is not None:
        assert isinstance(made.cross_entropy(made.latents), Pretend)
    for use_cache in (True, False):
        one = torch.Generator(card.device).manual_seed(0)
        assert isinstance(model.rollout(longer, use_cache=use_cache, generator=one).latents, Pretend)
    with suppress(HwmError):  # tokens without an order
        model.teacher_forced(clip(model).to(card.device), model.config.past)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_that_of_the_cpu(name):
    model = opened(build(name))
    torch.manual_seed(0)
    here = model(clip(model))[0]
    with pretending("cuda") as card:
        model.to(card.device)
        torch.manual_seed(0)
        torch.testing.assert_close(model(clip(model).to(card.device))[0].cpu(), here)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_model_makes_elsewhere_is_refused(name, monkeypatch):
    """The tests above would notice: here its last unit adds numbers that it has counted on the CPU."""
    with pretending("cuda") as card:
        model = on(card, name)
        unit = list(model.units())[-1]
        forward = unit.forward

        def planted(x: Any, *args: Any, **kwargs: Any) -> Any:  # one tensor, or one of each stream
            return forward(tree_map_only(Tensor, lambda t: t + torch.arange(t.shape[-1]), x), *args, **kwargs)

        monkeypatch.setattr(unit, "forward", planted)
        with pytest.raises(DeviceError, match="at least two devices"):
            model(clip(model).to(card.device))


def pictures(card: Card) -> Batch:
    video = torch.rand(2, 9, 3, *PICTURES.latent.grid, generator=torch.Generator().manual_seed(0))
    return Batch(video, torch.zeros(2, 9, 1, 1), "toy").to(card.device)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_are_trained_encode_and_decode(card, name):
    tokenizer = registered(name).tiny().build(PICTURES)
    tokenizer.to(card.device)
    batch = pictures(card)
    with suppress(HwmError):  # one is only converted, and never trained
        train(card, tokenizer, batch)
    tokenizer.eval()
    for format in ("float32", "bfloat16"):
        with Runtime(card.device, format).autocast():
            latents = tokenizer.encode(batch.latents)
            assert tokenizer.decode(latents).shape == batch.latents.shape
            assert isinstance(tokenizer.decode(tokenizer.shift(latents, 1)), Pretend)
