"""Latent specs, batches, predictions, digits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwm.errors import HwmError
from hwm.types import ActionSpec, Batch, LatentSpec, Prediction, check_ids, join_digits, split_digits


def test_a_spec_is_discrete_or_continuous() -> None:
    with pytest.raises(HwmError, match="either discrete"):
        LatentSpec((2, 2))
    with pytest.raises(HwmError, match="either discrete"):
        LatentSpec((2, 2), vocab=4, channels=4)
    assert LatentSpec((3, 5), channels=2).cells == 15


def test_levels_multiply_to_the_vocabulary() -> None:
    assert LatentSpec((2, 2), 64_000, levels=(8, 8, 8, 5, 5, 5)).levels == (8, 8, 8, 5, 5, 5)
    with pytest.raises(HwmError, match="multiply to 24, not to the vocabulary 25"):
        LatentSpec((2, 2), 25, levels=(4, 6))


@given(st.integers(1, 16), st.integers(1, 500))
def test_steps_and_frames_are_inverse(stride: int, steps: int) -> None:
    spec = LatentSpec((1, 1), 2, stride=stride)
    frames = spec.frames(steps)
    assert spec.steps(frames) == steps
    assert spec.steps(frames + stride - 1) == steps
    assert spec.steps(frames + stride) == steps + 1


def test_a_cosmos_clip_of_17_frames_is_3_steps() -> None:
    spec = LatentSpec((32, 32), 64_000, stride=8)
    assert spec.steps(17) == 3
    assert spec.frames(3) == 17
    assert spec.steps(1) == spec.frames(1) == 1


def test_action_statistics_have_one_entry_a_dimension() -> None:
    assert ActionSpec(3, ("a", "b"), (0.0, 0.0), (1.0, 1.0)).dim == 2
    with pytest.raises(HwmError, match="2 action names, 1 means"):
        ActionSpec(3, ("a", "b"), (0.0,), (1.0, 1.0))


def test_batch_windows_and_missing_steps() -> None:
    batch = Batch(torch.arange(2 * 5).view(2, 5, 1, 1), torch.arange(2 * 8.0).view(2, 8, 1, 1), "toy")
    assert batch.missing == 3
    window = batch.window(1, 4, 6)
    assert window.missing == 2
    assert window.latents[:, :, 0, 0].tolist() == [[1, 2, 3], [6, 7, 8]]
    assert window.actions[0, :, 0, 0].tolist() == [1, 2, 3, 4, 5]
    moved = batch.to("cpu")
    assert moved.embodiment == "toy"
    assert torch.equal(moved.latents, batch.latents)


def test_actions_that_follow_come_after_those_of_a_window() -> None:
    actions = torch.arange(2 * 8.0).view(2, 8, 1, 1)
    batch = Batch(torch.zeros(2, 5, 1, 1), actions, "toy", torch.tensor([[[100.0]], [[torch.nan]]]))
    for x in (batch.to("cpu"), batch.window(0, 5, 8), batch.window(2, 5, 9)):
        assert x.missing == batch.missing - (x.latents.shape[1] - 5) - (8 - x.actions.shape[1])
        assert x.actions_ahead[:, -1].flatten().tolist() == [100, 15], "nothing is recorded of the second: repeated"
        assert torch.equal(x.actions_ahead[:, :-1], x.actions)
    inside = batch.window(1, 4, 6)
    assert (inside.missing, inside.actions.shape[1]) == (2, 5)
    assert inside.actions_ahead[:, -1].flatten().tolist() == [6, 14]
    assert Batch(batch.latents, actions, "toy").actions_ahead[:, -1].flatten().tolist() == [7, 15]
    assert Batch(batch.latents, actions, "toy").to("cpu").following is None


def test_cross_entropy_of_whole_ids() -> None:
    target = torch.randint(7, (2, 3, 2, 2))
    uniform = Prediction(target, torch.zeros(2, 3, 2, 2, 7))
    assert torch.allclose(uniform.cross_entropy(target), torch.full((3,), math.log(7)))
    certain = Prediction(target, torch.nn.functional.one_hot(target, 7) * 100.0)
    assert torch.allclose(certain.cross_entropy(target), torch.zeros(3))
    one_step_wrong = target.clone()
    one_step_wrong[:, 1] = (target[:, 1] + 1) % 7
    assert (certain.cross_entropy(one_step_wrong) > 50).tolist() == [False, True, False]
    assert Prediction(target).cross_entropy(target) is None


def test_cross_entropy_of_digits_adds_up() -> None:
    levels = (4, 3)
    logits = torch.randn(2, 3, 2, 2, sum(levels))
    target = torch.randint(12, (2, 3, 2, 2))
    low, high = logits[..., :4].log_softmax(-1), logits[..., 4:].log_softmax(-1)
    whole = (high[..., :, None] + low[..., None, :]).flatten(-2)  # id = low + 4 * high
    by_digits = Prediction(target, logits, levels).cross_entropy(target)
    assert torch.allclose(by_digits, Prediction(target, whole).cross_entropy(target), atol=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
def test_digits_round_trip(levels: list[int], data: st.DataObject) -> None:
    size = math.prod(levels)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    digits = split_digits(ids, tuple(levels))
    assert digits.shape == (len(ids), len(levels))
    assert (digits >= 0).all()
    assert (digits < torch.tensor(levels)).all()
    assert torch.equal(join_digits(digits, tuple(levels)), ids)


def test_digits_are_least_significant_first() -> None:
    assert split_digits(torch.tensor(1 + 2 * 4 + 1 * 12), (4, 3, 2)).tolist() == [1, 2, 1]


def test_ids_are_looked_at_on_the_host_alone() -> None:
    """The meta device has no values that could be asked for."""
    for ids in (
        torch.tensor([[0, 59]]),
        torch.zeros(0, 2, dtype=torch.long),
        torch.tensor([[0, 59]], dtype=torch.int32),
    ):
        check_ids(ids, 60)
    for low, high in ((-1, 3), (0, 60)):
        ids = torch.tensor([[1, low], [high, 2]])
        with pytest.raises(HwmError, match=rf"token ids must be in 0\.\.59, these reach from {low} to {high}"):
            check_ids(ids, 60)
        check_ids(ids.to("meta"), 60)
