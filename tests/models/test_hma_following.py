"""HMA conditioned on the actions that follow a step, as published models are: recorded ones where there are any, else
the last once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.evaluate.scenarios import temporally_teacher_forced
from hwm.models.hma_continuous import MARSampler
from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import Batch
from tests.models.test_hma import build, build_continuous, shaken
from tests.models.toys import toy_batch

DISCRETE, CONTINUOUS = MaskGITSampler(steps=2), MARSampler(steps=2, diffusion_steps=2, temperature=0.0, clamp=2.0)
MODELS = pytest.mark.parametrize(("make", "sampler"), [(build, DISCRETE), (build_continuous, CONTINUOUS)])


def model_of(make: Any, **changes: Any) -> Any:
    return shaken(make(following_actions=True, **changes), 0.3).double()


def batch_of(model: Any, steps: int) -> Batch:
    batch = toy_batch(model.spec, steps)
    return batch if model.spec.latent.vocab else replace(batch, latents=batch.latents.double())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@MODELS
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_rollout_is_told_what_follows_each_step(make: Any, sampler: Any, use_cache: bool) -> None:
    """One that ends earlier, and is given the actions that follow, equals the beginning of a longer one; each of its
    steps is what is predicted alone, given all of the actions up to the one after it."""
    model = model_of(make)
    whole = batch_of(model, 10)
    full = replace(whole, latents=whole.latents[:, :3])
    longer, shorter = (
        model.rollout(batch, sampler=sampler, use_cache=use_cache, generator=seeded()).latents
        for batch in (full, full.window(0, 3, 8))
    )
    torch.testing.assert_close(shorter, longer[:, :5])
    latents, random = full.latents, seeded()
    for t in range(3, 8):
        start = model.window_start(t)
        window = Batch(latents[:, start:], whole.actions[:, start : t + 1], "arm", whole.actions[:, t + 1])
        latents = torch.cat([latents, model.predict(window, sampler=sampler, generator=random).latents], 1)
    torch.testing.assert_close(shorter, latents[:, 3:])


@MODELS
def test_a_prediction_depends_on_what_follows_where_it_is_recorded(make: Any, sampler: Any) -> None:
    model = model_of(make)
    batch = batch_of(model, 5).window(0, 3, 4)
    assert batch.following is not None

    def state(following: Tensor | None) -> Tensor:
        """What the heads read of the missing step."""
        return model.expectation(replace(batch, following=following))[-1]

    following = batch.following.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(state(following).square().sum(), following)
    assert (gradient.abs() > 0).all()
    repeated = state(None)
    assert torch.equal(state(batch.actions[:, -1]), repeated)
    assert torch.equal(state(torch.full_like(batch.following, torch.nan)), repeated)
    assert not torch.allclose(state(batch.following), repeated)
    # of a clip whose recording ends alone the last are repeated
    one = batch.following.clone()
    one[1] = torch.nan
    assert torch.equal(state(one), torch.stack([state(batch.following)[0], repeated[1]]))
    found = [
        model.predict(replace(batch, following=x), sampler=sampler, generator=seeded()).latents
        for x in (batch.following, None)
    ]
    assert not torch.equal(*found)


@MODELS
def test_training_is_told_what_follows_the_clip(make: Any, sampler: Any) -> None:
    model = model_of(make, non_mlm=0.0)
    batch = batch_of(model, 6).window(0, 5, 5)
    following = batch.following.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.loss(replace(batch, following=following))[0], following)
    assert (gradient.abs() > 0).all()
    ahead = replace(batch, actions=batch.actions_ahead)  # actions of a step more say the same
    torch.manual_seed(0)
    one = model.loss(batch)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(model.loss(replace(ahead, following=None))[0], one)


@MODELS
def test_a_clip_that_is_told_no_actions_is_not_told_what_follows(make: Any, sampler: Any) -> None:
    model = model_of(make, action_drop=1.0)
    batch = batch_of(model, 6).window(0, 5, 5)
    following = batch.following.clone().requires_grad_()
    loss = model.loss(replace(batch, following=following))[0]
    (gradient,) = torch.autograd.grad(loss, following, allow_unused=True)
    assert gradient is None or not gradient.any()
    assert loss.isfinite()


@MODELS
def test_actions_are_predicted_without_those_that_follow_them(make: Any, sampler: Any) -> None:
    model = model_of(make, action_loss=0.5)
    batch = batch_of(model, 6).window(0, 4, 5)
    found = [model.predict_actions(replace(batch, following=x), generator=seeded()) for x in (batch.following, None)]
    assert torch.equal(*found)


@MODELS
def test_each_true_step_is_told_what_follows_it(make: Any, sampler: Any) -> None:
    """Teacher forcing: the last step has its following actions from the batch, the others from the next step."""
    model = model_of(make)
    whole = batch_of(model, 9)
    one, other = (
        temporally_teacher_forced(model, batch, 3, sampler=sampler, generator=seeded()).latents
        for batch in (whole.window(0, 8, 8), whole)
    )
    torch.testing.assert_close(one, other[:, :5])


def test_actions_that_do_not_fit_are_refused() -> None:
    model = model_of(build)
    batch = batch_of(model, 5).window(0, 3, 4)
    with pytest.raises(HwmError, match=r"those of one step, \(2, 2, 3\), got shape \(2, 1, 2, 3\)"):
        model.predict(replace(batch, following=batch.following[:, None]))
    with pytest.raises(HwmError, match="4 steps take the actions of 5, got 4"):
        model.observe(model.tokens(batch.latents), batch.actions, "arm", 1)
