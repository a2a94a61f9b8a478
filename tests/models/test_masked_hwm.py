from itertools import pairwise

import pytest
import torch

from hwm.errors import HwmError
from hwm.models.masked_hwm import MaskedHWM
from hwm.objectives import maskgit
from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec, Prediction
from tests.models.toys import toy_batch, toy_spec

VARIANTS = ("base", "modality", "full", "split")
SMALL = dict(
    past=6,
    learned_steps=1,
    parallel=True,
    reach=1,
    copy_previous=True,
    action_deltas=True,
    ordered_actions=True,
    factorized=True,
    final_norm=True,
)


def tiny(**kw) -> MaskedHWM:
    config = MaskedHWM.Config(**{"dim": 32, "depth": 3, "heads": 2, "unshared_layers": 1, **kw})
    model = config.build(toy_spec()).eval()
    with torch.no_grad():
        for p in model.parameters():  # as initialised, positions and biases are zero, and little reaches far
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("base", 321_372_160), ("modality", 237_342_720), ("full", 195_328_000), ("split", 220_527_616)],
)
def test_sizes_are_those_of_the_paper(variant, parameters):
    actions = ActionSpec(8, tuple(f"joint {i}" for i in range(25)), (0.0,) * 25, (1.0,) * 25)
    spec = DataSpec(LatentSpec((32, 32), vocab=64_000, stride=8), {"humanoid": actions})
    with torch.device("meta"):
        model = MaskedHWM.Config(variant=variant, dim=512, depth=24, heads=8).build(spec)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert not list(model.buffers())


@pytest.mark.parametrize("kw", [{}, {"horizon": 2, "learned_steps": 4}, SMALL])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_depends_on_every_action_up_to_the_last(variant, kw):
    model = tiny(variant=variant, **kw).train()
    batch = toy_batch(model.spec, model.config.past + model.config.horizon)
    batch.actions.requires_grad_()
    model(batch)[0].backward()
    assert (batch.actions.grad[..., :2].abs().sum((0, 2, 3)) > 0).all()


def looked_at(model: MaskedHWM, past: torch.Tensor, future: torch.Tensor, masked: torch.Tensor, actions: torch.Tensor):
    return model.decoding_step(model.observe(past, actions, "arm", future.shape[1]), future, masked)


def changed(model: MaskedHWM, past, future, masked, actions, /, **new) -> list[bool]:
    """Which of the future steps' hidden states move when one of the inputs is exchanged."""
    old = looked_at(model, past, future, masked, actions)
    now = looked_at(
        model, new.get("past", past), new.get("future", future), new.get("masked", masked), new.get("actions", actions)
    )
    return [(a - b).abs().max() > 1e-5 for a, b in zip(old.unbind(1), now.unbind(1), strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_future_steps_see_the_past_and_what_came_before_them(variant):
    model = tiny(variant=variant, past=2, horizon=3, learned_steps=5, reach=1, copy_previous=True)
    ids = toy_batch(model.spec, 5).latents.flatten(2)
    actions = toy_batch(model.spec, 5).actions
    masked = torch.zeros(2, 3, 16, dtype=torch.bool)
    inputs = (ids[:, :2], ids[:, 2:], masked, actions)
    for step in range(3):
        future, later = ids[:, 2:].clone(), actions.clone()
        future[:, step, 5] = (future[:, step, 5] + 1) % 60
        later[:, 2 + step] += 1
        expected = [t >= step for t in range(3)]
        assert changed(model, *inputs, future=future) == expected
        assert changed(model, *inputs, actions=later) == expected
    for step in range(2):
        past = ids[:, :2].clone()
        past[:, step, 5] = (past[:, step, 5] + 1) % 60
        assert all(changed(model, *inputs, past=past))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parallel_targets_see_earlier_clean_steps_alone(variant):
    model = tiny(variant=variant, **SMALL)
    ids = toy_batch(model.spec, 5).latents.flatten(2)
    actions = toy_batch(model.spec, 5).actions
    inputs = (ids[:, :-1], ids[:, 1:], torch.zeros(2, 4, 16, dtype=torch.bool), actions)
    for step in range(4):
        past, future, later = ids[:, :-1].clone(), ids[:, 1:].clone(), actions.clone()
        past[:, step, 5] = (past[:, step, 5] + 1) % 60
        future[:, step, 5] = (future[:, step, 5] + 1) % 60
        later[:, 1 + step] += 1
        assert changed(model, *inputs, past=past) == [t >= step for t in range(4)]  # target t is step t + 1
        assert changed(model, *inputs, future=future) == [t == step for t in range(4)]
        assert changed(model, *inputs, actions=later) == [t >= step for t in range(4)]


def test_the_past_does_not_depend_on_what_comes_later():
    model = tiny(**SMALL)
    batch = toy_batch(model.spec, 5)
    ids = batch.latents.flatten(2)
    whole = model.observe(ids[:, :4], batch.actions, "arm", 1).cache
    part = model.observe(ids[:, :2], batch.actions[:, :3], "arm", 1).cache
    for a, b in zip(whole.memory, part.memory, strict=True):
        torch.testing.assert_close([t[:2] for t in a.video + a.action], list(b.video + b.action))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parallel_layout_is_every_window_at_once(variant):
    model = tiny(variant=variant, **SMALL)
    batch = toy_batch(model.spec, 6)
    ids = batch.latents.flatten(2)
    blank, masked = torch.zeros_like(ids[:, 1:]), torch.ones_like(ids[:, 1:], dtype=torch.bool)
    together = model.head(looked_at(model, ids[:, :-1], blank, masked, batch.actions))
    for t in range(1, 6):
        alone = model.predict(batch.window(0, t, t + 1), logits=True).logits.flatten(2, 3)
        torch.testing.assert_close(together[:, t - 1 : t], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window_stride", [1, 3])
@pytest.mark.parametrize(
    "kw",
    [{"variant": v, **SMALL, "past": 4} for v in VARIANTS]
    + [{"past": 4, "horizon": 2, "learned_steps": 6, "reach": 2}],
)
def test_a_rollout_with_a_cache_is_the_same_as_without(window_stride, kw):
    model = tiny(**kw, window_stride=window_stride)
    full = toy_batch(model.spec, 10)
    batch = Batch(full.latents[:, :2], full.actions, "arm")
    sampler = MaskGITSampler(steps=2)
    fast, slow = (model.rollout(batch, sampler=sampler, logits=True, use_cache=c) for c in (True, False))
    assert torch.equal(fast.latents, slow.latents)
    torch.testing.assert_close(fast.logits, slow.logits, atol=1e-5, rtol=1e-4)


def test_a_cache_spares_the_steps_it_covers():
    model = tiny(**SMALL, window_stride=3)
    full = toy_batch(model.spec, 5)
    first = model.predict(full.window(0, 3, 4))
    assert first.cache.steps == 3
    again = model.predict(full.window(0, 3, 4), cache=first.cache)
    assert again.cache.memory[0].video[0] is first.cache.memory[0].video[0]
    kept = [x for m in first.cache.memory for part in m for x in part]
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in kept)  # slices would keep what they are cut from
    assert torch.equal(again.latents, first.latents)


@pytest.mark.parametrize("factorized", [False, True])
def test_one_look_at_temperature_zero_is_argmax(factorized):
    model = tiny(factorized=factorized, horizon=2, learned_steps=4)
    batch = Batch(toy_batch(model.spec, 2).latents, toy_batch(model.spec, 4).actions, "arm")
    out = model.predict(batch, sampler=MaskGITSampler(steps=1, temperature=0.0), logits=True)
    assert out.latents.shape == (2, 2, 4, 4)
    assert out.logits.shape == (2, 2, 4, 4, 12 if factorized else 60)
    assert out.levels == ((3, 4, 5) if factorized else ())
    assert torch.equal(model.head.join(tuple(x.argmax(-1) for x in model.head.draws(out.logits))), out.latents)
    target = torch.randint(60, out.latents.shape)
    assert out.cross_entropy(target).shape == (2,)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_decoding_steps_follow_the_schedule_and_returned_logits_are_those_of_the_first(steps, monkeypatch):
    model, seen = tiny(), []
    batch = Batch(toy_batch(model.spec, 2).latents, toy_batch(model.spec, 3).actions, "arm")
    decoding_step, prefill = model.decoding_step, model.prefill

    def counting(window, ids, masked):
        seen.append((ids.clone(), masked.clone()))
        return decoding_step(window, ids, masked)

    def counting_first(past, actions, embodiment, ids, masked, cache):
        seen.append((ids.clone(), masked.clone()))
        return prefill(past, actions, embodiment, ids, masked, cache)

    monkeypatch.setattr(model, "decoding_step", counting)
    monkeypatch.setattr(model, "prefill", counting_first)
    out = model.predict(batch, sampler=MaskGITSampler(steps=steps), logits=True)
    assert [int(m[0].sum()) for _, m in seen] == [16, *maskgit.masked_counts(steps, 16)[:-1]]
    for (_, before), (ids, masked) in pairwise(seen):
        assert not (masked & ~before).any()  # nothing that was settled is masked again
        assert torch.equal(ids[~masked], out.latents.flatten(2)[~masked])
    first = model.predict(batch, sampler=MaskGITSampler(steps=1), logits=True)
    torch.testing.assert_close(out.logits, first.logits)


def test_the_noise_on_the_confidence_falls_from_step_to_step():
    model, seen = tiny(), []
    batch = Batch(toy_batch(model.spec, 2).latents, toy_batch(model.spec, 3).actions, "arm")

    class Watched(MaskGITSampler):
        def keep_score(self, logp, generator=None, *, to_come=0.0):
            seen.append(to_come)
            return super().keep_score(logp, generator, to_come=to_come)

    model.predict(batch, sampler=Watched(steps=4, choice_temperature=4.5))
    assert seen == [0.75, 0.5, 0.25]  # and after the fourth nothing is left to choose


def test_a_generator_makes_sampling_repeatable_and_temperature_makes_it_vary():
    model = tiny(factorized=True)
    batch = Batch(toy_batch(model.spec, 2, batch=8).latents, toy_batch(model.spec, 3, batch=8).actions, "arm")

    def draw(seed: int, **kw) -> Prediction:
        generator = torch.Generator().manual_seed(seed)
        return model.predict(batch, sampler=MaskGITSampler(**kw), generator=generator)

    hot = {"temperature": 1.0, "order": "random"}
    assert torch.equal(draw(1, **hot).latents, draw(1, **hot).latents)
    assert not torch.equal(draw(1, **hot).latents, draw(2, **hot).latents)
    assert torch.equal(draw(1).latents, draw(2).latents)
    cold_ids, hot_ids = (draw(1, steps=1, temperature=t).latents.unique().numel() for t in (0.01, 10.0))
    assert cold_ids < hot_ids


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kw", [{"fully_masked": 0.5}, SMALL], ids=["paper", "small"])
def test_one_batch_can_be_learnt(variant, kw):
    kw = {"max_corrupt": 0.0, "non_mlm": 0.0, **kw}
    model = MaskedHWM.Config(dim=32, depth=2, heads=2, variant=variant, unshared_layers=1, **kw).build(toy_spec())
    batch = toy_batch(model.spec, model.config.past + model.config.horizon, batch=1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss, metrics = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert set(metrics) == {"accuracy", "masked"}


def test_embodiments_have_their_own_first_layer():
    model = tiny(variant="full", **SMALL)
    batch = toy_batch(model.spec, 7, embodiment="hand.v2")
    assert model(batch)[0].isfinite()
    with pytest.raises(HwmError, match="embodiments"):
        model(Batch(batch.latents, batch.actions, "leg"))


def test_a_model_cast_to_bfloat16_predicts():
    model = tiny(**SMALL).bfloat16()
    full = toy_batch(model.spec, 6)
    out = model.rollout(Batch(full.latents[:, :3], full.actions, "arm"))
    assert out.latents.shape == (2, 3, 4, 4)


def test_the_strided_first_step_reads_one_action():
    config = MaskedHWM.Config(dim=32, depth=2, heads=2)
    model = config.build(toy_spec(stride=2, per_step=2))
    assert model.actions.position.shape[0] == 1 + 2 * 2
    batch = toy_batch(model.spec, 3)
    batch.actions.requires_grad_()
    model(batch)[0].backward()
    read = batch.actions.grad.abs().sum((0, 3)) > 0
    assert read.tolist() == [[False, True], [True, True], [True, True]]


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        ({"parallel": True, "horizon": 2, "learned_steps": 1}, "horizon must be 1"),
        ({"past": 5}, "learned_steps"),
        ({"own_past": 0.5}, "parallel"),
        ({"heads": 5}, "5 heads"),
    ],
)
def test_configs_that_cannot_work_are_refused(kw, says):
    with pytest.raises(HwmError, match=says):
        tiny(**kw)


def test_calls_that_cannot_work_are_refused():
    model = tiny()
    batch = toy_batch(model.spec, 4)
    with pytest.raises(HwmError, match="1 to 1 steps from 1 to 2"):
        model.predict(batch.window(0, 3, 4))
    with pytest.raises(HwmError, match="factorised"):
        model.predict(batch.window(0, 2, 3), sampler=MaskGITSampler(pick="mean"))
    with pytest.raises(HwmError, match="position"):
        model.loss(batch)
    with pytest.raises(HwmError, match="no past"):
        model.loss(batch.window(0, 1, 1))
    with pytest.raises(HwmError, match="discrete"):
        MaskedHWM.tiny().build(toy_spec(channels=4))


def test_own_past_is_what_the_model_would_have_predicted():
    model = tiny(**SMALL, own_past=1.0)
    batch = toy_batch(model.spec, 6, batch=16)
    past = batch.latents.flatten(2)[:, :-1]
    shown = model.with_own_guesses(past, batch.actions, "arm")
    replaced = (shown != past).any(-1)
    assert replaced.any()
    assert not replaced[:, 0].any()
    for t in range(1, 5):
        own = model.predict(batch.window(0, t, t + 1), sampler=MaskGITSampler(steps=1)).latents.flatten(2)[:, 0]
        assert torch.equal(shown[replaced[:, t], t], own[replaced[:, t]])
    assert model.train()(batch)[0].isfinite()
