from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.errors import HwmError
from hwm.evaluate.swaps import SWAPS, Bounds, distance, donors
from hwm.types import ActionSpec

SPEC = ActionSpec(3, ("A", "B"), (0.5, -1.0), (2.0, 0.0))


def smooth(seed: int, clips: int = 6, steps: int = 7) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(clips, steps * 3, 2, generator=g)).cumsum(1).unflatten(1, (steps, 3))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SWAPS)
@given(seed=st.integers(0, 10_000), prompt=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_context_is_untouched_and_the_seed_decides(name: str, seed: int, prompt: int) -> None:
    actions = smooth(seed)
    swapped = SWAPS[name](actions, prompt, SPEC, seeded(seed), None)
    assert swapped.shape == actions.shape
    assert torch.equal(swapped[:, :prompt], actions[:, :prompt])
    assert not torch.equal(swapped[:, prompt:], actions[:, prompt:])
    assert torch.equal(swapped, SWAPS[name](actions, prompt, SPEC, seeded(seed), None))


@given(seed=st.integers(0, 10_000), prompt=st.integers(1, 6), bounded=st.booleans())
@settings(max_examples=60, deadline=None)
def test_jump_free_never_jumps(seed: int, prompt: int, bounded: bool) -> None:
    """Every change of command is one that some clip made, or, where it is clipped, a smaller one."""
    actions = smooth(seed)
    bounds = Bounds(actions.amin((0, 1, 2)), actions.amax((0, 1, 2))) if bounded else None
    swapped = SWAPS["jump_free"](actions, prompt, SPEC, seeded(seed), bounds)
    change = swapped.flatten(1, 2).diff(dim=1)[:, prompt * 3 - 1 :]
    real = actions.flatten(1, 2).diff(dim=1)[:, prompt * 3 - 1 :]
    if bounded:
        assert (change.abs().amax((0, 1)) <= real.abs().amax((0, 1)) + 1e-5).all()
        assert (swapped >= bounds.low).all()
        assert (swapped <= bounds.high).all()
    else:
        matches = [(change[i][None] - real).abs().amax((1, 2)).argmin().item() for i in range(len(actions))]
        assert torch.allclose(change, real[matches], atol=1e-5)
        assert all(i != m for i, m in enumerate(matches))


def test_the_other_swaps_do_jump() -> None:
    actions = smooth(0) + 10 * torch.arange(6.0)[:, None, None, None]
    usual = actions.flatten(1, 2).diff(dim=1).abs().max()
    for name in ("other_clip", "random"):
        swapped = SWAPS[name](actions, 3, SPEC, seeded(0), None)
        assert (swapped.flatten(1, 2)[:, 9] - swapped.flatten(1, 2)[:, 8]).abs().max() > 3 * usual


def test_random_actions_follow_the_statistics() -> None:
    swapped = SWAPS["random"](torch.zeros(400, 5, 3, 2), 1, SPEC, seeded(0), None)[:, 1:]
    assert swapped[..., 0].mean().item() == pytest.approx(0.5, abs=0.1)
    assert swapped[..., 0].std().item() == pytest.approx(2.0, abs=0.1)
    assert (swapped[..., 1] == -1.0).all(), "a constant dimension stays constant"
    bounds = Bounds(torch.tensor([0.0, -2.0]), torch.tensor([1.0, 0.0]))
    clipped = SWAPS["random"](torch.zeros(40, 5, 3, 2), 1, SPEC, seeded(0), bounds)[:, 1:]
    assert clipped[..., 0].min() == 0
    assert clipped[..., 0].max() == 1


@given(clips=st.integers(2, 50), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_donors_are_others_and_each_gives_once(clips: int, seed: int) -> None:
    chosen = donors(clips, seeded(seed))
    assert (chosen != torch.arange(clips)).all()
    assert chosen.sort().values.tolist() == list(range(clips))


def test_errors_and_distance() -> None:
    with pytest.raises(HwmError, match="two clips or more: give more, or no swaps"):
        donors(1, seeded(0))
    with pytest.raises(HwmError, match="context"):
        SWAPS["random"](smooth(0), 0, SPEC, seeded(0), None)
    actions = smooth(0)
    assert distance(actions, actions, 3, SPEC).abs().max() == 0
    moved = actions.clone()
    moved[:, 3:, :, 0] += 4.0  # two standard deviations of the dimension that varies
    assert torch.allclose(distance(actions, moved, 3, SPEC), torch.full((6, 4), 2.0), atol=1e-5)
