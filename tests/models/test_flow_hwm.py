"""Flow-HWM and its U-ViT: sizes, what sees what, the loss, guidance, the sampler, statistics, what is computed once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hwm.errors import HwmError
from hwm.evaluate.metrics import psnr
from hwm.models import flow
from hwm.models.flow import FlowModel
from hwm.models.flow_hwm import VARIANTS, FlowHWM
from hwm.models.flow_hwm_uvit import FlowHWMUViT
from hwm.nn.dit import ActionTokens, patches, unpatched
from hwm.nn.flow_streams import CONTEXT, FLOW_ROWS
from hwm.nn.rope import rope_3d, rotate
from hwm.nn.streams import FUTURE_ACTION, FUTURE_VIDEO, PAST_ACTION, PAST_VIDEO, STREAMS
from hwm.objectives import shortcut
from hwm.recipes import find_recipe
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec
from tests.models.toys import toy_batch, toy_spec

CPU = torch.device("cpu")
SOLVERS = ("euler", "midpoint", "heun")
ALL = (*VARIANTS, "uvit")


def build(spec: DataSpec | None = None, *, moved: bool = True, **changes: Any) -> Any:
    """A tiny model; `variant="uvit"` is the U-ViT."""
    torch.manual_seed(0)
    uvit = changes.get("variant") == "uvit"
    config = FlowHWMUViT.tiny() if uvit else FlowHWM.tiny()
    changes = {k: v for k, v in changes.items() if not uvit or k not in ("variant", "unshared_layers")}
    model = replace(config, **changes).build(spec or toy_spec(channels=4))
    with torch.no_grad():
        for p in model.parameters():  # away from the first weights, which let nothing pass
            p.add_(0.1 * moved * torch.randn_like(p))
    return model.eval()


def window(model: FlowModel, past: int | None = None, missing: int | None = None, seed: int = 0) -> Batch:
    past, missing = past or model.config.past, missing or model.config.horizon
    return toy_batch(model.spec, past + missing, seed=seed).window(0, past, past + missing)


def sample(model: FlowModel, batch: Batch, **sampler: Any) -> Tensor:
    chosen = replace(model.config.sampler, **sampler)
    return model.predict(batch, sampler=chosen, generator=torch.Generator().manual_seed(0)).latents


@pytest.mark.parametrize(
    ("variant", "paper", "count"),
    [
        ("base", 1.361, 1_361_411_712),
        ("modality", 0.886, 886_028_544),
        ("full", 0.648, 648_343_296),
        ("split", 0.944, 944_418_816),
        # of this one the paper gives no size: "base", and for each of seven blocks four projections 2 D -> D
        ("uvit", 1.436, 1_361_411_712 + 7 * 4 * (2 * 1152**2 + 1152)),
    ],
)
def test_sizes_are_the_papers(variant: str, paper: float, count: int) -> None:
    recipe = find_recipe(f"flow_hwm_{variant}")()
    assert recipe.data.expects is not None
    with torch.device("meta"):
        model = recipe.model.build(recipe.data.expects)
    assert sum(p.numel() for p in model.parameters()) == count
    assert round(count / 1e9, 3) == paper
    assert (recipe.model.dim, recipe.model.depth, recipe.model.heads) == (1152, 15, 16)


@pytest.mark.parametrize("variant", ALL)
def test_every_weight_has_a_gradient_but_those_of_other_robots(variant: str) -> None:
    model = build(variant=variant, depth=3, unshared_layers=1)
    model.loss(toy_batch(model.spec, 3))[0].backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    # of the last block only the future video is read; what the others would ask for is in the paper's sizes
    idle = {f"blocks.2.qkv.{s}.norms.0.{p}" for s in CONTEXT for p in ("weight", "bias")}
    idle = idle if variant in ("base", "uvit") else set()
    assert {n for n in silent if "hand_v2" not in n} == idle


@pytest.mark.parametrize("clean_context", [False, True])
@pytest.mark.parametrize("variant", ALL)
def test_every_action_and_every_known_step_reaches_the_sample(variant: str, clean_context: bool) -> None:
    model = build(variant=variant, clean_context=clean_context)
    batch = window(model)
    before = sample(model, batch)
    for t in range(3):
        for k in range(2):
            actions = batch.actions.clone()
            actions[:, t, k] += 1.0
            assert (sample(model, replace(batch, actions=actions)) - before).abs().max() > 1e-4
    for t in range(2):
        latents = batch.latents.clone()
        latents[:, t, :, 0, 0] += 1.0
        assert (sample(model, replace(batch, latents=latents)) - before).abs().max() > 1e-4


def test_the_tables_say_who_reads_whom() -> None:
    """One block: a change of one stream's tokens moves those streams, and only those, that the row lets read it."""
    for name, row in FLOW_ROWS.items():
        model = build(variant=name, depth=2, unshared_layers=0)
        block = model.blocks[0]
        batch = window(model)
        context = model.observe(batch.latents, batch.actions, "arm", torch.ones(2))
        x = {FUTURE_VIDEO: torch.randn(2, 4, 32), **context.x}
        times = dict.fromkeys(STREAMS, torch.randn(2, 32))
        before, _ = block(x, times, context.tables)
        for changed in STREAMS:
            after, _ = block({**x, changed: x[changed] + torch.randn_like(x[changed])}, times, context.tables)
            moved = {s for s in STREAMS if (after[s] - before[s]).abs().max() > 1e-6}
            readers = {s for group in row.groups if changed in group for s in group}
            readers |= {FUTURE_VIDEO} if row.cross else set()
            assert moved == readers, (name, changed)


def test_streams_share_weights_as_the_tables_say() -> None:
    model = build(variant="modality", depth=3, unshared_layers=1)
    names = [sorted(block.qkv) for block in model.blocks]
    assert names == [sorted(STREAMS), ["action", "video"], ["action", "video"]]
    assert [sorted(b.mlp) for b in model.blocks] == [sorted(STREAMS), ["action", "video"], ["video"]]
    assert [sorted(b.qkv) for b in build(variant="full", depth=2).blocks] == [sorted(STREAMS), ["shared"]]


def test_as_built_the_blocks_are_the_identity_and_the_loss_is_that_of_the_projections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Tensor] = []
    for module, name in ((flow, "normal"), (shortcut, "draw_times")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real: drawn.append(real(*a)) or drawn[-1])
    for variant in ALL:
        drawn.clear()
        model = build(moved=False, variant=variant, depth=3)
        batch = toy_batch(model.spec, 3)
        loss, metrics = model.loss(batch)
        noise, t = drawn
        data = batch.latents[:, 2:]
        assert noise.shape == data.shape
        x = (1 - t.view(-1, 1, 1, 1, 1)) * noise + t.view(-1, 1, 1, 1, 1) * data
        tokens = model.patch_future(patches(x, 2))
        if variant == "uvit":  # one skip, which joins what is twice the same
            skip = model.skips[0][FUTURE_VIDEO]
            tokens = tokens @ (skip.weight[:, :32] + skip.weight[:, 32:]).T + skip.bias
        target = data - noise
        want = (unpatched(model.final(F.layer_norm(tokens, (32,), eps=1e-6)), 2) - target).square().mean()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(metrics["explained"], 1 - want.detach() / target.square().mean())


def test_a_u_vit_joins_the_last_block_with_the_first() -> None:
    model = build(variant="uvit", depth=5)
    batch = window(model)
    before = sample(model, batch)
    seen: list[list[str]] = []
    for skip in model.skips:
        skip[FUTURE_VIDEO].register_forward_hook(lambda *_: seen[-1].append("skip"))
    for block in model.blocks:
        block.register_forward_hook(lambda *_: seen[-1].append("block"))
    left: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda _, args, out: left.append(out[0][FUTURE_VIDEO]))
    joined: list[Tensor] = []
    model.skips[1][FUTURE_VIDEO].register_forward_hook(lambda _, args, out: joined.append(args[0][..., 32:]))
    seen.append([])
    assert torch.equal(sample(model, batch, steps=2), before)
    assert seen[-1] == ["block"] * 3 + ["skip", "block"] * 2 + ["block"] * 3 + ["skip", "block"] * 2
    assert all(torch.equal(a, b) for a, b in zip(left, joined, strict=True))
    for depth in (1, 4):
        with pytest.raises(HwmError, match=f"depth={depth}"):
            build(variant="uvit", depth=depth)


@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("solver", SOLVERS)
def test_guidance_has_a_part_in_every_step_and_the_batch_stays(
    variant: str, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(variant=variant)
    batch = window(model)
    seen: list[tuple[Tensor, Tensor]] = []
    velocity = model.velocity

    def noted(context: Any, x: Tensor, *when: Tensor) -> Tensor:
        seen.append((x, velocity(context, x, *when)))
        return seen[-1][1]

    monkeypatch.setattr(model, "velocity", noted)
    out = sample(model, batch, steps=4, solver=solver, guidance=3.0)
    assert len(seen) == 4 * (1 if solver == "euler" else 2)
    for x, v in seen:
        assert torch.equal(*x.chunk(2)), "both velocities are of the same point"
        hidden, shown = v.chunk(2)
        assert (hidden - shown).abs().max() > 1e-3, "the condition is there at every step"
    assert all(not torch.equal(a[0], b[0]) for a, b in pairwise(seen)), "each step moves on"
    other = window(model, seed=1)
    torch.testing.assert_close(sample(model, other, guidance=0.0), sample(model, batch, guidance=0.0))
    assert not torch.allclose(sample(model, batch, steps=4, solver=solver, guidance=1.0), out)


def test_guidance_of_one_is_the_conditional_velocity_alone() -> None:
    model = build()
    batch = window(model)
    torch.testing.assert_close(sample(model, batch, guidance=1.0), sample(model, batch, guidance=1.0 + 1e-6))


def test_dropped_examples_see_nothing_of_their_condition() -> None:
    model = build(condition_dropout=0.99999)
    a, b = toy_batch(model.spec, 3, seed=0), toy_batch(model.spec, 3, seed=1)
    mixed = Batch(torch.cat([b.latents[:, :2], a.latents[:, 2:]], 1), b.actions, "arm")
    torch.manual_seed(0)
    one = model.loss(a)[0]
    torch.manual_seed(0)
    assert torch.equal(model.loss(mixed)[0], one)
    model = build(condition_dropout=0.0)
    torch.manual_seed(0)
    one = model.loss(a)[0]
    torch.manual_seed(0)
    assert not torch.equal(model.loss(mixed)[0], one)


def test_a_settled_context_goes_through_the_blocks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**changes: Any) -> list[set[str]]:
        model = build(**changes)
        passes: list[set[str]] = []
        block = model.blocks[0]
        forward = block.forward
        monkeypatch.setattr(block, "forward", lambda x, *rest: passes.append(set(x)) or forward(x, *rest))
        sample(model, window(model), steps=3)
        return passes

    assert run(variant="split", clean_context=True) == [set(CONTEXT), *[{FUTURE_VIDEO}] * 3]
    assert run(variant="split") == [set(STREAMS)] * 3
    assert run(variant="full", clean_context=True) == [set(STREAMS)] * 3


def test_running_the_context_once_changes_no_velocity() -> None:
    model = build(variant="split", clean_context=True)
    batch = window(model)
    once = sample(model, batch, steps=3)
    model.settled = False
    torch.testing.assert_close(sample(model, batch, steps=3), once)


def test_the_context_of_the_split_variant_sees_nothing_of_the_future_steps() -> None:
    model = build(variant="split", clean_context=True)
    batch = window(model)
    contexts = []
    old, new = slice(0, 2 * 4 + 2 * 2), slice(2 * 4 + 2 * 2, None)  # past video and past actions, future actions
    assert CONTEXT == (PAST_VIDEO, PAST_ACTION, FUTURE_ACTION)
    for actions in (batch.actions, batch.actions + torch.tensor([0.0, 0.0, 1.0])[None, :, None, None]):
        contexts.append(model.observe(batch.latents, actions, "arm", torch.ones(2)).memory)
    for (k1, v1), (k2, v2) in zip(*contexts, strict=True):
        assert torch.equal(k1[:, :, old], k2[:, :, old])
        assert torch.equal(v1[:, :, old], v2[:, :, old])
        assert not torch.equal(v1[:, :, new], v2[:, :, new])


@given(shift=st.integers(1, 40), stride=st.sampled_from([1, 2, 4]))
def test_an_action_has_the_time_of_its_step(shift: int, stride: int) -> None:
    acts = ActionTokens(toy_spec(channels=4, stride=stride, per_step=4), 8).times(3, 4)
    first = 4 // stride
    assert acts == tuple(t / 4 - 1 for t in range(5 - first, 13))
    assert (acts[first - 1], acts[first + 3], acts[-1]) == (0.0, 1.0, 2.0), "the last action that leads to a step"
    # scores of video and actions depend on the difference of their times alone
    q, k = torch.randn(16), torch.randn(16)
    now = rope_3d((2.0,), (2, 2), 16, CPU, centred=True), rope_3d((1.5,), (1, 1), 16, CPU, centred=True)
    later = (
        rope_3d((2.0 + shift,), (2, 2), 16, CPU, centred=True),
        rope_3d((1.5 + shift,), (1, 1), 16, CPU, centred=True),
    )
    scores = [rotate(q.expand(4, 16), video) @ rotate(k[None], action)[0] for video, action in (now, later)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate(k[None], later[1]).norm(), k.norm())


@given(patch=st.sampled_from([1, 2, 4]), steps=st.integers(1, 3), channels=st.integers(1, 5))
def test_patches_are_row_column_channel_and_come_back(patch: int, steps: int, channels: int) -> None:
    x = torch.randn(2, steps, channels, 4, 8)
    p = patches(x, patch)
    assert p.shape == (2, steps, 4 // patch, 8 // patch, patch * patch * channels)
    assert torch.equal(p[0, 0, 0, 0, :channels], x[0, 0, :, 0, 0])
    assert torch.equal(p[..., -channels:], x[:, :, :, patch - 1 :: patch, patch - 1 :: patch].permute(0, 1, 3, 4, 2))
    assert torch.equal(unpatched(p, patch), x)


def test_statistics_of_the_data_take_units_away() -> None:
    """Other units of the same data, told by the spec, give the same loss and the same sample in those units."""
    plain = build()
    mean, std = torch.tensor([1.0, -2.0, 3.0, 0.5]), torch.tensor([2.0, 0.5, 3.0, 1.0])
    spec = replace(plain.spec, latent_mean=tuple(mean.tolist()), latent_std=tuple(std.tolist()))
    other = build(spec)
    clip = toy_batch(plain.spec, 3)

    def converted(x: Tensor) -> Tensor:
        return x * std[:, None, None] + mean[:, None, None]

    losses = []
    for model, batch in ((plain, clip), (other, replace(clip, latents=converted(clip.latents)))):
        torch.manual_seed(0)
        losses.append(model.loss(batch)[0])
    torch.testing.assert_close(*losses)
    batch = window(plain)
    found = sample(other, replace(batch, latents=converted(batch.latents)))
    torch.testing.assert_close(found, converted(sample(plain, batch)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", ["flow", "shortcut"])
@pytest.mark.parametrize("variant", ["split", "uvit"])
def test_the_model_is_conditioned_on_its_step_size(variant: str, objective: str) -> None:
    model = build(variant=variant, objective=objective, self_consistency=0.5, clean_context=True)
    batch = window(model)
    context = model.observe(batch.latents, batch.actions, "arm", torch.ones(2))
    x, t = torch.randn(2, 1, 4, 4, 4), torch.full((2,), 0.25)
    now, none, half = (model.velocity(context, x, t, *size) for size in ((), (0 * t,), (2 * t,)))
    assert torch.equal(now, none)
    assert torch.equal(now, half) == (objective == "flow")
    assert (sum(p.numel() for n, p in model.named_parameters() if n.startswith("span")) > 0) == (objective != "flow")
    torch.manual_seed(0)
    loss, _ = model.loss(toy_batch(model.spec, 3))
    loss.backward()
    assert loss.isfinite()


def test_as_many_examples_are_self_consistent_as_asked_for_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    real = flow.training_targets
    monkeypatch.setattr(flow, "training_targets", lambda o, n, *rest: counts.append(n) or real(o, n, *rest))
    model = build(objective="shortcut", self_consistency=0.3, depth=1)
    for seed in range(60):
        torch.manual_seed(seed)
        model.loss(toy_batch(model.spec, 3))
    assert set(counts) == {0, 1}, "0.3 of 2"
    assert sum(counts) / len(counts) == pytest.approx(0.6, abs=0.2)


def test_operations_of_self_consistent_examples_can_be_counted() -> None:
    """The progress line counts them, by hooks that stumble over passes without gradient if anything in them has one."""
    model = build(objective="shortcut", self_consistency=0.99, direct=True)
    for seed in range(3):
        torch.manual_seed(seed)
        with FlopCounterMode(display=False) as flops:
            model.loss(toy_batch(model.spec, 3))[0].backward()
        assert flops.get_total_flops() > 0


def test_rows_of_a_context_are_contexts() -> None:
    model = build(variant="split", clean_context=True, direct=True)
    batch = toy_batch(model.spec, 3, batch=4)
    x, t = torch.randn(4, 1, 4, 4, 4), torch.rand(4)
    context = model.observe(batch.latents[:, :2], batch.actions, "arm", torch.ones(4))
    assert context.memory is not None
    part = slice(1, 3)
    want = model.velocity(context, x, t)[part]
    torch.testing.assert_close(model.velocity(context.rows(part), x[part], t[part]), want, atol=1e-5, rtol=1e-5)


def test_tokens_of_missing_steps_are_told_directly_of_the_last_step_and_of_its_actions_unless_hidden() -> None:
    model = build(direct=True, horizon=2)
    shown: list[Tensor] = []
    told: list[Tensor] = []
    model.patch_future.register_forward_hook(lambda _, args, out: shown.extend((args[0], out)))
    model.blocks[0].register_forward_hook(lambda _, args, out: told.append(args[0]))
    batch = window(model)
    sample(model, batch, guidance=2.0, steps=1)
    channels = shown[0].unflatten(-1, (4, 8))[..., 4:]  # of each cell of a patch: the noise's channels, then the last's
    hidden, seen = channels.chunk(2)
    assert not hidden.any()
    last = patches(batch.latents[:, 1:], 2).unflatten(-1, (4, 4))
    assert torch.equal(seen, last.expand_as(seen))
    added = told[0][FUTURE_VIDEO] - shown[1].flatten(1, 3)  # (2 B, 2 steps x 4 patches, D)
    first, second = told[0][FUTURE_ACTION].unflatten(1, (2, 2)).mean(2).unbind(1)
    torch.testing.assert_close(added[:, :4], first[:, None].expand(-1, 4, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(added[:, 4:], (first + second)[:, None].expand(-1, 4, -1), atol=1e-5, rtol=1e-5)
    assert torch.equal(first[0], first[1]), "hidden actions are the mean ones"


def test_any_horizon_trains_on_every_number_of_missing_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(horizon=3, any_horizon=True)
    lengths: list[int] = []
    velocity = model.velocity
    monkeypatch.setattr(model, "velocity", lambda c, x, *a: lengths.append(x.shape[1]) or velocity(c, x, *a))
    batch = toy_batch(model.spec, 5)
    for seed in range(20):
        torch.manual_seed(seed)
        model.loss(batch)
    assert set(lengths) == {1, 2, 3}
    model.config = replace(model.config, any_horizon=False)
    lengths.clear()
    model.loss(batch)
    assert lengths == [3]


@pytest.mark.parametrize("variant", ALL)
def test_an_overfitted_clip_is_reproduced_above_30_db(variant: str) -> None:
    """Two clips of pictures with one past and other actions: the sampler gives each its own future."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1.5, 4), torch.linspace(0, 1.5, 4), indexing="ij")
    phase = torch.tensor([[0.0, 0.3, 1.5], [0.0, 0.3, -0.9]])[:, :, None, None, None]
    video = 0.5 + 0.4 * torch.sin(x + 2 * y + phase + torch.arange(3.0)[:, None, None])  # (2, 3, 3, 4, 4)
    arm = ActionSpec(1, ("turn",), (0.0,), (1.0,))
    spec = DataSpec(LatentSpec((4, 4), channels=3), {"arm": arm}, "pixels-4x4", 10.0, (0.5,) * 3, (0.28,) * 3)
    actions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])[:, :, None, None]
    model = build(spec, moved=False, variant=variant, condition_dropout=0.0)
    many = Batch(video.repeat(32, 1, 1, 1, 1), actions.repeat(32, 1, 1, 1), "arm")
    steps = 200
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model(many)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    for solver in SOLVERS:
        found = sample(model, Batch(video[:, :2], actions, "arm"), steps=20, solver=solver, guidance=1.0)
        assert psnr(found, video[:, 2:]).min() > 30, solver
        assert psnr(found, video[:, 2:].flip(0)).max() < 15, "not the other's"


def test_the_adaptive_solver_draws_what_many_small_steps_draw() -> None:
    pytest.importorskip("torchdiffeq")
    model = build()
    batch = window(model)
    fine = sample(model, batch, solver="midpoint", steps=400)
    torch.testing.assert_close(sample(model, batch, solver="dopri5", tolerance=1e-6), fine, atol=2e-3, rtol=2e-3)


def test_mistakes_are_told() -> None:
    with pytest.raises(HwmError, match="continuous"):
        FlowHWM.tiny().build(toy_spec())
    with pytest.raises(HwmError, match="patches of 3 x 3"):
        build(patch=3)
    with pytest.raises(HwmError, match="condition_dropout=1"):
        build(condition_dropout=1.0)
    with pytest.raises(HwmError, match="self_consistency=2"):
        build(objective="shortcut", self_consistency=2.0)
    model = build()
    with pytest.raises(HwmError, match="1 to 1 steps from 1 to 2"):
        model.predict(window(model, past=3))
    batch = window(model)
    with pytest.raises(HwmError, match="B, T, 4, H, W"):
        model.predict(replace(batch, latents=batch.latents[:, :, :3]))
