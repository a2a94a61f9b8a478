"""HMA without actions, and predicting them: what is masked is not seen, by any way of conditioning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.models.hma_actions import ActionModel
from hwm.nn.conditioning import WAYS
from hwm.nn.denoiser import Denoiser
from hwm.types import Batch
from tests.models.test_hma import build, build_continuous, shaken
from tests.models.toys import toy_batch, toy_spec

MODELS = pytest.mark.parametrize("make", [build, build_continuous])
FOLLOWING = pytest.mark.parametrize("following", [False, True])


def predicting(make: Any, **changes: Any) -> Any:
    ways = ("concatenate", *WAYS)
    return shaken(make(action_network=ways, action_loss=0.5, past=3, horizon=2, window_stride=2, **changes), 0.3)


def batch_of(model: Any, steps: int = 5) -> Batch:
    return toy_batch(model.spec, steps)


def in_loss(model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch, hidden: Tensor) -> dict[str, Tensor]:
    """What the loss is made of, with gradients, when these actions are hidden."""
    seen: dict[str, Tensor] = {}

    def forget(self: Any, batch: Batch) -> tuple[Batch, Tensor]:
        return replace(batch, actions=batch.actions.masked_fill(hidden[..., None, None], torch.nan)), hidden

    def error(self: Any, head: Any, state_ND: Tensor, action_NE: Tensor) -> Tensor:
        seen["states"], seen["targets"] = state_ND, action_NE
        return state_ND.square().mean(-1)  # of what is seen, and of no target

    monkeypatch.setattr(ActionModel, "forget", forget)
    monkeypatch.setattr(type(model), "action_error", error)
    seen["loss"] = model.loss(batch)[0]
    return seen


# ---------------------------------------------------------------------- masks
@MODELS
@FOLLOWING
def test_the_head_does_not_see_what_it_predicts(make: Any, following: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the loss is a function of, it is none of the hidden actions; of the others it is."""
    model = predicting(make, following_actions=following)
    batch = batch_of(model)
    batch.actions.requires_grad_()
    hidden = torch.tensor([[False, True, False, True, False], [True] * 5])
    seen = in_loss(model, batch, monkeypatch, hidden)
    (gradient,) = torch.autograd.grad(seen["loss"], batch.actions)
    reached = gradient.abs().sum((2, 3)) > 0
    assert not reached[hidden].any()
    # without `following`, the action before the first step is told to it; with it, to none
    assert reached[0].tolist() == [not following, False, True, False, True]
    assert gradient.isfinite().all()
    wanted = model.trunk.stems["arm"].normalised(batch.actions).flatten(2)[:, 1:][hidden[:, 1:]]
    torch.testing.assert_close(seen["targets"], wanted)


@MODELS
@FOLLOWING
def test_gradients_of_a_clip_that_is_told_nothing_are_numbers(
    make: Any, following: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = predicting(make, following_actions=following)
    seen = in_loss(model, batch_of(model), monkeypatch, torch.ones(2, 5, dtype=torch.bool))
    seen["loss"].backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for g in found.values())
    assert found["action_mask"].any()


@MODELS
def test_which_actions_are_hidden(make: Any) -> None:
    torch.manual_seed(0)
    batch = toy_batch(toy_spec(), 5, batch=4000)
    dropped = make(action_drop=0.25).forget(batch)[1]
    assert set(dropped.sum(1).tolist()) == {0, 5}
    assert dropped[:, 0].float().mean() == pytest.approx(0.25, abs=0.03)
    shown, some = make(action_loss=1.0).forget(batch)
    assert not some[:, 0].any()
    assert torch.equal(shown.actions.isnan().all(-1).all(-1), some)
    # a uniform share makes each count of the four equally likely
    assert torch.bincount(some.sum(1), minlength=5)[:5].float().div(4000).tolist() == pytest.approx([0.2] * 5, abs=0.03)


@MODELS
def test_a_model_without_either_hides_nothing(make: Any) -> None:
    model = make()
    assert model.action_mask is None
    assert not any("action_heads" in n for n, _ in model.named_parameters())
    batch = batch_of(model)
    with_mask = shaken(make(action_drop=0.5)).eval()
    known = model.trunk.stems["arm"](batch.actions, 5, False)
    masked = model.trunk.stems["arm"](batch.actions, 5, False, torch.randn(5, 32))
    torch.testing.assert_close(known, masked)
    nothing = Batch(batch.latents[:, :4], torch.full_like(batch.actions, torch.nan), "arm")
    assert with_mask.predict(nothing, generator=torch.Generator().manual_seed(0)).latents.isfinite().all()


@MODELS
@pytest.mark.parametrize(
    "changes", [{"action_drop": 0.5}, {"action_loss": 0.5}, {"action_drop": 0.5, "action_loss": 1}]
)
def test_every_weight_learns(make: Any, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = make(**changes)
    loss, metrics = model(toy_batch(model.spec, model.trunk.steps, batch=8))
    loss.backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == (".hand_v2." in name), name
    assert ("action_error" in metrics) == ("action_loss" in changes)
    assert not any(m.requires_grad for m in metrics.values())


# ---------------------------------------------------------------------- predicting
@MODELS
@FOLLOWING
def test_predicted_actions_follow_from_what_is_known(make: Any, following: bool) -> None:
    model = predicting(make, following_actions=following)
    batch = batch_of(model).window(0, 3, 5)

    def predict(batch: Batch) -> Tensor:
        return model.predict_actions(batch, generator=torch.Generator().manual_seed(0))

    found = predict(batch)
    assert found.shape == (2, 2, 2, 3)
    later = torch.cat([batch.actions[:, :3], batch.actions[:, 3:] + 9], 1)
    assert torch.equal(predict(replace(batch, actions=later)), found)
    earlier = torch.cat([batch.actions[:, :2], batch.actions[:, 2:3] + 1, batch.actions[:, 3:]], 1)
    assert not torch.allclose(predict(replace(batch, actions=earlier)), found)
    seen = replace(batch, latents=batch.latents.flip(-1))
    assert not torch.allclose(predict(seen), found)
    assert model.predict(replace(batch, actions=torch.cat([batch.actions[:, :3], found], 1))).latents.shape[1] == 2


def test_a_robot_that_repeats_itself_is_seen_through() -> None:
    torch.manual_seed(0)
    model = build(action_loss=1.0, past=2, action_tokens=1, depth=1, fully_masked=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

    def clip(size: int) -> Batch:
        one = torch.randn(size, 1, 2, 3) * torch.tensor([1.0, 2.0, 1.0])
        return Batch(torch.zeros(size, 3, 4, 4, dtype=torch.long), one.expand(-1, 3, -1, -1), "arm")

    for _ in range(150):
        optimizer.zero_grad()
        model(clip(32))[0].backward()
        optimizer.step()
    batch = clip(64).window(0, 2, 3)
    found, wanted = model.eval().predict_actions(batch)[:, 0], batch.actions[:, 2]
    assert ((found - wanted).square().mean((0, 1)) < 0.25 * wanted.var((0, 1))).all()


def test_units_are_the_robots() -> None:
    stem, actions = build().trunk.stems["arm"], torch.randn(2, 3, 2, 3)
    torch.testing.assert_close(stem.in_units(stem.normalised(actions)), actions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_drop": 1.5}, "action_drop=1.5 is a share of 0 to 1"),
        ({"action_loss": -1.0}, "a weight from 0 on"),
        ({"action_loss": 0.5, "action_network": ("modulate",)}, "predicted from their tokens"),
    ],
)
def test_settings_without_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmError, match=message):
        build(**changes)


def test_models_and_windows_that_predict_no_actions_are_refused() -> None:
    with pytest.raises(HwmError, match="was not trained to predict actions"):
        build().predict_actions(toy_batch(toy_spec(), 5).window(0, 4, 5))
    with pytest.raises(HwmError, match="predicts 1 to 1 steps from 1 to 4, not 2 from 3"):
        build(action_loss=0.5).predict_actions(toy_batch(toy_spec(), 5).window(0, 3, 5))


# ---------------------------------------------------------------------- what the head computes once
def test_a_condition_that_is_embedded_once_is_the_same() -> None:
    torch.manual_seed(0)
    head, x, told = Denoiser(6, 8, 16, 2), torch.randn(5, 3, 6), torch.randn(5, 3, 8)
    once = head.conditioned(told)
    for step in (0, 999):
        each = torch.full((5, 3), step)
        torch.testing.assert_close(once(x, torch.tensor(step)), head(x, each, told))
