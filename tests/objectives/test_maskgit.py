import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwm.objectives import maskgit
from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import HwmError, split_digits


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_corruption_has_the_rate_asked_for():
    ids = torch.zeros(4, 50, 50, dtype=torch.long)
    changed = maskgit.corrupt(ids, torch.tensor(0.3), 1000, seeded()) != ids
    assert abs(changed.float().mean() - 0.3 * 0.999) < 0.01
    assert not maskgit.corrupt(ids, torch.tensor(0.0), 1000, seeded()).any()


def test_ids_of_one_cell_are_corrupted_together():
    ids = torch.zeros(2, 4, 100, 3, dtype=torch.long)
    changed = maskgit.corrupt(ids, torch.tensor(0.5), 10**9, seeded()) != ids
    assert torch.equal(changed.any(-1), changed.all(-1))


def test_masked_share_is_two_over_pi():
    _, masked = maskgit.mask_future(torch.zeros(2000, 1, 64, dtype=torch.long), 9, non_mlm=0.0, generator=seeded())
    assert abs(masked.float().mean() - 2 / math.pi) < 0.02


def test_every_trained_step_has_a_masked_cell():
    masked = maskgit.cosine_mask(torch.zeros(50, 3), 16, seeded())
    assert (masked.sum(-1) == 1).all()


def test_whole_masks_have_their_share():
    ids = torch.zeros(2000, 1, 64, dtype=torch.long)
    _, masked = maskgit.mask_future(ids, 9, non_mlm=0.0, fully_masked=1.0, generator=seeded())
    assert masked.all()


def test_the_autoregressive_mode_shows_early_steps_whole_and_corrupts_late_ones():
    ids = torch.zeros(3000, 3, 64, dtype=torch.long)
    visible, masked = maskgit.mask_future(ids, 10**6, non_mlm=1.0, generator=seeded())
    untouched = ~masked.any(-1)
    first = untouched.sum(1)
    assert (first.bincount(minlength=3) / 3000 - 1 / 3).abs().max() < 0.04
    assert not visible[untouched].any()
    # in the first masked step a token survives with probability c ~ U(0.25, 1), mean 0.625; c shrinks by 0.95 a step
    wrong = (visible != 0).float().mean(-1)
    assert abs(wrong[first == 0][:, 0].mean() - 0.375) < 0.02
    assert abs(wrong[first == 0][:, 1].mean() - (1 - 0.625 * 0.95)) < 0.02


def test_masks_follow_the_seed():
    ids = torch.randint(50, (4, 2, 16))
    one, two, other = (maskgit.mask_future(ids, 50, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[1], other[1])


def test_counts_are_those_of_the_cosine_schedule():
    assert maskgit.masked_counts(1, 1024) == (0,)
    assert maskgit.masked_counts(2, 1024) == (725, 0)
    assert maskgit.masked_counts(4, 1024) == (947, 725, 392, 0)
    assert MaskGITSampler(steps=4).counts(1024) == (947, 725, 392, 0)


@pytest.mark.parametrize(("steps", "cells"), [(16, 16), (16, 20), (100, 7), (3, 4)])
def test_every_look_settles_something(steps, cells):
    counts = maskgit.masked_counts(steps, cells)
    assert len(counts) == min(steps, cells)
    assert all(a > b for a, b in pairwise((cells, *counts)))


def test_settled_cells_stay_settled_and_the_least_sure_are_masked_again():
    score, masked = torch.tensor([[0.1, 0.9, 0.5, 0.2]]), torch.tensor([[False, True, True, True]])
    assert maskgit.remask(score, masked, 2).tolist() == [[False, False, True, True]]


def test_at_temperature_zero_the_likeliest_is_picked():
    logits = torch.randn(5, 7)
    ids, logp = maskgit.pick(logits, MaskGITSampler(temperature=0.0))
    assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(logp, logits.log_softmax(-1).amax(-1))


def test_temperature_is_that_of_the_distribution_drawn_from():
    logits, entropy = torch.tensor([2.0, 1.0, 0.0, -1.0]), []
    for temperature in (0.5, 1.0, 4.0):
        ids, _ = maskgit.pick(logits.expand(40_000, 4), MaskGITSampler(temperature=temperature), seeded())
        share = ids.bincount(minlength=4) / 40_000
        torch.testing.assert_close(share, (logits / temperature).softmax(-1), atol=0.01, rtol=0)
        entropy.append(-(share * share.clamp(min=1e-9).log()).sum())
    assert entropy[0] < entropy[1] < entropy[2]


def test_the_mean_of_an_ordered_digit_is_picked():
    logits = torch.tensor([[0.45, 1e-9, 1e-9, 0.55], [0.1, 0.8, 0.1, 1e-9]]).log()
    ids, logp = maskgit.pick(logits, MaskGITSampler(pick="mean"))
    assert ids.tolist() == [2, 1]  # mean 1.65, where no mass is; mean 1
    torch.testing.assert_close(logp, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0])


def test_confidence_keeps_the_likeliest_and_random_does_not_care():
    logp = torch.linspace(-5, 0, 1000)
    assert torch.equal(MaskGITSampler(order="confidence").keep_score(logp), logp)
    score = MaskGITSampler(order="random").keep_score(logp, seeded())
    assert abs(torch.corrcoef(torch.stack([score, logp]))[0, 1]) < 0.1


@pytest.mark.parametrize("to_come", [0.25, 0.75])
def test_noise_on_the_confidence_is_gumbels_and_falls_with_the_decoding_steps(to_come):
    logp = torch.linspace(-4, 0, 64).view(2, 1, 32)
    score = MaskGITSampler(steps=4, choice_temperature=4.5).keep_score(logp, seeded(), to_come=to_come)
    u = torch.rand(2, 1, 32, generator=seeded()).double()
    expected = logp - 4.5 * to_come * (-u.log()).log()
    torch.testing.assert_close(score, expected.float(), atol=1e-4, rtol=1e-4)
    assert not torch.equal(score.argsort(-1), logp.argsort(-1))


def test_the_more_likely_of_two_cells_is_kept_as_often_as_gumbel_noise_says():
    """Of log-probabilities a and b under Gumbel noise of scale s, a wins with probability sigmoid((a - b) / s)."""
    logp = torch.tensor([-1.0, -2.0]).expand(20_000, 2)
    score = MaskGITSampler(choice_temperature=3.0).keep_score(logp, seeded(), to_come=0.5)
    share = (score[:, 0] > score[:, 1]).float().mean()
    assert abs(share - torch.tensor(1 / 1.5).sigmoid()) < 0.01


def test_no_noise_is_drawn_at_the_last_step_or_at_temperature_zero():
    logp = torch.randn(2, 1, 8)
    for sampler, to_come in ((MaskGITSampler(choice_temperature=4.5), 0.0), (MaskGITSampler(), 0.75)):
        generator = seeded()
        assert torch.equal(sampler.keep_score(logp, generator, to_come=to_come), logp)
        assert torch.equal(generator.get_state(), seeded().get_state())
    assert torch.equal(MaskGITSampler(choice_temperature=4.5).keep_score(logp), logp)  # of the last step


@pytest.mark.parametrize("wrong", [dict(choice_temperature=-1.0), dict(choice_temperature=math.inf)])
def test_noise_of_no_sensible_temperature_is_refused(wrong):
    with pytest.raises(HwmError, match="choice_temperature"):
        MaskGITSampler(**wrong)


def test_noise_on_a_confidence_that_nobody_heeds_is_refused():
    with pytest.raises(HwmError, match="order"):
        MaskGITSampler(order="random", choice_temperature=4.5)


@given(st.integers(2, 20), st.integers(1, 25), st.sampled_from([0.0, 1.0]), st.integers(0, 2**31))
def test_which_steps_are_corrupted_and_masked(steps: int, prompt: int, non_mlm: float, seed: int) -> None:
    generator = seeded(seed)
    rate, ratio = maskgit.clip_rates(32, steps, max_corrupt=0.2, non_mlm=non_mlm, prompt=prompt, generator=generator)
    late = ratio > 0
    assert rate.min() >= 0
    assert rate.max() <= 1
    assert not late[:, 0].any()
    assert late[:, -1].all()
    first = late.int().argmax(1, keepdim=True)
    assert torch.equal(late, torch.arange(steps) >= first), "from its first masked step on, every step is masked"
    before = rate.gather(1, first - 1)
    assert (rate[~late] <= 0.2).all()
    if non_mlm:
        assert (first >= min(prompt, steps - 1)).all()
        after = torch.where(late, rate, before)
        assert (after.diff(dim=1) >= -1e-6).all(), "later steps are more corrupt"
    else:
        assert (first == 1).all()
        torch.testing.assert_close(rate, before.expand_as(rate))


def test_how_much_is_corrupted_and_masked() -> None:
    generator = seeded()
    rate, ratio = maskgit.clip_rates(40_000, 16, generator=generator)  # the prompt has 8 steps
    # a masked step has a mean ratio of 2 / pi; 15 steps of 16 are, or 8 to 1 of them, with equal chances
    assert ratio.mean().item() == pytest.approx(2 / math.pi * (15 + 4.5) / 32, abs=5e-3)
    assert rate[:, 0].mean().item() == pytest.approx(0.1, abs=2e-3)
    # the last step is kept at a mean rate of 0.9 without drift, and 0.9 * 0.625 * 0.95^n, n = 1..8, with it
    drift = sum(0.95**n for n in range(1, 9)) / 8 * 0.625
    assert 1 - rate[:, -1].mean().item() == pytest.approx(0.9 * (1 + drift) / 2, abs=5e-3)
    assert maskgit.clip_rates(100, 16, fully_masked=1.0)[1][:, 8:].eq(1).any()


def test_digits_are_corrupted_each_by_itself() -> None:
    ids = torch.full((1, 2, 40_000), 7 + 3 * 512)
    rate = torch.tensor([[0.0, 0.3]])
    out = maskgit.corrupt_digits(ids, rate, (512, 512), seeded())
    assert torch.equal(out[:, 0], ids[:, 0])
    hit = split_digits(out[0, 1], (512, 512)) != torch.tensor([7, 3])
    chance = 0.3 * 511 / 512
    assert hit.float().mean(0).tolist() == pytest.approx([chance, chance], abs=0.01)
    assert hit.all(-1).float().mean().item() == pytest.approx(chance**2, abs=0.01)
    assert 0 <= out.min() <= out.max() < 512**2
    drawn = maskgit.corrupt_digits(ids, torch.ones(1, 2), (512, 512), seeded())
    assert split_digits(drawn, (512, 512)).float().mean((0, 1, 2)).tolist() == pytest.approx([255.5] * 2, abs=3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("at_once", [2**25, 40])
def test_chunked_cross_entropy_equals_that_of_all_logits(smoothing, at_once, monkeypatch):
    monkeypatch.setattr(maskgit, "LOGITS_AT_ONCE", at_once)
    head, ids, masked = nn.Linear(8, 20), torch.randint(20, (2, 9)), torch.rand(2, 9, generator=seeded()) < 0.6
    h = torch.randn(2, 9, 8, requires_grad=True)
    naive = F.cross_entropy(head(h).movedim(-1, 1), ids, reduction="none")
    if smoothing:
        naive = (1 - smoothing) * naive - smoothing * head(h).log_softmax(-1).mean(-1)
    naive = naive[masked].mean()
    loss = maskgit.chunked_cross_entropy(h[masked], ids[masked], head, 20, smoothing)
    torch.testing.assert_close(loss, naive)
    wanted = torch.autograd.grad(naive, (h, head.weight, head.bias))
    torch.testing.assert_close(torch.autograd.grad(loss, (h, head.weight, head.bias)), wanted)


def test_chunked_cross_entropy_follows_autocast(monkeypatch):
    monkeypatch.setattr(maskgit, "LOGITS_AT_ONCE", 40)
    head, ids, h = nn.Linear(8, 20), torch.randint(20, (30,)), torch.randn(30, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = maskgit.chunked_cross_entropy(h, ids, head, 20)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(head(h), ids), atol=0.02, rtol=0)


@pytest.mark.parametrize(("prompt", "steps"), [(1, 4), (3, 6), (8, 3)])
def test_the_first_masked_step_after_a_prompt_is_any_of_those_left(prompt, steps):
    _, ratio = maskgit.clip_rates(6000, steps, non_mlm=1.0, prompt=prompt, generator=seeded())
    first, lowest = (ratio > 0).int().argmax(1), min(prompt, steps - 1)
    share = first.bincount(minlength=steps) / 6000
    torch.testing.assert_close(share[:lowest], torch.zeros(lowest))
    assert (share[lowest:] - 1 / (steps - lowest)).abs().max() < 0.03


def test_steps_of_a_clip_are_masked_whole_as_often_as_asked():
    _, ratio = maskgit.clip_rates(4000, 5, non_mlm=0.0, fully_masked=0.3, generator=seeded())
    assert not ratio[:, 0].any()
    assert abs((ratio[:, 1:] == 1).float().mean() - 0.3) < 0.02
    _, masked = maskgit.mask_future(
        torch.zeros(4000, 2, 64, dtype=torch.long), 9, non_mlm=0.0, fully_masked=0.3, generator=seeded()
    )
    assert abs(masked.all(-1).float().mean() - (0.3 + 0.7 * whole_by_chance(64))) < 0.02


def whole_by_chance(cells):
    """The mean over u of cos(pi/2 u)^n, about exp(-n pi^2 u^2 / 8)."""
    return (2 / (math.pi * cells)) ** 0.5


def test_by_default_half_of_the_samples_are_autoregressive_and_steps_are_masked_whole_by_chance_alone():
    ids = torch.zeros(6000, 2, 400, dtype=torch.long)
    visible, masked = maskgit.mask_future(ids, 10**6, generator=seeded())
    assert abs((visible != 0).any(-1).any(-1).float().mean() - 0.5) < 0.03
    assert abs(masked[:, 1].all(-1).float().mean() - whole_by_chance(400)) < 0.01


def test_what_is_kept_shrinks_from_step_to_step_after_the_first():
    ids = torch.zeros(1500, 4, 400, dtype=torch.long)
    visible, masked = maskgit.mask_future(ids, 10**6, non_mlm=1.0, generator=seeded())
    whole = masked.any(-1).all(-1)
    kept = (visible[whole] == 0).double().mean(-1)
    for step in range(4):
        assert kept[:, step].mean().item() == pytest.approx(0.625 * 0.95**step, abs=0.03)
    ratio = (kept[:, 1:] / kept[:, :-1]).mean().item()
    assert ratio == pytest.approx(0.95, abs=0.01)


def test_each_sample_has_a_rate_of_corruption_of_its_own():
    rate = maskgit.corruption_rate(5000, 0.4, torch.device("cpu"), seeded())
    assert rate.shape == (5000, 1, 1)
    assert rate.min() >= 0
    assert 0.39 < rate.max() <= 0.4
    assert abs(rate.mean() - 0.2) < 0.01


def test_cells_are_masked_with_the_probability_of_their_step():
    ratio = torch.tensor([[0.0, 0.3], [0.8, 1.0]])
    share = maskgit.cosine_mask(ratio, 20_000, seeded()).float().mean(-1)
    torch.testing.assert_close(share, ratio, atol=0.015, rtol=0)


@given(st.integers(1, 9), st.integers(0, 2**31))
def test_masked_again_are_so_many_of_the_masked_cells_of_each_step_and_the_least_sure(cells, seed):
    score = torch.rand(2, 3, cells, generator=seeded(seed))
    masked = torch.rand(2, 3, cells, generator=seeded(seed + 1)) < 0.7
    count = int(masked.sum(-1).min())
    again = maskgit.remask(score, masked, count)
    assert (again.sum(-1) == count).all()
    assert not (again & ~masked).any()
    settled = score.masked_fill(again | ~masked, 2).amin(-1)
    assert (score.masked_fill(~again, -1).amax(-1) <= settled).all()


@pytest.mark.parametrize("sampler", [MaskGITSampler(), MaskGITSampler(temperature=0.1), MaskGITSampler(pick="mean")])
def test_an_id_is_picked_of_each_distribution_with_its_log_probability(sampler):
    wanted = torch.randint(5, (2, 3, 4), generator=seeded())
    logits = F.one_hot(wanted, 5) * 30.0 + torch.rand(5)
    ids, logp = maskgit.pick(logits, sampler, seeded())
    assert torch.equal(ids, wanted)
    torch.testing.assert_close(logp, -F.cross_entropy(logits.movedim(-1, 1), wanted, reduction="none"))


@pytest.mark.parametrize(("at_once", "sizes"), [(400, [20]), (399, [19, 1]), (60, [3] * 6 + [2]), (7, [1] * 20)])
def test_no_more_logits_than_allowed_are_made_at_a_time(at_once, sizes, monkeypatch):
    monkeypatch.setattr(maskgit, "LOGITS_AT_ONCE", at_once)
    made, h = [], torch.randn(20, 4, requires_grad=True)

    def head(h):
        made.append(len(h))
        return F.pad(h, (0, 16))

    loss = maskgit.chunked_cross_entropy(h, torch.arange(20), head, 20)
    assert made == sizes
    loss.backward()
    assert len(made) == len(sizes) * (1 if len(sizes) == 1 else 2), "all at once they are kept, else made again"


def test_losses_of_one_masked_token_and_of_none():
    logits, ids = torch.randn(3, 7), torch.tensor([1, 2, 3])
    one, none = torch.tensor([False, True, False]), torch.zeros(3, dtype=torch.bool)
    wanted = F.cross_entropy(logits[1:2], ids[1:2])
    torch.testing.assert_close(maskgit.chunked_cross_entropy(logits[one], ids[one], nn.Identity(), 7), wanted)
    torch.testing.assert_close(maskgit.digit_cross_entropy((logits,), ids[:, None], one), wanted)
    assert maskgit.chunked_cross_entropy(logits[none], ids[none], nn.Identity(), 7) == 0
    assert maskgit.digit_cross_entropy((logits,), ids[:, None], none) == 0
    assert maskgit.digit_cross_entropy((logits[none],), ids[none, None]) == 0


def test_samples_draw_their_own_rates():
    rate, ratio = maskgit.clip_rates(500, 6, non_mlm=0.0, generator=seeded())
    assert len(rate[:, 0].unique()) > 490
    assert len(ratio[:, 3].unique()) > 490
    rate, ratio = maskgit.clip_rates(500, 6, non_mlm=1.0, prompt=1, max_corrupt=0.0, generator=seeded())
    kept = (1 - rate)[(ratio[:, 1] > 0)]
    assert len(kept[:, 1].unique()) == len(kept)
    assert (kept[:, 5] / kept[:, 4]).std() > 0.02  # of U(0.9, 1) it is 0.029
    ids = torch.zeros(200, 2, 4000, dtype=torch.long)
    visible, masked = maskgit.mask_future(ids, 10**6, non_mlm=1.0, generator=seeded())
    kept = (visible[masked.any(-1).all(-1)] == 0).double().mean(-1)
    assert kept[:, 0].std() > 0.15  # of U(0.25, 1) it is 0.22
    assert (kept[:, 1] / kept[:, 0]).std() > 0.024


def test_a_digit_moves_by_one_and_at_an_end_inward() -> None:
    levels, ids = (2, 3, 5), torch.arange(30).repeat(4, 1, 1)
    digits = split_digits(ids, levels)
    moved = split_digits(maskgit.move_digits(ids, torch.tensor([1.0, 1.0, 0.0, 0.5]), levels), levels)
    assert ((moved - digits)[:2].abs() == 1).all()
    assert (moved >= 0).all()
    assert (moved < torch.tensor(levels)).all()
    assert torch.equal(moved[2], digits[2])
    assert ((moved - digits)[3] != 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    inside = (digits[:2, ..., 2] > 0) & (digits[:2, ..., 2] < 4)
    assert ((moved - digits)[:2, ..., 2][inside] == 1).float().mean().item() == pytest.approx(0.5, abs=0.3)
