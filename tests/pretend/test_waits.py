"""How often the host waits for a card that is not there, and what it sends: never in a step, and little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from hwm.config import registered
from hwm.errors import HwmError
from hwm.types import Batch, DataSpec, LatentSpec, check_ids
from tests.models.test_registry import clip, window
from tests.models.toys import toy_batch
from tests.pretend.device import pretending
from tests.pretend.tensors import Card
from tests.pretend.test_families import CASES, on
from tests.tokenizers.test_cosmos_training import KINDS

UPLOADS = {
    "genie": 2, "hma_continuous": 2, "hma_discrete": 2, "masked_hwm": 3, "masked_hwm_shared": 3,
    "genie, narrow": 3, "hma_continuous, actions": 5, "hma_discrete, actions": 5, "masked_hwm, digits": 2,
}  # fmt: skip
"""What goes to the card in every step, by family, and where a variant sends others by that: masks, the places that they
name, how much is corrupted; and which actions are hidden, of the clip and of what follows."""


@pytest.fixture
def card() -> Iterator[Card]:
    with pretending("cuda") as found:
        yield found


@pytest.mark.parametrize("case", CASES)
def test_the_host_does_not_wait_in_a_step(card, case):
    model = on(card, case)
    batch = clip(model)
    batch.following = torch.zeros_like(batch.actions[:, 0])
    batch = batch.to(card.device)
    for _ in range(2):
        card.forget()  # what is made once
        torch.manual_seed(0)
        model(batch)[0].backward()
    assert not card.waits
    assert sum(card.uploads.values()) == UPLOADS.get(case, UPLOADS.get(model.name, 0)), card.uploads


@pytest.mark.parametrize("case", CASES)
def test_the_host_does_not_wait_in_a_step_on_own_rollouts(card, case):
    model = on(card, case)
    past, group = model.config.past, model.group
    batch = toy_batch(model.spec, past + model.config.horizon + group).to(card.device)
    for _ in range(2):
        card.forget()
        torch.manual_seed(0)
        model(model.with_own_steps(batch, group))[0].backward()
    assert not card.waits


@pytest.mark.parametrize("case", CASES)
def test_the_host_does_not_wait_in_a_prediction(card, case):
    model = on(card, case).eval()
    known = window(model).to(card.device)
    for _ in range(2):
        card.forget()
        model.predict(known, logits=True)
        if getattr(model.config, "action_loss", 0):
            model.predict_actions(known)
    assert not card.waits
    assert not card.uploads


@pytest.mark.parametrize("name", [*KINDS, "magvit2", "tiny", "tiny_continuous"])
def test_the_host_does_not_wait_for_a_tokenizer(card, name):
    config = KINDS[name] if name in KINDS else registered(name).tiny()
    model = config.build(DataSpec(LatentSpec((16, 32), channels=3), {})).train()
    frames = model.latent.frames(2)
    batch = Batch(torch.rand(2, frames, 3, 16, 32), torch.zeros(2, frames, 1, 1), "toy").to(card.device)
    model.to(card.device)
    for _ in range(4):  # an adversary begins after two, which it has to be told once
        card.forget()
        with suppress(HwmError):  # one is only converted, and never trained
            model(batch)[0].backward()
        model.decode(model.encode(batch.latents))
    assert not card.waits
    assert not card.uploads


def test_ids_of_no_vocabulary_stop_a_card(card):
    """It is told to look, and the host goes on; this one says at once what it found."""
    ids = torch.tensor([3, 60]).to(card.device)
    card.forget()
    check_ids(ids, 61)
    with pytest.raises(RuntimeError, match=r"token ids must be in 0\.\.59"):
        check_ids(ids, 60)
    assert not card.waits
