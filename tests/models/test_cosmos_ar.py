"""Cosmos-Predict1's autoregressive models: their outputs beside recorded ones, and what each part promises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwm.convert.cosmos_ar import SIZES
from hwm.errors import HwmError
from hwm.evaluate.scenarios import SCENARIOS
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.cosmos_decoder import Decoder
from hwm.models.cosmos_texts import Text
from hwm.nn.gqa import GroupedAttention, RMSNorm, attend_grouped
from hwm.objectives.next_token import NextTokenSampler
from hwm.recipes import find_recipe
from hwm.types import Batch, DataSpec, LatentSpec
from tests.models.toys import LEVELS, toy_batch, toy_spec

CPU = torch.device("cpu")
GREEDY = NextTokenSampler(temperature=0.0)
TEXT: dict[str, Any] = {"context_dim": 6, "absolute": "float32", "begin": True}


def build(seed: int = 0, spec: DataSpec | None = None, **changes: Any) -> CosmosAR:
    """A tiny model, every parameter away from zero and one, so that each of them matters."""
    torch.manual_seed(seed)
    model = replace(CosmosAR.tiny(), **changes).build(spec or toy_spec())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def states(model: CosmosAR, batch: Batch) -> Tensor:
    """Of all tokens but the last, in one pass."""
    ids = model.sequence(batch.latents)[:, :-1]
    with torch.no_grad():
        return model.hidden(ids, model.grid(batch.latents.shape[1]), actions_BTD=model.embed_actions(batch))


# ---------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("4B", 4_014_088_192, 179),
        ("12B", 11_560_975_360, 443),
        ("5B-Video2World", 4_584_845_312, 291),
        ("13B-Video2World", 13_323_125_760, 723),
    ],
)
def test_sizes_and_names_are_the_published_ones(name: str, parameters: int, tensors: int) -> None:
    published = SIZES[name]
    with torch.device("meta"):
        model = published.config(torch.bfloat16).build(published.spec())
    state = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    assert sum(map(math.prod, state.values())) == parameters == sum(p.numel() for p in model.parameters())
    assert len(state) == tensors
    assert not list(model.buffers())
    wide, text = "12B" in name or "13B" in name, "Video2World" in name
    dim = 5120 if wide else 4096
    layer = {
        "attention_norm": (dim,), "ffn_norm": (dim,), "attention.wq": (4096, dim), "attention.wo": (dim, 4096),
        "attention.wk": (1024, dim), "attention.wv": (1024, dim), "attention.q_norm": (128,),
        "attention.k_norm": (128,), "feed_forward.w1": (14336, dim), "feed_forward.w3": (14336, dim),
        "feed_forward.w2": (dim, 14336),
    }  # fmt: skip
    if text:
        layer |= {
            "cross_attention_norm": (dim,), "cross_attention.wq": (4096, dim), "cross_attention.wo": (dim, 4096),
            "cross_attention.wk": (1024, 1024), "cross_attention.wv": (1024, 1024), "cross_attention.q_norm": (128,),
            "cross_attention.k_norm": (128,),
        }  # fmt: skip
    rows = 64_064 if text else 64_000
    expected = {"tok_embeddings.weight": (rows, dim), "norm.weight": (dim,), "output.weight": (64_000, dim)}
    expected |= {f"layers.{i}.{key}.weight": shape for i in range(published.n_layers) for key, shape in layer.items()}
    assert state == expected
    recipe = find_recipe(f"cosmos_ar_{name.split('-')[0].lower()}")()
    assert recipe.data.expects is not None
    with torch.device("meta"):
        ours = recipe.model.build(recipe.data.expects)
    assert {key: tuple(x.shape) for key, x in ours.state_dict().items()} == state
    same = ("dim", "depth", "heads", "kv_heads", "head_dim", "mlp_dim", "absolute", "begin", "context_dim", "yarn")
    assert all(getattr(model.config, key) == getattr(recipe.model, key) for key in same)


# ---------------------------------------------------------------------- attention
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(0, 5), st.integers(0, 99))
def test_grouped_attention_is_attention_with_repeated_keys(g: int, r: int, new: int, old: int, seed: int) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(2, g * r, new, 8), torch.randn(2, g, old + new, 8), torch.randn(2, g, old + new, 8)
    every_k, every_v = (x.repeat_interleave(r, 1) for x in (k, v))
    scores = q @ every_k.transpose(-1, -2) / 8**0.5
    hidden = ~torch.ones(new, old + new, dtype=torch.bool).tril(old)
    expected = scores.masked_fill(hidden, -math.inf).softmax(-1) @ every_v
    torch.testing.assert_close(attend_grouped(q, k, v, causal=True), expected)
    mask = torch.rand(2, old + new) < 0.7
    mask[:, 0] = True
    expected = scores.masked_fill(~mask[:, None, None], -math.inf).softmax(-1) @ every_v
    torch.testing.assert_close(attend_grouped(q, k, v, causal=False, mask_BM=mask), expected)


def test_heads_must_share_evenly() -> None:
    with pytest.raises(HwmError, match="5 query heads do not share 2 heads of keys evenly"):
        GroupedAttention(16, 5, 2, 8, 1e-5)


def test_the_norm_rounds_before_its_weight() -> None:
    norm, x = RMSNorm(64, 1e-5, torch.bfloat16), torch.randn(5, 64).bfloat16()
    torch.nn.init.normal_(norm.weight)
    exact = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.equal(norm(x), exact.bfloat16() * norm.weight)


# ---------------------------------------------------------------------- one token after another
@settings(max_examples=15)
@given(st.integers(1, 30), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_no_token_depends_on_later_ones(changed: int, text: bool, actions: bool, seed: int) -> None:
    model, batch = build(seed, actions=actions, **(TEXT if text else {})), toy_batch(toy_spec(), 2, seed=seed)
    other = batch.latents.flatten(1).clone()
    other[:, changed:] = (other[:, changed:] + 1) % 60
    a, b = states(model, batch), states(model, Batch(other.view_as(batch.latents), batch.actions, "arm"))
    at = changed + int(text)
    torch.testing.assert_close(a[:, :at], b[:, :at], rtol=0, atol=1e-6)
    assert (a[:, at] - b[:, at]).abs().max() > 1e-4


@settings(max_examples=15)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_passes_over_parts_give_what_one_pass_gives(cuts: list[int], text: bool, yarn: bool, seed: int) -> None:
    model = build(seed, **(TEXT if text else {}), yarn_scale=2.0 if yarn else 1.0)
    batch = toy_batch(toy_spec(), 3, seed=seed)
    ids = model.sequence(batch.latents)[:, :-1]
    told = Text(torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]).bool()) if text else None
    with torch.no_grad():
        actions = model.embed_actions(batch)
        whole = model.hidden(ids, (3, 4, 4), text=told, actions_BTD=actions)
        decoder, parts = Decoder(model, (3, 4, 4), 2, actions, text=told), []
        while decoder.length < ids.shape[1]:
            size = cuts[len(parts) % len(cuts)]
            parts.append(decoder.feed(ids[:, decoder.length : decoder.length + size]))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_greedy_prediction_is_the_argmax_of_ever_longer_passes() -> None:
    model, batch = build(), toy_batch(toy_spec(), 3)
    made = model.predict(batch.window(0, 2, 3), sampler=GREEDY, logits=True)
    assert made.logits is not None
    with torch.no_grad():
        actions, ids = model.embed_actions(batch), batch.latents[:, :2].flatten(1)
        for i in range(16):
            logits = model.output(model.hidden(ids, (3, 4, 4), actions_BTD=actions)[:, -1])
            torch.testing.assert_close(made.logits.flatten(1, 3)[:, i], logits, rtol=1e-4, atol=1e-4)
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(made.latents.flatten(1), ids[:, 32:])


def test_a_cache_holds_the_given_tokens_but_the_last_and_may_serve_twice() -> None:
    model, batch, passed = build(), toy_batch(toy_spec(), 4), []
    first = model.predict(batch.window(0, 2, 3))
    model.layers[0].register_forward_hook(lambda block, args, out: passed.append(args[0].shape[1]))
    again = [model.predict(batch.window(0, 3, 4), logits=True, cache=first.cache).logits for _ in range(2)]
    assert passed == [17, *[1] * 15] * 2
    assert torch.equal(*again)  # type: ignore[arg-type]
    fresh = model.predict(batch.window(0, 3, 4), logits=True).logits
    torch.testing.assert_close(again[0], fresh, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"factorized": True}, {"actions": False}, TEXT])
def test_rollouts_with_and_without_cache_are_alike_beyond_the_window(changes: dict[str, Any]) -> None:
    model, full = build(**changes, past=4, window_stride=2), toy_batch(toy_spec(), 8)
    batch = Batch(full.latents[:, :2], full.actions, "arm")
    one, two = (model.rollout(batch, sampler=GREEDY, logits=True, use_cache=use) for use in (True, False))
    assert torch.equal(one.latents, two.latents)
    torch.testing.assert_close(one.logits, two.logits, rtol=1e-4, atol=1e-4)


def test_several_steps_at_once_are_one_after_another() -> None:
    model, full = build(horizon=2, past=4), toy_batch(toy_spec(), 4)
    batch = Batch(full.latents[:, :2], full.actions, "arm")
    both = model.predict(batch, sampler=GREEDY).latents
    first = model.predict(full.window(0, 2, 3), sampler=GREEDY).latents
    assert torch.equal(both[:, :1], first)
    seen = Batch(torch.cat([batch.latents, first], 1), full.actions, "arm")
    assert torch.equal(both[:, 1:], model.predict(seen, sampler=GREEDY).latents)


def test_half_precision_stays_near() -> None:
    model, batch = build(), toy_batch(toy_spec(), 3)
    window = batch.window(0, 2, 3)
    exact = model.predict(window, sampler=GREEDY, logits=True).logits
    assert exact is not None
    with torch.autocast("cpu", torch.bfloat16):
        half = model.predict(window, sampler=GREEDY, logits=True).logits
    assert half is not None
    first = (0, 0, 0)  # later ones follow other tokens where a choice was close
    assert (half[:, *first] - exact[:, *first]).abs().max() < 0.1 * exact.abs().max()
    small = build(dtype="bfloat16")
    small.load_state_dict(model.state_dict())
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    kept = small.predict(window, sampler=GREEDY, logits=True)
    assert kept.logits is not None
    assert kept.logits.dtype == torch.bfloat16
    assert (kept.logits[:, *first] - exact[:, *first]).abs().max() < 0.1 * exact.abs().max()
    assert small.loss(batch)[0].isfinite()


# ---------------------------------------------------------------------- the loss and what is told
def test_the_loss_is_of_every_token_after_the_first_step() -> None:
    model, batch = build(), toy_batch(toy_spec(), 4)
    told = model.teacher_forced(batch, 1)
    nll = told.cross_entropy(batch.latents[:, 1:])
    assert nll is not None
    torch.testing.assert_close(model.loss(batch)[0], nll.mean())


def test_a_large_vocabulary_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwm.objectives import maskgit

    model, batch, rows = build(), toy_batch(toy_spec(), 4), []
    whole = model.loss(batch)[0]
    whole.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    monkeypatch.setattr(maskgit, "LOGITS_AT_ONCE", 60 * 7)
    model.output.register_forward_hook(lambda head, args, out: rows.append(len(args[0])))
    pieces = model.loss(batch)[0]
    pieces.backward()
    torch.testing.assert_close(whole, pieces)
    assert max(rows) <= 96  # but for the accuracy, of some tokens
    assert sum(1 for n in rows if n <= 7) >= 2 * math.ceil(96 / 7) - 1
    for a, b in zip(gradients, [p.grad for p in model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("changes", [{}, {"factorized": True}, TEXT])
def test_every_parameter_that_can_have_a_gradient_has_one(changes: dict[str, Any]) -> None:
    model, batch = build(**changes), toy_batch(toy_spec(), 4)
    model(batch)[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == ["actions.read.hand_v2.weight",
                                                                          "actions.read.hand_v2.bias"]  # fmt: skip


def test_told_the_truth_windows_are_those_of_a_rollout() -> None:
    model, batch = build(past=3, window_stride=2), toy_batch(toy_spec(), 7)
    told = model.teacher_forced(batch, 2)
    assert told.latents.shape == (2, 5, 4, 4)
    assert told.logits is not None
    assert torch.equal(told.latents, told.logits.argmax(-1))
    for t in range(2, 7):
        start = model.window_start(t)
        first = model.predict(batch.window(start, t, t + 1), sampler=GREEDY, logits=True).logits
        assert first is not None
        torch.testing.assert_close(told.logits[:, t - 2, 0, 0], first[:, 0, 0, 0], rtol=1e-4, atol=1e-4)
    for prompt in (0, 7):
        with pytest.raises(HwmError, match="a prompt of"):
            model.teacher_forced(batch, prompt)


@pytest.mark.parametrize("factorized", [False, True])
@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_every_scenario_runs(name: str, factorized: bool) -> None:
    model, batch = build(factorized=factorized), toy_batch(toy_spec(), 6)
    made = SCENARIOS[name](model, batch, 2, logits=True)
    assert made.latents.shape == (2, 4, 4, 4)
    ce = made.cross_entropy(batch.latents[:, 2:])
    assert ce is not None
    assert ce.isfinite().all()
    assert made.levels == (LEVELS if factorized else ())


# ---------------------------------------------------------------------- actions
@settings(max_examples=15)
@given(st.integers(1, 3), st.booleans(), st.integers(0, 1000))
def test_an_action_reaches_all_tokens_of_its_step_and_none_before(step: int, begin: bool, seed: int) -> None:
    model, batch = build(seed, begin=begin), toy_batch(toy_spec(), 4, seed=seed)
    actions = batch.actions.clone()
    actions[:, step] += 1
    told = [model.teacher_forced(Batch(batch.latents, a, "arm"), 1).logits for a in (batch.actions, actions)]
    assert told[0] is not None
    assert told[1] is not None
    moved = (told[0] - told[1]).abs().amax((0, -1)).flatten(1)  # (step, cell)
    assert (moved[: step - 1] < 1e-5).all()
    assert (moved[step - 1 :] > 1e-5).all()


def test_without_actions_those_of_any_robot_will_do() -> None:
    model = build(spec=DataSpec(toy_spec().latent, {}), actions=False)
    batch = toy_batch(toy_spec(), 3)
    other = Batch(batch.latents, torch.randn(2, 3, 7, 9), "somebody")
    assert not [name for name, _ in model.named_parameters() if "action" in name]
    a, b = (model.predict(x.window(0, 2, 3), sampler=GREEDY).latents for x in (batch, other))
    assert torch.equal(a, b)
    with pytest.raises(HwmError, match="the model knows the embodiments"):
        build().predict(Batch(batch.latents[:, :2], batch.actions, "leg"))


# ---------------------------------------------------------------------- text
def test_of_every_second_block_alone_a_text_is_read() -> None:
    """The same as a model all of whose blocks read it, where what the others have read is taken from them."""
    some, every = (build(**TEXT, depth=4, context_every=k) for k in (2, 1))
    missing, unknown = every.load_state_dict(some.state_dict(), strict=False)
    assert {key.split(".")[1] for key in missing} == {"1", "3"}
    assert not unknown
    with torch.no_grad():
        for i in (1, 3):
            every.layers[i].cross_attention.wo.weight.zero_()
    ids, grid, text = torch.randint(some.vocab, (1, 1 + 24)), (3, 2, 4), Text(torch.randn(1, 3, 6))
    with torch.no_grad():
        logits = some.logits(ids, grid, text)
        torch.testing.assert_close(logits, every.logits(ids, grid, text))
        other = some.logits(ids, grid, Text(torch.randn(1, 3, 6)))
        assert not torch.allclose(logits, other, atol=1e-3)
        decoder = Decoder(some, grid, 1, text=text)
        parts = [some.output(decoder.feed(part)) for part in ids.split([9, 1, 15], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), logits)


def test_a_text_is_read_and_none_is_as_one_of_zeros() -> None:
    model, ids = build(**TEXT), torch.randint(60, (2, 20))
    ids[:, 0] = 60
    told = Text(torch.randn(2, 5, 6), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool())
    cut = Text(told.context[:, :2])
    with torch.no_grad():
        a, b, c, zero = (model.logits(ids, (2, 4, 4), x) for x in (told, cut, None, Text(torch.zeros(2, 3, 6))))
    torch.testing.assert_close(a[0], b[0])
    assert (a[1] - b[1]).abs().max() > 1e-4
    assert (a - c).abs().max() > 1e-4
    torch.testing.assert_close(c, zero)


# ---------------------------------------------------------------------- sampling
def test_rows_with_their_own_generators_are_drawn_by_themselves() -> None:
    model, batch, sampler = build(), toy_batch(toy_spec(), 3).window(0, 2, 3), NextTokenSampler()
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    both = model.predict(batch, sampler=sampler, generator=seeds).latents
    for i in range(2):
        alone = Batch(batch.latents[i : i + 1], batch.actions[i : i + 1], "arm")
        one = model.predict(alone, sampler=sampler, generator=[torch.Generator().manual_seed(i)]).latents
        assert torch.equal(one[0], both[i])
    other = model.predict(batch, sampler=sampler, generator=[torch.Generator().manual_seed(i + 9) for i in range(2)])
    assert not torch.equal(other.latents, both)


# ---------------------------------------------------------------------- mistakes
def test_any_grid_will_do_and_must_hold_the_tokens() -> None:
    model, ids = build(actions=False), torch.randint(60, (1, 24))
    with torch.no_grad():
        wide, high = model.logits(ids, (2, 2, 6)), model.logits(ids, (2, 6, 2))
        assert (wide - high).abs().max() > 1e-4, "the grid says where a token is"
        torch.testing.assert_close(model.logits(ids, (9, 2, 6)), wide)
    with pytest.raises(HwmError, match=r"tokens 0 to 24 are not of a grid of \(2, 3, 3\) .* which has 18"):
        model.logits(ids, (2, 3, 3))
    with pytest.raises(HwmError, match="19 with the one for its beginning"):
        build(begin=True, actions=False).logits(ids, (2, 3, 3))
    with pytest.raises(HwmError, match="a grid of"):
        model.predict(Batch(torch.zeros(1, 1, 3, 3, dtype=torch.long), torch.zeros(1, 2, 2, 3), "arm"))
    wide_model = build(spec=DataSpec(LatentSpec((2, 3), 11), toy_spec().actions))
    found = wide_model.predict(Batch(torch.randint(11, (2, 2, 2, 3)), torch.randn(2, 3, 2, 3), "arm"), logits=True)
    assert found.logits is not None
    assert found.logits.shape == (2, 1, 2, 3, 11)


def test_windows_and_clips_of_another_length_are_refused() -> None:
    model = build()
    for known, missing in ((4, 1), (2, 2)):
        with pytest.raises(HwmError, match="predicts 1 to 1 steps from 1 to 3"):
            model.predict(toy_batch(toy_spec(), 6).window(0, known, known + missing))
    for steps in (1, 5):
        with pytest.raises(HwmError, match="trains on clips of 2 to past \\+ horizon = 4 steps"):
            model.loss(toy_batch(toy_spec(), steps))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_stride": 4}, "window_stride=4 must be between 1 and past=3"),
        ({"factorized": True, "begin": True}, "needs begin=False"),
        ({"kv_heads": 3}, "do not share 3 heads"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmError, match=message):
        build(**changes)
    with pytest.raises(HwmError, match="needs discrete latents"):
        build(spec=toy_spec(channels=4))
