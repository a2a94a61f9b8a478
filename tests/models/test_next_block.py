"""The next-block model: causality, actions, windows, one pass, pieces of logits, teacher forcing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hwm.data.onex.specs import onex_v2
from hwm.errors import HwmError
from hwm.evaluate.scenarios import SCENARIOS
from hwm.models import next_block
from hwm.models.next_block import NextBlock
from hwm.objectives.maskgit import MaskGITSampler
from hwm.recipes import find_recipe
from hwm.types import Batch
from tests.models.toys import LEVELS, toy_batch, toy_spec


def build(**changes: Any) -> NextBlock:
    torch.manual_seed(0)
    model: NextBlock = replace(NextBlock.tiny(), **changes).build(toy_spec())
    with torch.no_grad():  # far from the first weights, of which many are zero or small, so that all have a part
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


def logits(model: NextBlock, batch: Batch) -> Tensor:
    found = model.predict(batch, logits=True).logits
    assert found is not None
    return found


def asked(batch: Batch, past: int) -> Batch:
    return batch.window(0, past, batch.actions.shape[1])


@pytest.mark.parametrize("factorized", [False, True])
def test_a_step_depends_on_actions_up_to_its_own_and_on_none_after(factorized: bool) -> None:
    model = build(factorized=factorized)
    batch = asked(toy_batch(model.spec, 6), 3)
    before = logits(model, batch)
    for t in range(6):
        changed = batch.actions.clone()
        changed[:, t] += 1.0
        moved = (logits(model, replace(batch, actions=changed)) - before).abs().amax((0, 2, 3, 4))
        assert (moved[: max(0, t - 3)] == 0).all(), t
        assert (moved[max(0, t - 3) :] > 1e-4).all(), t


def test_every_known_step_has_a_part_in_every_missing_one() -> None:
    model = build()
    batch = asked(toy_batch(model.spec, 6), 3)
    before = logits(model, batch)
    for t in range(3):
        changed = batch.latents.clone()
        changed[:, t, 0, 0] = (changed[:, t, 0, 0] + 1) % 60
        moved = (logits(model, replace(batch, latents=changed)) - before).abs().amax((0, 2, 3, 4))
        assert (moved > 1e-4).all(), t


def test_no_known_step_sees_a_later_one() -> None:
    """What the missing steps read of the past is the same whatever is asked after them: fewer steps are a prefix."""
    model = build()
    batch = asked(toy_batch(model.spec, 6), 3)
    three = logits(model, batch)
    for missing in (1, 2):
        fewer = logits(model, batch.window(0, 3, 3 + missing))
        torch.testing.assert_close(fewer, three[:, :missing])


def test_the_gradient_of_the_loss_reaches_every_action() -> None:
    model = build()
    batch = toy_batch(model.spec, 6)
    batch.actions.requires_grad_()
    model.loss(batch)[0].backward()
    assert batch.actions.grad is not None
    # the standard deviation of the third dimension is zero, and normalising leaves it as it is
    assert (batch.actions.grad.abs().sum((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("factorized", [False, True])
def test_the_loss_is_the_cross_entropy_of_the_only_pass(factorized: bool) -> None:
    model = build(factorized=factorized)
    batch = toy_batch(model.spec, 6)
    loss, _ = model.loss(batch)
    forced = model.teacher_forced(batch, 3)
    expected = forced.cross_entropy(batch.latents[:, 3:])
    assert expected is not None
    torch.testing.assert_close(loss.detach(), expected.mean())
    shown = model.predict(asked(batch, 3), logits=True)
    assert shown.logits is not None
    assert forced.logits is not None
    assert torch.equal(forced.logits, shown.logits)
    assert torch.equal(forced.latents, shown.latents)
    best = model.head.join(tuple(part.argmax(-1) for part in model.head.draws(forced.logits)))
    assert torch.equal(forced.latents, best)
    assert forced.levels == (LEVELS if factorized else ())


def test_teacher_forcing_begins_every_block_from_the_truth() -> None:
    model = build()
    batch = toy_batch(model.spec, 8)
    forced = model.teacher_forced(batch, 3)
    assert forced.logits is not None
    assert forced.latents.shape[1] == 5
    second = logits(model, batch.window(3, 6, 8))
    assert torch.equal(forced.logits[:, 3:], second)
    changed = batch.latents.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 60  # the last step is asked for, and never shown
    again = model.teacher_forced(replace(batch, latents=changed), 3)
    assert again.logits is not None
    assert torch.equal(again.logits, forced.logits)


@pytest.mark.parametrize("factorized", [False, True])
def test_pieces_are_the_logits_and_within_bounds(factorized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(factorized=factorized)
    batch = asked(toy_batch(model.spec, 6), 3)
    whole = logits(model, batch).flatten(2, 3)
    width = whole.shape[-1]
    monkeypatch.setattr(next_block, "LOGITS_AT_ONCE", 2 * 3 * 5 * width)
    parts = list(model.logit_pieces(batch))
    assert [part.shape[2] for _, part in parts] == [5, 5, 5, 1]
    torch.testing.assert_close(torch.cat([part for _, part in parts], 2), whole)
    assert all(torch.equal(whole[:, :, cells], part) for cells, part in parts)
    # drawing in pieces is drawing all the same: the likeliest ids do not depend on them
    monkeypatch.setattr(next_block, "LOGITS_AT_ONCE", 1)
    torch.testing.assert_close(model.predict(batch, logits=True).logits, whole.unflatten(2, (4, 4)))


@given(st.integers(1, 3), st.integers(1, 3))
def test_windows_of_any_length_within_its_own(past: int, missing: int) -> None:
    model = build()
    found = model.predict(toy_batch(model.spec, past + missing).window(0, past, past + missing))
    assert found.latents.shape == (2, missing, 4, 4)


@pytest.mark.parametrize(("past", "missing"), [(4, 1), (3, 4), (3, 0)])
def test_other_windows_are_an_error(past: int, missing: int) -> None:
    model = build()
    with pytest.raises(HwmError, match="next_block predicts 1 to 3 steps from 1 to 3, not"):
        model.predict(toy_batch(model.spec, past + missing).window(0, past, past + missing))


def test_windows_begin_where_clips_do() -> None:
    model = build(clip_steps=3, window_stride=3)
    with pytest.raises(HwmError, match="from 1 to 3, in multiples of 3, not 1 from 2"):
        model.predict(toy_batch(model.spec, 3).window(0, 2, 3))
    with pytest.raises(HwmError, match="past=3, horizon=3 and window_stride=1 must be multiples of clip_steps=3"):
        build(clip_steps=3)
    assert (model.group, build().group) == (3, 1)
    full = toy_batch(model.spec, 11)
    assert [model.window_start(t) for t in (3, 6, 9)] == [0, 3, 6]
    assert model.rollout(full.window(0, 3, 11)).latents.shape[1] == 8


def test_a_rollout_is_block_after_block_each_from_the_one_before() -> None:
    model = build(window_stride=3)
    full = toy_batch(model.spec, 9)
    rolled = model.rollout(full.window(0, 3, 9)).latents
    first = model.predict(full.window(0, 3, 6)).latents
    second = model.predict(Batch(first, full.actions[:, 3:9], full.embodiment)).latents
    assert torch.equal(rolled, torch.cat([first, second], 1))


def test_samples_have_the_frequencies_of_their_distribution() -> None:
    model = build()
    one = asked(toy_batch(model.spec, 6, batch=1), 3)
    many = Batch(one.latents.expand(4000, -1, -1, -1), one.actions.expand(4000, -1, -1, -1), one.embodiment)
    drawn = model.predict(
        many, sampler=MaskGITSampler(steps=1, temperature=1.0), generator=torch.Generator().manual_seed(0)
    ).latents
    wanted = logits(model, one)[0, 2, 1, 1].softmax(-1)
    counted = torch.bincount(drawn[:, 2, 1, 1], minlength=60) / 4000
    assert (counted - wanted).abs().max() < 5 * (0.25 / 4000) ** 0.5


def test_one_generator_a_row_makes_rows_independent_of_each_other() -> None:
    model = build()
    batch = asked(toy_batch(model.spec, 6, batch=3), 3)
    sampler = MaskGITSampler(steps=1, temperature=1.0)

    def draw(rows: slice) -> Tensor:
        chosen = Batch(batch.latents[rows], batch.actions[rows], batch.embodiment)
        generators = [torch.Generator().manual_seed(i) for i in range(3)][rows]
        return model.predict(chosen, sampler=sampler, generator=generators).latents

    assert torch.equal(draw(slice(0, 3))[1:], draw(slice(1, 3)))


def test_samplers_of_masked_models_are_refused() -> None:
    model = build()
    batch = asked(toy_batch(model.spec, 6), 3)
    with pytest.raises(HwmError, match="next_block predicts in one decoding step; steps=2"):
        model.predict(batch, sampler=MaskGITSampler(steps=2))
    with pytest.raises(HwmError, match='pick="mean" is for factorised vocabularies'):
        model.predict(batch, sampler=MaskGITSampler(steps=1, pick="mean"))
    assert build(factorized=True).predict(batch, sampler=MaskGITSampler(steps=1, pick="mean")).latents.max() < 60


def test_data_it_cannot_read_is_an_error() -> None:
    with pytest.raises(HwmError, match="next_block needs discrete latents"):
        NextBlock.tiny().build(toy_spec(channels=4))
    plain = toy_spec()
    plain = replace(plain, latent=replace(plain.latent, levels=()))
    with pytest.raises(HwmError, match="factorized=True needs token ids made of digits"):
        replace(NextBlock.tiny(), factorized=True).build(plain)
    model = build()
    with pytest.raises(HwmError, match="predicts 1 to 3 steps from 1 to 3, not 3 from 4"):
        model.loss(toy_batch(model.spec, 7))


def test_corrupting_the_past_leaves_the_target_alone() -> None:
    model = build(max_corrupt=1.0).train()
    batch = toy_batch(model.spec, 6)
    seen: list[tuple[Tensor, Tensor]] = []
    loss = model.head.loss
    model.head.loss = lambda h, ids, smoothing: seen.append((h, ids)) or loss(h, ids, smoothing=smoothing)  # type: ignore[method-assign]
    losses = [model.loss(batch)[0].item() for _ in range(3)]
    assert len(set(losses)) == 3
    assert all(torch.equal(ids, batch.latents[:, 3:].flatten(2)) for _, ids in seen)


def test_the_recipe_is_of_the_size_it_says_and_reads_pairs_of_clips() -> None:
    made = find_recipe("next_block_base")()
    assert (made.model.dim, made.model.depth, made.model.heads) == (512, 24, 8)
    assert made.data.reader == "1x-v2.0-joined"
    assert made.data.steps == made.model.past + made.model.horizon == 6
    assert made.data.expects == onex_v2()
    with torch.device("meta"):
        model = made.model.build(onex_v2())
    block = 4 * 512**2 + 4 * 512**2 + 8 * 512**2 + 512 * 2 + (2048 + 512) + 3 * 2 * 512
    ends = 2 * 64_000 * 512 + 64_000 + 512 + 6 * 1024 * 512 + 2 * 512
    actions = 25 * 512 + 512 + 512 * 512 + 512 + 8 * 512
    assert sum(p.numel() for p in model.parameters()) == 24 * block + ends + actions


def test_every_scenario_of_the_truth_has_the_logits_of_the_only_pass() -> None:
    model = build(clip_steps=3, window_stride=3)
    batch = toy_batch(model.spec, 9)
    forced, stepwise = (
        SCENARIOS[name](model, batch, 3, logits=True) for name in ("fully_teacher_forced", "temporally_teacher_forced")
    )
    assert forced.logits is not None
    assert stepwise.logits is not None
    assert torch.equal(forced.logits, stepwise.logits)
