"""HMA: sizes, ways of conditioning on actions, causality, caches, alignment of actions, robots, mistakes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.loading import copy_weights
from hwm.models.hma_continuous import HMAContinuous, MARSampler
from hwm.models.hma_discrete import HMADiscrete
from hwm.models.hma_trunk import Stem
from hwm.nn.causal import CausalCache
from hwm.nn.conditioning import WAYS
from hwm.objectives.maskgit import MaskGITSampler
from hwm.train.checkpoint import save_model
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec
from tests.models.toys import toy_batch, toy_spec

TWO = ActionSpec(1, ("x", "y"), (0.0, 0.0), (1.0, 1.0))


def robots(count: int) -> dict[str, ActionSpec]:
    return {f"robot{i}": TWO for i in range(count)}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def build(seed: int = 0, spec: DataSpec | None = None, **changes: Any) -> HMADiscrete:
    torch.manual_seed(seed)
    return replace(HMADiscrete.tiny(), **changes).build(spec or toy_spec())


def shaken(model: Any, size: float = 0.1) -> Any:
    """Every parameter away from zero and one, so that each of them matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * size)
    return model.eval()


# ---------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("dim", "count", "wanted"),
    [
        (128, 1, 11_320_962), (128, 40, 94_427_856), (256, 1, 43_645_186), (488, 1, 155_769_162),
    ],
)  # fmt: skip
def test_parameters_are_those_of_the_public_code(dim: int, count: int, wanted: int) -> None:
    spec = DataSpec(LatentSpec((16, 16), 512**2, levels=(512, 512)), robots(count))
    with torch.device("meta"):
        model = HMADiscrete.Config(dim=dim, action_heads=True).build(spec)
        plain = HMADiscrete.Config(dim=dim).build(spec)
    assert parameters(model) == wanted
    assert parameters(model) - parameters(plain) == 12 * dim + count * (2 * dim + 2)


def test_an_untrained_model_knows_nothing() -> None:
    model = build(spec=DataSpec(LatentSpec((4, 4), 2**18, levels=(512, 512)), {"arm": TWO}), mup=False)
    loss, _ = model.loss(Batch(torch.randint(2**18, (8, 5, 4, 4)), torch.randn(8, 5, 1, 2), "arm"))
    assert abs(loss.item() - 2 * math.log(512)) < 0.1


# ---------------------------------------------------------------------- conditioning on actions
def hidden(model: HMADiscrete, batch: Batch) -> Tensor:
    """States (B, T, S, D) of all steps but the first of a clip that is shown whole."""
    ids = model.tokens(batch.latents)
    masked = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
    return model.states_of_clip(ids[:, :1], model.actions_of(batch), batch.embodiment, ids[:, 1:], masked)


EVERY_WAY = [("concatenate",), *((way,) for way in WAYS), ("concatenate", "modulate"), ("add", "cross_attend")]


@pytest.mark.parametrize("ways", EVERY_WAY)
@pytest.mark.parametrize("following", [False, True])
def test_what_each_step_depends_on(ways: tuple[str, ...], following: bool) -> None:
    """On all ids and actions up to its own step, or one step further, and on none after it."""
    model = shaken(build(action_network=ways, following_actions=following), 0.3)
    batch, T = toy_batch(toy_spec(), 5), 5
    told = 2 + following  # the last step whose actions step 2 is told
    actions = batch.actions.clone().requires_grad_()
    out = hidden(model, Batch(batch.latents, actions, "arm"))[:, 1]  # of step 2
    (gradient,) = torch.autograd.grad(out.square().sum(), actions)
    reach = gradient.abs().amax((0, 2, 3))
    assert not reach[told + 1 :].any()
    assert (reach[1 if following else 0 : told + 1] > 0).all()
    for t in range(T):
        changed = batch.latents.clone()
        changed[:, t] = (changed[:, t] + 1) % 60
        other = hidden(model, Batch(changed, batch.actions, "arm"))[:, 1]
        assert torch.equal(other, out) == (t > 2), t


@pytest.mark.parametrize("ways", EVERY_WAY)
def test_samples_are_told_their_own_actions(ways: tuple[str, ...]) -> None:
    model, batch = shaken(build(action_network=ways), 0.3), toy_batch(toy_spec(), 5)
    both = hidden(model, batch)
    for i in range(2):
        one = Batch(batch.latents[i : i + 1], batch.actions[i : i + 1], "arm")
        torch.testing.assert_close(hidden(model, one), both[i : i + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ways", EVERY_WAY)
@pytest.mark.parametrize("following", [False, True])
def test_a_cache_changes_nothing(ways: tuple[str, ...], following: bool) -> None:
    model = shaken(build(action_network=ways, following_actions=following, past=6, window_stride=4), 0.3).double()
    full = toy_batch(toy_spec(), 12)
    batch = Batch(full.latents[:, :2], full.actions, "arm")
    made = [model.rollout(batch, logits=True, use_cache=use, sampler=MaskGITSampler(2)) for use in (True, False)]
    assert torch.equal(made[0].latents, made[1].latents)
    torch.testing.assert_close(made[0].logits, made[1].logits)


def test_cross_attention_is_the_plain_sum() -> None:
    """One state at a time, head by head, written out."""
    torch.manual_seed(0)
    T, M, B, S, D, h = 2, 4, 3, 5, 12, 3
    way = shaken(WAYS["cross_attend"](D, h), 0.5)
    told, x = torch.randn(M, B, D), torch.randn(T, B, S, D)
    found, d = way(told, T)(x), D // h
    for t in range(T):
        for b in range(B):
            parts = []
            for i in range(h):
                part = slice(i * d, (i + 1) * d)
                q = way.norm(way.q(x[t, b])[:, part])
                k, v = way.norm(way.k(told[: M - T + t + 1, b])[:, part]), way.v(told[: M - T + t + 1, b])[:, part]
                parts.append((q @ k.T / d**0.5).softmax(-1) @ v)
            torch.testing.assert_close(found[t, b], x[t, b] + way.proj(torch.cat(parts, -1)))


def test_action_tokens_have_places_of_their_own() -> None:
    model = shaken(build(action_network=("concatenate",), action_tokens=3))
    batch = toy_batch(toy_spec(), 5)
    before = hidden(model, batch)
    with torch.no_grad():
        model.trunk.position[:, 16 + 2] += torch.randn(32)
    after = hidden(model, batch)
    assert after.shape == before.shape == (2, 4, 16, 32)
    assert not torch.allclose(after, before)


# ---------------------------------------------------------------------- robots
@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_actions_are_normalised_by_their_robot(per_step: int, dim: int, clamp: bool, seed: int) -> None:
    torch.manual_seed(seed)
    mean, std = torch.randn(dim), torch.rand(dim) + 0.1
    spec = ActionSpec(per_step, tuple(map(str, range(dim))), tuple(mean.tolist()), tuple(std.tolist()))
    stem, actions = Stem(spec, 8, 1, clamp), torch.randn(2, 3, per_step, dim) * 9
    wanted = (actions - mean) / std
    torch.testing.assert_close(stem.normalised(actions), wanted.clamp(-5, 5) if clamp else wanted)
    torch.testing.assert_close(stem(actions, 2, True), stem(actions, 3, False)[1:])


def test_a_constant_dimension_keeps_its_unit_and_absent_actions_are_average() -> None:
    stem = Stem(ActionSpec(4, ("a", "b"), (1.0, 2.0), (0.0, 2.0)), 8, 2, False)
    found = stem.normalised(torch.full((1, 2, 4, 2), 4.0))
    assert found.tolist() == [[[[0, 0]] * 2 + [[3, 1]] * 2, [[3, 1]] * 4]]


def test_robots_share_all_but_what_reads_their_actions() -> None:
    model = build()
    mine = {name for name, _ in model.named_parameters() if ".arm." in name}
    assert {name.split(".")[1] for name in mine} == {"stems", "blocks"}
    model.loss(toy_batch(toy_spec(), 5))[0].backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == (".hand_v2." in name), name
    batch = toy_batch(toy_spec(), 5, embodiment="hand.v2")
    assert shaken(model).predict(batch.window(0, 4, 5)).latents.shape == (2, 1, 4, 4)


def test_several_steps_at_once() -> None:
    model = shaken(build(past=3, horizon=2, window_stride=2, non_mlm=1.0))
    batch = toy_batch(toy_spec(), 9)
    assert model.loss(batch.window(0, 5, 5))[0].isfinite()
    assert model.rollout(batch.window(0, 3, 9)).latents.shape[1] == 6
    # the first of two is what it would be alone: it does not look ahead
    two, one = (model.predict(batch.window(0, 3, stop), logits=True, sampler=MaskGITSampler(2)) for stop in (5, 4))
    assert torch.equal(two.latents[:, :1], one.latents)
    torch.testing.assert_close(two.logits[:, :1], one.logits)


def test_mup_divides_what_the_head_reads() -> None:
    model, batch = shaken(build(dim=64)), toy_batch(toy_spec(), 5)
    assert model.mup_width == 0.25
    divided = hidden(model, batch)
    model.mup_width = 1.0
    torch.testing.assert_close(divided / 4, hidden(model, batch))


@pytest.mark.parametrize("continuous", [False, True])
def test_a_further_robot_begins_from_a_model_of_others(continuous: bool, tmp_path: Path) -> None:
    make, channels = (build_continuous, 4) if continuous else (build, None)
    spec = toy_spec(channels=channels)
    source = shaken(make(spec=spec, action_heads=True))
    save_model(tmp_path, source)
    model = make(spec=replace(spec, actions={"arm": spec.actions["arm"], "leg": TWO}), action_heads=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copy_weights(tmp_path, model)
    theirs = source.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if ".leg." in name else theirs[name]), name
    assert any(".told.0.leg." in name for name in before)
    with pytest.raises(HwmError, match="do not fit"):
        copy_weights(tmp_path, make(spec=spec, dim=64))


# ---------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_stride": 5}, "window_stride=5 must be between 1 and past=4"),
        ({"heads": 3}, "does not split into 3 heads"),
        ({"action_network": ("concat",)}, "must name at least one of .*'add', 'concatenate', 'cross_attend'"),
        ({"action_network": ()}, "must name at least one of"),
        ({"action_tokens": 0}, "needs action_tokens of 1 or more"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmError, match=message):
        build(**changes)


def test_clips_and_robots_that_do_not_fit_are_refused() -> None:
    model = build()
    for steps in (1, 6):
        with pytest.raises(HwmError, match="trains on clips of 2 to past \\+ horizon = 5"):
            model.loss(toy_batch(toy_spec(), steps))
    with pytest.raises(HwmError, match="only past \\+ horizon = 5 steps have positions"):
        model.observe(torch.zeros(1, 4, 16, dtype=torch.long), torch.zeros(1, 6, 2, 3), "arm", 2)
    with pytest.raises(HwmError, match="not 'leg'"):
        model.loss(replace(toy_batch(toy_spec(), 5), embodiment="leg"))
    with pytest.raises(HwmError, match="nothing but dots"):
        build(spec=replace(toy_spec(), actions={"a.b": TWO, "a_b": TWO}))
    assert model.observe(torch.zeros(1, 4, 16, dtype=torch.long), torch.zeros(1, 5, 2, 3), "arm", 1, CausalCache())


# ---------------------------------------------------------------------- continuous latents
def build_continuous(seed: int = 0, spec: DataSpec | None = None, **changes: Any) -> HMAContinuous:
    torch.manual_seed(seed)
    return replace(HMAContinuous.tiny(), **changes).build(spec or toy_spec(channels=4))


@pytest.mark.parametrize(
    ("dim", "wanted"), [(128, 61_799_336), (256, 95_751_976), (512, 226_768_424)]
)  # fmt: skip
def test_parameters_of_the_continuous_model_are_those_of_the_public_code(dim: int, wanted: int) -> None:
    spec = DataSpec(LatentSpec((32, 32), channels=4), robots(1))
    with torch.device("meta"):
        model = HMAContinuous.Config(dim=dim, action_heads=True, published_positions=True).build(spec)
    assert parameters(model) == wanted


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_latents_are_patches_and_back(rows: int, columns: int, patch: int, channels: int, known: bool) -> None:
    latent = LatentSpec((rows * patch, columns * patch), channels=channels)
    more = dict(latent_mean=(0.5,) * channels, latent_std=(2.0,) * channels) if known else {}
    model = build_continuous(spec=DataSpec(latent, robots(1), **more), patch=patch)  # type: ignore[arg-type]
    x = torch.randn(2, 3, channels, rows * patch, columns * patch)
    tokens = model.tokens(x)
    assert tokens.shape == (2, 3, rows * columns, patch * patch * channels)
    torch.testing.assert_close(model.latents(tokens), x)
    first = (x[..., :patch, :patch] - 0.5) / 2 if known else x[..., :patch, :patch]
    torch.testing.assert_close(tokens[:, :, 0], first.permute(0, 1, 3, 4, 2).flatten(2))


def test_masked_patches_are_not_looked_at_and_others_are() -> None:
    model, batch = shaken(build_continuous()), toy_batch(toy_spec(channels=4), 4)
    x = model.tokens(batch.latents)
    masked = torch.zeros(x.shape[:3], dtype=torch.bool)
    masked[:, 2, 1] = True
    for t, s in ((2, 1), (2, 0)):
        y = x.clone()
        y[:, t, s] += 1.0
        told = [
            model.run(model.observe(z[:, :0], batch.actions, "arm", 4), model.hidden(z, masked[..., None]))[0]
            for z in (x, y)
        ]
        assert torch.equal(*told) == bool(masked[0, t, s])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_each_patch_is_drawn_once_and_keeps_its_value(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = shaken(build_continuous(horizon=2)), toy_batch(toy_spec(channels=4), 5)
    drawn: list[Tensor] = []
    original = HMAContinuous.draw

    def draw(self: HMAContinuous, *given: Any) -> Tensor:
        drawn.append(original(self, *given))
        return drawn[-1]

    monkeypatch.setattr(HMAContinuous, "draw", draw)
    sampler = MARSampler(steps=steps, diffusion_steps=3)
    made = model.predict(batch.window(0, 3, 5), sampler=sampler, generator=torch.Generator().manual_seed(0))
    assert len(drawn) == min(steps, 4)
    found, wanted = (x.flatten(2, -2).sort(2).values for x in (model.tokens(made.latents), torch.cat(drawn, 2)))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("ways", EVERY_WAY)
@pytest.mark.parametrize("following", [False, True])
def test_a_cache_changes_nothing_of_continuous_rollouts(ways: tuple[str, ...], following: bool) -> None:
    made = build_continuous(action_network=ways, following_actions=following, past=6, window_stride=4)
    model = shaken(made, 0.3).double()
    full, sampler = toy_batch(toy_spec(channels=4), 12), MARSampler(steps=3, diffusion_steps=3, clamp=2.0)
    batch = Batch(full.latents[:, :2].double(), full.actions, "arm")
    runs = [
        model.rollout(batch, use_cache=use, sampler=sampler, generator=torch.Generator().manual_seed(0)).latents
        for use in (True, False)
    ]
    torch.testing.assert_close(*runs)
    other = model.rollout(batch, sampler=sampler, generator=torch.Generator().manual_seed(1)).latents
    assert not torch.allclose(other, runs[0])


def test_what_a_continuous_step_depends_on() -> None:
    for following in (False, True):
        model, batch = shaken(build_continuous(following_actions=following)), toy_batch(toy_spec(channels=4), 5)
        x, actions = model.tokens(batch.latents).requires_grad_(), batch.actions.clone().requires_grad_()
        told = model.run(model.observe(x[:, :0], model.actions_of(replace(batch, actions=actions)), "arm", 5), x)
        told = told[0][:, 2]
        of_x, of_actions = (
            g.abs().flatten(2).amax((0, 2)) > 0 for g in torch.autograd.grad(told.square().sum(), (x, actions))
        )
        assert of_x.tolist() == [True, True, True, False, False]
        assert of_actions.tolist() == [not following, True, True, following, False]


def test_rows_with_their_own_generators_do_not_depend_on_others() -> None:
    model, batch = shaken(build_continuous()), toy_batch(toy_spec(channels=4), 5).window(0, 4, 5)
    both = model.predict(batch, generator=[torch.Generator().manual_seed(i) for i in (3, 4)]).latents
    alone = Batch(batch.latents[1:], batch.actions[1:], "arm")
    one = model.predict(alone, generator=[torch.Generator().manual_seed(4)]).latents
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-4)


def test_data_and_clips_that_do_not_fit_a_continuous_model_are_refused() -> None:
    with pytest.raises(HwmError, match="needs continuous latents"):
        build_continuous(spec=toy_spec())
    with pytest.raises(HwmError, match="does not split into patches of 3 x 3"):
        build_continuous(patch=3)
    model = build_continuous()
    for steps in (1, 6):
        with pytest.raises(HwmError, match="trains on clips of 2 to past \\+ horizon = 5"):
            model.loss(toy_batch(model.spec, steps))
    with pytest.raises(HwmError, match="predicts 1 to 1 steps from 1 to 4, not 2 from 3"):
        model.predict(toy_batch(model.spec, 5).window(0, 3, 5))
