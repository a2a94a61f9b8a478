"""GENIE: recorded outputs of the public implementation, corruption, causality, caches, actions, muP."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hwm.convert import genie as convert
from hwm.convert.replay import ReleasedSampler
from hwm.data.onex.specs import onex_v1
from hwm.errors import HwmError
from hwm.loading import copy_weights
from hwm.models.genie import Genie
from hwm.nn import layers
from hwm.objectives.maskgit import MaskGITSampler, masked_counts
from hwm.train.checkpoint import save_model
from hwm.train.config import TrainConfig
from hwm.train.optim import optimizers
from hwm.train.trainer import Trainer
from hwm.types import Batch, DataSpec, LatentSpec
from tests.models.test_registry import OneClip
from tests.models.toys import LEVELS, toy_batch, toy_spec
from tests.parity import recorded

CASES = ("plain", "mup", "qknorm", "mup-qknorm-onevocab", "threevocab")


# ---------------------------------------------------------------------- recorded outputs
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_recorded_generation_without_a_cache(name: str, steps: int) -> None:
    """With a cache, and all other outputs: tests/convert/test_cases.py."""
    case = recorded(f"genie-{name}")
    run = convert.Recorded(convert.build(case.config, case.weights), case)
    assert torch.equal(run.generated(steps, use_cache=False), case.out[f"maskgit_K{steps}"])


def test_the_schedule_of_published_models_is_the_released_one() -> None:
    assert masked_counts(2, 256) == (182, 0)
    assert masked_counts(4, 256) == (237, 182, 98, 0)
    assert masked_counts(8, 256) == (252, 237, 213, 182, 143, 98, 50, 0)
    for steps in range(1, 18):
        assert masked_counts(steps, 256) == ReleasedSampler(steps=steps).counts(256)
    assert masked_counts(4, 9) != ReleasedSampler(steps=4).counts(9)


# ---------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("dim", "qk_norm", "parameters"),
    [(256, False, 35_218_688), (256, True, 35_190_016), (512, False, 137_545_216), (512, True, 137_487_872)],
)
def test_parameters_are_those_of_the_published_models(dim: int, qk_norm: bool, parameters: int) -> None:
    with torch.device("meta"):
        model = Genie.Config(dim=dim, qk_norm=qk_norm).build(onex_v1())
    assert sum(p.numel() for p in model.parameters()) == parameters


def build(seed: int = 0, spec: DataSpec | None = None, **changes: Any) -> Genie:
    torch.manual_seed(seed)
    return replace(Genie.tiny(), **changes).build(spec or toy_spec())


def shaken(model: Genie) -> Genie:
    """Every parameter away from zero and one, so that each of them matters."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def test_an_untrained_model_knows_nothing() -> None:
    model = build(spec=DataSpec(LatentSpec((4, 4), 2**18, levels=(512, 512)), {}), actions=False, mup=True)
    ids = torch.randint(2**18, (8, 5, 4, 4))
    loss, _ = model.loss(Batch(ids, torch.zeros(8, 5, 1, 1), "nobody"))
    assert abs(loss.item() - 2 * math.log(512)) < 0.1


# ---------------------------------------------------------------------- corruption and masking
def test_some_token_of_every_masked_step_is_masked_and_none_of_the_others() -> None:
    model = build()
    ids = torch.randint(60, (64, 5, 16))
    past, shown, cells = model.corrupt_and_mask(ids)
    masked = cells.mask
    assert (past.shape, shown.shape, masked.shape) == ((64, 1, 16), (64, 4, 16), (64, 4, 16))
    steps = masked.any(-1)
    assert steps[:, -1].all()
    assert not steps.all()
    assert (steps.int().diff(dim=1) >= 0).all()


# ---------------------------------------------------------------------- what sees what
def hidden(model: Genie, ids: Tensor, actions: Tensor, masked: Tensor) -> Tensor:
    with torch.no_grad():
        window = model.observe(ids[:, :1], actions, "arm", ids.shape[1] - 1)
        return model.decoding_step(window, ids[:, 1:], masked[:, 1:])


@given(st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_no_step_depends_on_later_ones(changed: int, qk_norm: bool, seed: int) -> None:
    model, batch = shaken(build(seed, qk_norm=qk_norm)), toy_batch(toy_spec(), 5, seed=seed)
    ids = batch.latents.flatten(2)
    other, actions = ids.clone(), batch.actions.clone()
    other[:, changed:] = (other[:, changed:] + 1) % 60
    actions[:, changed:] += 1
    masked = torch.zeros_like(ids, dtype=torch.bool)
    a, b = hidden(model, ids, batch.actions, masked), hidden(model, other, actions, masked)
    assert torch.equal(a[:, : changed - 1], b[:, : changed - 1])
    assert not torch.allclose(a[:, changed - 1], b[:, changed - 1])


def test_what_is_masked_is_not_seen() -> None:
    model, batch = shaken(build()), toy_batch(toy_spec(), 5)
    ids, masked = batch.latents.flatten(2), torch.rand(2, 5, 16) < 0.5
    other = torch.where(masked, (ids + 7) % 60, ids)
    masked[:, 0] = False
    other[:, 0] = ids[:, 0]
    assert torch.equal(*(hidden(model, x, batch.actions, masked) for x in (ids, other)))


def test_a_cell_sees_its_own_step_and_itself_in_earlier_ones() -> None:
    model, batch = shaken(build(depth=1)), toy_batch(toy_spec(), 5)
    ids, masked = batch.latents.flatten(2), torch.zeros(2, 5, 16, dtype=torch.bool)
    other = ids.clone()
    other[:, 2, 3] = (other[:, 2, 3] + 1) % 60
    moved = (hidden(model, ids, batch.actions, masked) != hidden(model, other, batch.actions, masked)).any(-1)
    assert moved[:, 1].all(), "all cells of the step"
    # with one block, attention over time hands on what the cell has gathered in its step, so all cells of later steps
    # may move; through values alone: the cell itself
    assert moved[:, 2:].all()
    assert not moved[:, 0].any()


def test_rollouts_with_and_without_cache_are_alike_beyond_the_window() -> None:
    model = shaken(build(past=5, window_stride=3))
    full = toy_batch(toy_spec(), 14)
    batch = Batch(full.latents[:, :2], full.actions, "arm")
    sampler = MaskGITSampler(steps=2, order="confidence")
    one, two = (model.rollout(batch, sampler=sampler, logits=True, use_cache=use) for use in (True, False))
    assert torch.equal(one.latents, two.latents)
    torch.testing.assert_close(one.logits, two.logits)


def test_prefill_runs_with_the_steps_that_are_new() -> None:
    model, full, passed = build().eval(), toy_batch(toy_spec(), 5), []
    model.blocks[0].register_forward_hook(lambda block, args, out: passed.append(args[0].shape[0]))
    first = model.predict(full.window(0, 3, 4), sampler=MaskGITSampler(steps=2))
    model.predict(full.window(0, 4, 5), sampler=MaskGITSampler(steps=2), cache=first.cache)
    assert passed == [3 + 1, 1, 1 + 1, 1]


def test_caches_of_a_rollout_share_what_they_remember() -> None:
    model, full = build().eval(), toy_batch(toy_spec(), 5)
    first = model.predict(full.window(0, 3, 4)).cache
    second = model.predict(full.window(0, 4, 5), cache=first).cache
    assert (first.steps, second.steps) == (3, 4)
    for old, new in zip(first.memory, second.memory, strict=True):
        keys, values = new[:4], new[4:]
        assert all(a is b for a, b in zip(old, (*keys[:3], *values[:3]), strict=True))
        assert all(x.shape == (1, 2, 16, 2, 16) for x in new)
        # and nothing beside: a step's tensors are not windows into those of a whole pass
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in (keys[3], values[3]))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_half_precision_stays_near(qk_norm: bool) -> None:
    model, batch = shaken(build(qk_norm=qk_norm)), toy_batch(toy_spec(), 5)
    window = batch.window(0, 4, 5)
    exact = model.predict(window, logits=True).logits
    with torch.autocast("cpu", torch.bfloat16):
        half = model.predict(window, logits=True).logits
    assert exact is not None
    assert half is not None
    assert (half - exact).abs().max() < 0.05 * exact.abs().max()


# ---------------------------------------------------------------------- what a training pass keeps
def gradients(model: Genie, batch: Batch) -> list[Tensor]:
    torch.manual_seed(7)
    model.loss(batch)[0].backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("changes", [{}, {"mlp_drop": 0.3}, {"qk_norm": True}, {"qkv_bias": True, "mlp_bias": False}])
@pytest.mark.parametrize("rows", [2048, 40])  # all cells at once, and four at a time
def test_recomputing_changes_no_gradient(changes: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "ROWS_AT_ONCE", rows)
    model, batch = shaken(build(**changes)).train(), toy_batch(toy_spec(), 5)
    with layers.sparing():
        recomputed = gradients(model, batch)
    kept = gradients(model, batch)
    assert len(recomputed) == len(kept) >= len(list(model.parameters())) - 2  # all but what is another robot's
    for a, b in zip(recomputed, kept, strict=True):
        assert torch.equal(a, b)


def test_recomputing_keeps_less_and_is_done_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(actions=False, spec=toy_spec(), dim=64), toy_batch(toy_spec(), 5)

    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model.loss(batch)[0]
        loss.backward()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for where, size in sizes.items() if where not in weights)

    much = kept()
    with layers.sparing():
        little = kept()
    assert little < 0.4 * much
    states = 4 * (2 * 5 * 16) * 64  # bytes that go into a block
    for room, expected in ((23 * 2 * states, much), (23 * 2 * states - 1, little)):
        monkeypatch.setattr(layers, "machine_memory", lambda room=room: 4 * room)
        assert kept() == expected


def test_a_clip_is_looked_at_as_a_window_is() -> None:
    model, batch = shaken(build()), toy_batch(toy_spec(), 5)
    ids, masked = batch.latents.flatten(2), torch.rand(2, 4, 16) < 0.5
    once = model.states_of_clip(ids[:, :1], batch.actions, "arm", ids[:, 1:], masked)
    window = model.observe(ids[:, :1], batch.actions, "arm", 4)
    torch.testing.assert_close(once, model.decoding_step(window, ids[:, 1:], masked))


# ---------------------------------------------------------------------- actions
def test_actions_are_of_their_step_and_all_its_cells() -> None:
    model, batch = shaken(build()), toy_batch(toy_spec(), 5)
    ids, masked = batch.latents.flatten(2), torch.ones(2, 5, 16, dtype=torch.bool)
    actions = batch.actions.clone()
    actions[:, 3, 1, 0] += 1
    moved = (hidden(model, ids, batch.actions, masked) != hidden(model, ids, actions, masked)).any(-1)
    assert moved.all(-1).all(0).tolist() == [False, False, True, True]
    assert not moved[:, :2].any()
    # which of a step's actions came first matters too
    turned = hidden(model, ids, batch.actions.flip(2), masked)
    assert (turned != hidden(model, ids, batch.actions, masked)).any()


def test_without_actions_those_of_any_robot_will_do() -> None:
    model = build(spec=DataSpec(toy_spec().latent, {}), actions=False).eval()
    batch = toy_batch(toy_spec(), 5)
    other = Batch(batch.latents, torch.randn(2, 5, 7, 9), "somebody")
    assert not [name for name, _ in model.named_parameters() if "action" in name]
    a, b = (model.predict(x.window(0, 4, 5), sampler=MaskGITSampler(steps=1)).latents for x in (batch, other))
    assert torch.equal(a, b)
    with pytest.raises(HwmError, match="a grid of"):
        model.predict(Batch(batch.latents[..., :3], batch.actions, "arm"))
    with pytest.raises(HwmError, match="the model knows the embodiments"):
        build().predict(Batch(batch.latents[:, :4], batch.actions, "leg"))


def test_a_model_with_actions_begins_from_weights_without(tmp_path: Path) -> None:
    published = shaken(build(spec=DataSpec(toy_spec().latent, {}), actions=False))
    save_model(tmp_path / "published", published)
    model = build(1).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copy_weights(tmp_path / "published", model)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in published.state_dict().items())
    assert all(torch.equal(after[k], before[k]) for k in after if k.startswith("actions."))
    save_model(tmp_path / "ours", model)
    with pytest.raises(HwmError, match="do not fit"):
        copy_weights(tmp_path / "ours", build(actions=False))


# ---------------------------------------------------------------------- muP
def test_mup_scales_attention_head_weights_and_learning_rates() -> None:
    wide, base = (build(dim=dim, heads=4, mup=True, depth=1) for dim in (512, 256))
    assert (wide.mup_width, base.mup_width) == (2.0, 1.0)
    assert (wide.blocks[0].space.scale, base.blocks[0].time.scale) == (8 / 128, 8 / 64)
    plain = build(dim=256, heads=4, mup=False)
    assert (plain.mup_width, plain.blocks[0].space.scale) == (1.0, 64**-0.5)
    for name in ("space.qkv", "time.proj", "fc1", "fc2"):
        stds = [m.blocks[0].get_submodule(name).weight.std().item() for m in (wide, base)]
        assert stds == pytest.approx([0.02 / 2**0.5, 0.02], rel=0.05)
    assert [m.head.weight.std().item() for m in (wide, base)] == pytest.approx([0.02, 0.02], rel=0.1)
    optimizer, *more = optimizers(wide, "adamw", 1e-3, 0.1, (0.9, 0.95))
    assert not more
    names = {id(p): n for n, p in wide.named_parameters()}
    groups = {
        names[id(p)]: (g.get("lr_share", 1.0), g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    assert len(groups) == len(names)
    hidden = {n for n, value in groups.items() if value == (0.5, 0.2)}
    in_blocks = {n for n in groups if n.startswith("blocks.") and n.endswith("weight") and "norm" not in n}
    assert hidden == {*in_blocks, "actions.mix.weight"}
    assert {v for n, v in groups.items() if n not in hidden} == {(1.0, 0.1), (1.0, 0.0)}
    assert all(
        "lr_share" not in g or g["lr_share"] == 1
        for g in optimizers(base, "adamw", 1e-3, 0, (0.9, 0.9))[0].param_groups
    )


def test_the_trainer_gives_each_group_its_share(tmp_path: Path) -> None:
    model = build()
    config = TrainConfig(steps=4, batch_size=2, warmup=2, lr=1e-3, threads=1)
    trainer = Trainer(config, model, OneClip(toy_batch(model.spec, 5), model.spec), None, tmp_path)  # type: ignore[arg-type]
    rate = trainer.update(trainer._batches())["lr"].item()
    rates = {g.get("lr_share", 1.0): g["lr"] for g in trainer.optimizers[0].param_groups}
    assert rates == pytest.approx({1.0: rate, 8.0: 8 * rate})  # 32 is an eighth of the base width


def test_the_head_reads_states_divided_by_the_width() -> None:
    model, batch = shaken(build(dim=64, mup=True)), toy_batch(toy_spec(), 5)
    ids, masked = batch.latents.flatten(2), torch.zeros(2, 5, 16, dtype=torch.bool)
    divided = hidden(model, ids, batch.actions, masked)
    model.mup_width = 1.0
    torch.testing.assert_close(divided / 4, hidden(model, ids, batch.actions, masked))


# ---------------------------------------------------------------------- mistakes
def test_other_grids_and_whole_ids() -> None:
    spec = DataSpec(LatentSpec((2, 3), 11), toy_spec().actions)
    model = build(spec=spec, factorized=False)
    ids = torch.randint(11, (2, 5, 2, 3))
    actions = torch.randn(2, 5, 2, 3)
    assert model.loss(Batch(ids, actions, "arm"))[0].isfinite()
    out = model.eval().predict(Batch(ids[:, :4], actions, "arm"), logits=True)
    assert out.logits is not None
    assert out.logits.shape == (2, 1, 2, 3, 11)
    assert build().predict(toy_batch(toy_spec(), 5).window(0, 4, 5), logits=True).levels == LEVELS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_stride": 5}, "window_stride=5 must be between 1 and past=4"),
        ({"window_stride": 0}, "window_stride=0 must be between"),
        ({"heads": 3}, "does not split into 3 heads"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmError, match=message):
        build(**changes)


def test_clips_of_another_length_are_refused() -> None:
    model = build()
    for steps in (1, 6):
        with pytest.raises(HwmError, match="trains on clips of 2 to past \\+ horizon = 5 steps"):
            model.loss(toy_batch(toy_spec(), steps))
    assert model.loss(toy_batch(toy_spec(), 3))[0].isfinite()
    with pytest.raises(HwmError, match="only past \\+ horizon = 5 steps have positions"):
        model.observe(torch.zeros(1, 4, 16, dtype=torch.long), torch.zeros(1, 6, 2, 3), "arm", 2)
