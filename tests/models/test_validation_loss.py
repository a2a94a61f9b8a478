"""Validation losses compare runs: they are the same whatever a config adds for training alone."""

from dataclasses import fields, replace

import pytest
import torch

from hwm.config import registered
from hwm.errors import HwmError
from hwm.models.base import WorldModel
from tests.models.test_registry import FAMILIES, opened
from tests.models.toys import toy_batch, toy_spec

TRAINING = {
    "max_corrupt": 0.9, "non_mlm": 1.0, "fully_masked": 0.9, "label_smoothing": 0.3, "own_past": 1.0, "mlp_drop": 0.5,
    "condition_dropout": 0.9, "any_horizon": True, "logit_normal_mean": -2.0, "self_consistency": 0.9,
    "action_drop": 0.9, "action_loss": 0.5, "context_noise": (0.5, 2.0), "short_past": 0.9, "dropped_actions": 0.9,
    "sigma_mean": 1.0, "sigma_std": 0.3, "digit_moves": 0.9,
}  # fmt: skip
"""Fields that change training alone, and values for them that no config of the tests has."""
ROOM = {
    "masked_hwm": {"parallel": True},
    "flow_hwm": {"objective": "shortcut", "context_noise": (0.1, 0.2)},
    "flow_hwm_uvit": {"horizon": 2, "context_noise": (0.1, 0.2)},
    "hma_continuous": {"context_noise": (0.1, 0.2)},
}
"""What some of them need to have an effect."""


def spec_of(name):
    return toy_spec(channels=4) if name in ("diffusion", "flow_hwm", "flow_hwm_uvit", "hma_continuous") else toy_spec()


def with_weights_of(config, name, weights=None) -> WorldModel:
    torch.manual_seed(0)
    model = opened(config.build(spec_of(name)))
    if weights is not None:
        found = model.load_state_dict(weights, strict=False)
        assert not found.unexpected_keys
        assert all(key.startswith("action_") for key in found.missing_keys), "those that guess actions"
    return model


def loss_of(model, call, training) -> float:
    torch.manual_seed(1)
    batch = toy_batch(model.spec, model.config.past + model.config.horizon, batch=6)
    with torch.no_grad():
        return getattr(model.train(training), call)(batch)[0].item()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_training_adds_is_not_in_the_validation_loss(name):
    plain = replace(registered(name).tiny(), **ROOM.get(name, {}))
    base = with_weights_of(plain, name)
    weights, here = base.state_dict(), {f.name for f in fields(plain)} & TRAINING.keys()
    tried = 0
    for field in sorted(here):
        try:
            other = with_weights_of(replace(plain, **{field: TRAINING[field]}), name, weights)
        except HwmError:
            assert field == "own_past", "which some families refuse"
            continue
        assert loss_of(other, "validation_loss", False) == loss_of(base, "validation_loss", False), field
        tried += loss_of(other, "loss", True) != loss_of(base, "loss", True)
        assert getattr(other.config, field) == TRAINING[field], "afterwards it trains as before"
    assert tried >= min(2, len(here)), "the fields do have an effect on training"


def test_guesses_of_actions_are_validated_beside_the_loss():
    for name in ("hma_discrete", "hma_continuous"):
        config = replace(registered(name).tiny(), action_loss=0.5)
        metrics = with_weights_of(config, name).eval().validation_loss(toy_batch(spec_of(name), 5))[1]
        assert metrics["action_error"] > 0
        assert (
            "action_error"
            not in (with_weights_of(registered(name).tiny(), name).validation_loss(toy_batch(spec_of(name), 5))[1])
        )


def test_a_failing_loss_leaves_the_config_as_it_was():
    model = with_weights_of(replace(registered("next_block").tiny(), label_smoothing=0.3), "next_block")
    with pytest.raises(HwmError):
        model.validation_loss(toy_batch(model.spec, 2))
    assert model.config.label_smoothing == 0.3
