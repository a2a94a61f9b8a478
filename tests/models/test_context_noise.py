"""Noise on known frames: off it is not there at all, on it changes what is shown, and the level told matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hwm.config import registered
from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.nn.noise_level import ContextLevel
from hwm.objectives import context
from tests.models.test_registry import build, opened
from tests.models.toys import toy_batch, toy_spec

CONTINUOUS = ("flow_hwm", "flow_hwm_uvit", "hma_continuous")
CASES = {name: (name, {}) for name in CONTINUOUS} | {
    "split, settled": ("flow_hwm", {"variant": "split", "clean_context": True, "direct": True}),
    "shortcut": ("flow_hwm", {"objective": "shortcut", "self_consistency": 0.5}),
}


def of(case: str, levels: tuple[float, float]) -> WorldModel:
    name, changes = CASES[case]
    torch.manual_seed(0)
    return opened(replace(registered(name).tiny(), **changes, context_noise=levels).build(toy_spec(channels=4)))


def loss_of(model: WorldModel) -> torch.Tensor:
    torch.manual_seed(1)
    steps = model.config.past + model.config.horizon
    return model.loss(toy_batch(model.spec, steps, batch=4))[0]


@pytest.mark.parametrize("case", CASES)
def test_off_there_are_no_weights_for_it_and_no_draws(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = of(case, (0.0, 0.0))
    assert not [key for key in model.state_dict() if "context" in key]
    monkeypatch.setattr(context, "noised", None)
    monkeypatch.setattr(ContextLevel, "forward", None)
    assert loss_of(model).isfinite()


@pytest.mark.parametrize("case", CASES)
def test_the_noise_and_the_level_told_change_the_loss(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = of(case, (0.1, 0.9)), []
    plain = ContextLevel.forward

    def noting(self: Any, level_B: torch.Tensor) -> torch.Tensor:
        told.append(level_B)
        return plain(self, level_B)

    monkeypatch.setattr(ContextLevel, "forward", noting)
    loss = loss_of(model)
    assert all(0.1 <= level <= 0.9 for level in told[0].tolist())
    loss.backward()
    assert model.context_level.read.weight.grad.any(), "the level is conditioned on"
    monkeypatch.setattr(ContextLevel, "forward", lambda self, level_B: plain(self, level_B * 0))
    assert loss_of(model) != loss, "the level told matters"
    monkeypatch.setattr(ContextLevel, "forward", lambda self, level_B: plain(self, told[0]))
    monkeypatch.setattr("hwm.models.flow.noised", lambda x, levels: (x, None))
    monkeypatch.setattr("hwm.models.hma_continuous.noised", lambda x, levels: (x, None))
    assert loss_of(model) != loss, "and so does the noise"


@pytest.mark.parametrize("case", CASES)
def test_samples_are_of_clean_frames_and_told_so(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = of(case, (0.1, 0.9)).eval(), []
    plain = ContextLevel.forward

    def noting(self: Any, level_B: torch.Tensor) -> torch.Tensor:
        told.append(level_B)
        return plain(self, level_B)

    monkeypatch.setattr(ContextLevel, "forward", noting)
    past, horizon = model.config.past, model.config.horizon
    batch = toy_batch(model.spec, past + horizon).window(0, past, past + horizon)
    made = [model.predict(batch, generator=torch.Generator().manual_seed(0)).latents for _ in range(2)]
    assert torch.equal(*made)
    assert told
    assert not any(level_B.any() for level_B in told)


def test_levels_are_as_likely_at_every_scale_and_are_those_of_the_noise() -> None:
    known = torch.zeros(4000, 3, 50)
    noise, level_B = context.noised(known, (0.01, 1.0))
    assert 0.01 <= level_B.min() < 0.0102
    assert 0.98 < level_B.max() <= 1
    for bound, share in ((0.0316, 0.25), (0.1, 0.5), (0.316, 0.75)):
        assert (level_B < bound).float().mean().item() == pytest.approx(share, abs=0.03)
    ratio_B = noise.flatten(1).std(1) / level_B
    assert ratio_B.mean().item() == pytest.approx(1, abs=0.01)
    assert 0.75 < ratio_B.min() < ratio_B.max() < 1.25
    clean, none_B = context.noised(known + 1, (0.0, 0.0))
    assert torch.equal(clean, known + 1)
    assert not none_B.any()


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("levels", [(0.0, 0.5), (0.5, 0.1), (-1.0, 1.0)])
def test_levels_that_cannot_be_are_refused(name: str, levels: tuple[float, float]) -> None:
    with pytest.raises(HwmError, match="context_noise"):
        replace(registered(name).tiny(), context_noise=levels).build(toy_spec(channels=4))


# ---------------------------------------------------------------------- ids
MASKED = ("genie", "hma_discrete", "masked_hwm", "masked_hwm_shared")


@pytest.mark.parametrize("name", MASKED)
def test_digits_of_what_is_shown_are_moved_by_one_at_most(name: str) -> None:
    base = build(name)
    model = replace(base.config, max_corrupt=0.0, non_mlm=0.0, digit_moves=1.0).build(base.spec)
    model.load_state_dict(base.state_dict())
    steps = model.config.past + model.config.horizon
    ids = model.tokens(toy_batch(model.spec, steps, batch=8).latents)
    past, truth = model.corrupt_and_mask(ids)[0], model.split(ids)[0]
    levels = torch.tensor(model.spec.latent.levels)
    changes = [(past // base % n) - (truth // base % n) for base, n in zip((1, 3, 12), levels, strict=True)]
    assert max(c.abs().max() for c in changes) == 1
    share_B = torch.stack(changes).bool().transpose(0, 1).flatten(1).float().mean(1)
    assert share_B.min() < 0.3 < 0.6 < share_B.max(), "each clip has a rate of its own"
    torch.manual_seed(1)
    moved = model.loss(toy_batch(model.spec, steps))[0]
    torch.manual_seed(1)
    assert moved != replace_moves(model, 0.0).loss(toy_batch(model.spec, steps))[0]


def replace_moves(model: WorldModel, rate: float) -> WorldModel:
    model.config = replace(model.config, digit_moves=rate)
    return model


def test_moves_need_digits() -> None:
    spec = toy_spec()
    spec = replace(spec, latent=replace(spec.latent, levels=()))
    with pytest.raises(HwmError, match=r"digit_moves=0.5: ids of 60 without levels have no digits"):
        replace(registered("masked_hwm").tiny(), digit_moves=0.5).build(spec)
