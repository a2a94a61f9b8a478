"""Clips that look back on steps of the model's own making, and what a loss learns from where it is told a prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hwm.config import registered
from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.types import Batch
from tests.models.test_registry import FAMILIES, build, opened
from tests.models.toys import toy_batch, toy_spec

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow_hwm, horizon": ("flow_hwm", {"horizon": 2, "any_horizon": True}),
    "hma_continuous, actions": ("hma_continuous", {"following_actions": True, "action_loss": 1.0, "action_drop": 0.5}),
    "hma_discrete, actions": ("hma_discrete", {"action_loss": 1.0, "action_drop": 0.5}),
    "masked_hwm, parallel": ("masked_hwm", {"parallel": True, "learned_steps": 1, "reach": 1, "copy_previous": True,
                                            "window_stride": 2, "past": 3}),
    "masked_hwm_shared, factors": ("masked_hwm_shared", {"clip_factors": 3, "past": 3, "horizon": 3}),
    "next_block, clips": ("next_block", {"clip_steps": 3, "window_stride": 3}),
}  # fmt: skip
CASES = {**{name: (name, {}) for name in FAMILIES}, **VARIANTS}
WHOLE_CLIP = ("cosmos_ar", "genie", "hma_continuous", "hma_discrete", "masked_hwm, parallel")
"""Those that learn from every step of a clip but the first; others from the last `horizon`."""


def make(case: str, **changes: Any) -> WorldModel:
    """A model of two steps at a time or whose horizon is its own, whose gates let pass."""
    name, own = CASES[case]
    config = replace(registered(name).tiny(), **{**own, **changes})
    return opened(config.build(build(name).spec))


def long_clip(model: WorldModel) -> tuple[Batch, int]:
    """A true clip, and of how many own steps it is one."""
    count = max(2, model.group)
    return toy_batch(model.spec, model.config.past + model.config.horizon + count), count


def loss_of(model: WorldModel, batch: Batch) -> torch.Tensor:
    torch.manual_seed(3)
    return model.loss(batch)[0]


def other(latents: torch.Tensor) -> torch.Tensor:
    """Other latents of the same kind."""
    return (latents + 7) % 60 if not latents.is_floating_point() else latents + 3


@pytest.mark.parametrize("case", CASES)
def test_the_context_ends_in_a_rollout_and_what_is_learned_from_is_true(case: str) -> None:
    model = make(case).train()
    batch, count = long_clip(model)
    stop = batch.latents.shape[1] - model.config.horizon
    torch.manual_seed(1)
    clip = model.with_own_steps(batch, count)
    assert model.training
    torch.manual_seed(1)
    own = model.eval().rollout(batch.window(0, stop - count, stop)).latents
    want = torch.cat([batch.latents[:, count : stop - count], own, batch.latents[:, stop:]], 1)[
        :, -clip.latents.shape[1] :
    ]
    assert torch.equal(clip.latents, want)
    assert torch.equal(clip.actions, batch.actions[:, count:])
    assert clip.latents.shape[1] == model.config.past + model.config.horizon
    assert clip.prompt == model.config.past


@pytest.mark.parametrize("case", CASES)
def test_own_steps_are_learned_on_but_not_from(case: str) -> None:
    """The loss does not know what is true of them; it does of the steps at the end; and it trains the model."""
    model = make(case).train()
    batch, count = long_clip(model)
    stop = batch.latents.shape[1] - model.config.horizon

    def loss(latents: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return loss_of(model, model.with_own_steps(replace(batch, latents=latents), count))

    changed = batch.latents.clone()
    changed[:, stop - count : stop] = other(changed[:, stop - count : stop])
    one = loss(batch.latents)
    assert torch.equal(one, loss(changed))
    changed[:, stop:] = other(changed[:, stop:])
    assert not torch.equal(one, loss(changed))
    one.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_of_what_is_never_learned_from_changes_no_loss(case: str) -> None:
    """And one that is longer does, in a model that would learn from more."""
    model = make(case)
    assert model.heeds_prompt
    past = model.config.past
    batch = toy_batch(model.spec, past + model.config.horizon)
    whole = case.split(", actions")[0] in WHOLE_CLIP
    assert torch.equal(loss_of(model, batch), loss_of(model, replace(batch, prompt=1 if whole else past)))
    assert torch.equal(loss_of(model, batch), loss_of(model, replace(batch, prompt=past))) != whole
    with pytest.raises(HwmError, match=f"a prompt of {past + 1} of"):
        model.loss(replace(batch, prompt=past + 1))


PLAIN = {"non_mlm": 0.0, "max_corrupt": 0.0, "fully_masked": 1.0, "label_smoothing": 0.0}


@pytest.mark.parametrize("case", [c for c in WHOLE_CLIP if c != "hma_continuous"])
def test_the_loss_after_a_prompt_is_that_of_the_steps_behind_it_alone(case: str) -> None:
    """From a prompt that is shown as it is, as in prediction; where all of a step is masked, as there."""
    fields = {k: v for k, v in PLAIN.items() if hasattr(registered(CASES[case][0]).Config, k)}
    model = make(case, **fields).eval()
    past, steps = model.config.past, model.config.past + model.config.horizon
    batch = toy_batch(model.spec, steps)
    if case == "cosmos_ar":
        prediction = model.teacher_forced(batch, past)
    else:
        prediction = model.predict(batch.window(0, past, steps), logits=True)
    want = prediction.cross_entropy(batch.latents[:, past:])
    assert want is not None
    torch.testing.assert_close(loss_of(model, replace(batch, prompt=past)), want.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["hma_continuous", "hma_continuous, actions"])
def test_the_patches_that_are_denoised_are_of_the_steps_behind_the_prompt(case: str, monkeypatch: Any) -> None:
    model: Any = make(case)
    past = model.config.past
    batch = toy_batch(model.spec, past + model.config.horizon)
    seen, denoising = list[torch.Tensor](), model.denoising
    monkeypatch.setattr(model, "denoising", lambda x, c: (seen.append(x), denoising(x, c))[1])
    loss_of(model, replace(batch, prompt=past))
    known = model.tokens(batch.latents)[:, past:].flatten(0, 2)
    assert len(seen[0])
    assert all((row == known).all(-1).any() for row in seen[0])


@pytest.mark.parametrize("case", ["hma_continuous, actions", "hma_discrete, actions"])
def test_no_action_of_a_prompt_is_guessed(case: str, monkeypatch: Any) -> None:
    model: Any = make(case)
    batch = replace(toy_batch(model.spec, 5, batch=32), prompt=4)
    shown, hidden_BT = model.forget(batch)
    told = ~hidden_BT.all(1)  # of the others all actions are hidden, as where a model does without them
    assert not shown.actions[told][:, :4].isnan().any()
    guessed, action_error = list[torch.Tensor](), model.action_error
    monkeypatch.setattr(model, "action_error", lambda h, s, a: (guessed.append(a), action_error(h, s, a))[1])
    loss_of(model, batch)
    known = model.trunk.stem("arm").normalised(batch.actions[:, 4:]).flatten(1)
    assert len(guessed[0])
    assert all((row == known).all(-1).any() for row in guessed[0])


def test_a_clip_that_is_too_short_or_not_of_whole_groups_is_refused() -> None:
    model = make("next_block, clips")
    with pytest.raises(HwmError, match="a clip of 6 steps is too short for next_block to make 3 steps"):
        model.with_own_steps(toy_batch(model.spec, 6), 3)
    with pytest.raises(HwmError, match="to make 2 steps, in multiples of 3"):
        model.with_own_steps(toy_batch(model.spec, 8), 2)


@pytest.mark.parametrize("case", CASES)
def test_with_no_own_steps_the_loss_is_the_ordinary_one(case: str) -> None:
    model = make(case)
    batch = toy_batch(model.spec, model.config.past + model.config.horizon)
    assert torch.equal(loss_of(model, batch), loss_of(model, model.with_own_steps(batch, 0)))


def test_a_window_keeps_what_it_holds_of_a_prompt() -> None:
    batch = replace(toy_batch(toy_spec(), 6), prompt=3)
    assert [batch.window(start, 6, 6).prompt for start in (0, 2, 4)] == [3, 1, 0]
    assert batch.to("cpu").prompt == 3
