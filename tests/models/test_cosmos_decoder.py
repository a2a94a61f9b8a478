"""Decoding: passes of fixed shapes, captured and compiled, and texts from files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwm.errors import HwmError
from hwm.models import cosmos_ar, cosmos_step
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.cosmos_decoder import Decoder
from hwm.models.cosmos_texts import Text
from hwm.nn.gqa import ABSENT, MARKS, MarkedMemory, attend_grouped
from hwm.objectives.next_token import GREEDY, NextTokenSampler
from hwm.types import Batch
from tests.models.test_cosmos_ar import TEXT, build
from tests.models.toys import toy_batch, toy_spec
from tests.pretend.device import pretending
from tests.pretend.tensors import Card

SAMPLER = NextTokenSampler(temperature=0.9, top_p=0.8, top_k=40)
GRID = (3, 4, 4)


def told_by(decoder: Decoder, ids: Tensor, prompt: int) -> Tensor:
    """Logits (B, L - P + 1, V) after a prompt in one pass, and after each later token in one of its own."""
    parts = [ids[:, :prompt], *ids[:, prompt:].split(1, 1)]
    with torch.inference_mode():
        return torch.stack([decoder.next_logits(part) for part in parts], 1)


# ---------------------------------------------------------------------- passes of fixed shapes
@settings(max_examples=12)
@given(st.integers(1, 20), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_passes_of_fixed_shapes_give_what_others_give(prompt: int, text: bool, actions: bool, seed: int) -> None:
    model = build(seed, actions=actions, **(TEXT if text else {}))
    batch = toy_batch(toy_spec(), 3, seed=seed)
    ids = model.sequence(batch.latents)[:, :-1]
    told = Text(torch.randn(1, 5, 6), torch.tensor([[True, True, False, True, False]])) if text else None
    with torch.no_grad():
        embedded = model.embed_actions(batch)
    with mock.patch.object(cosmos_step, "BUCKET", 16):
        plain, fixed = (
            told_by(Decoder(model, GRID, 2, embedded, text=told, fixed=fixed), ids, prompt) for fixed in (False, True)
        )
    torch.testing.assert_close(fixed, plain, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 40), st.integers(0, 1000))
def test_places_without_a_token_weigh_nothing_at_all(known: int, seed: int) -> None:
    """Exactly, whatever lay there."""
    torch.manual_seed(seed)
    keys, values = (torch.randn(2, 3, 40, 8 + MARKS) for _ in range(2))
    keys[..., 8:], values[..., 8:] = ABSENT, 0
    keys[:, :, : known - 1, 8:] = 0
    q, k, v = torch.randn(2, 6, 1, 8), *torch.randn(2, 2, 3, 1, 8)
    at = torch.tensor([known - 1])
    others = keys.clone(), values.clone()
    others[0][:, :, known:, :8], others[1][:, :, known:, :8] = 50 * torch.randn(2, 2, 3, 40 - known, 8)
    memory, other = (MarkedMemory(*one, None) for one in ((keys, values), others))
    told = memory.read(q, k, v, at)
    assert torch.equal(told, other.read(q, k, v, at))
    before = (torch.cat([a[:, :, : known - 1, :8], b], 2) for a, b in ((keys, k), (values, v)))
    torch.testing.assert_close(told, attend_grouped(q, *before, causal=True))


def test_a_fixed_pass_says_where_its_grid_ends() -> None:
    model = build(actions=False)
    decoder = Decoder(model, (1, 4, 4), 1, fixed=True)
    told_by(decoder, torch.zeros(1, 16, dtype=torch.long), 1)
    with pytest.raises(HwmError, match="tokens 16 to 17 are not of a grid"):
        decoder.next_logits(torch.zeros(1, 1, dtype=torch.long))


class Noted(TorchDispatchMode):
    """Notes what runs, and the shapes of what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ran.append((str(func), [x.shape for x in tree_leaves(out) if isinstance(x, Tensor)]))
        return out


def test_what_runs_in_a_fixed_pass_does_not_depend_on_the_place() -> None:
    """A capture replays kernels as they were started once."""
    step = Decoder(build(actions=False), GRID, 1, fixed=True).step
    assert step is not None
    runs = []
    for place in (1, 7, 40):
        with torch.no_grad(), Noted() as noted:
            step(torch.tensor([[place]]), place, SAMPLER)
        runs.append(noted.ran)
    assert len(runs[0]) > 50
    assert runs[0] == runs[1] == runs[2]
    assert not [name for name, _ in runs[0] if "item" in name or "_local_scalar" in name or "nonzero" in name], (
        "nothing is waited for"
    )


def test_blocks_compile_without_breaks_and_once() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, batch = build(), toy_batch(toy_spec(), 3)
    ids = model.sequence(batch.latents)[:, :-1]
    with torch.no_grad():
        embedded = model.embed_actions(batch)
    plain = told_by(Decoder(model, GRID, 2, embedded, fixed=True), ids, 20)
    counter = CompileCounter()
    for block in model.units():
        block.compile(backend=counter, fullgraph=True)
    compiled = told_by(Decoder(model, GRID, 2, embedded, fixed=True), ids, 20)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 4, "one of the prompt and one of a token, whatever its place"
    torch._dynamo.reset()


# ---------------------------------------------------------------------- captures
@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """A card that is not there, whose captures are replayed."""
    monkeypatch.setattr(cosmos_step, "BUCKET", 16)
    with pretending("cuda") as found:
        yield found


def played(model: CosmosAR, half: bool = False, seed: int = 0, **options: Any) -> Tensor:
    """A rollout of four steps from two on, whose rows have generators of their own, wherever the model is.

    Not with a cache: attention of several tokens that follow others is out of the pretended card's sight.
    """
    device = model.tok_embeddings.weight.device
    full = toy_batch(toy_spec(), 6).to(device)
    generators = [torch.Generator(device).manual_seed(seed + i) for i in range(2)]
    options = {"sampler": SAMPLER, "generator": generators, "use_cache": False, **options}
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        return model.rollout(Batch(full.latents[:, :2], full.actions, "arm"), **options).latents.cpu()


def captures(model: CosmosAR) -> int:
    return sum(len(step.captures.graphs) for _, step, _ in model.kept.steps)


@pytest.mark.parametrize("changes", [{}, {"factorized": True}, {"actions": False}, TEXT])
@pytest.mark.parametrize("half", [False, True])
def test_what_is_replayed_is_what_is_computed(changes: dict[str, Any], half: bool, card: Card) -> None:
    model = build(**changes, past=4, window_stride=2)
    if changes == TEXT:
        model.text = Text(torch.randn(1, 5, 6), torch.tensor([[True, True, False, True, False]]))
    computed = played(model, half=half)
    assert not captures(model)
    with mock.patch.object(cosmos_ar, "Decoder", partial(Decoder, fixed=True)):
        fixed = played(model, half=half, use_cache=True)
    model.to(card.device)
    replayed = played(model, half=half)
    made = captures(model)
    assert 0 < made <= model.longest((1, 4, 4)), "one for each number of places"
    card.forget()
    assert torch.equal(played(model, half=half), replayed)
    assert captures(model) == made, "and those serve later frames and rollouts"
    assert card.kernels["graph"] == 4 * 15, "every token after the first of a step"
    # in half precision a choice that is close may be rounded to the other side, and what follows is another story
    for other in (replayed, fixed):
        assert torch.equal(other, computed) or (half and torch.equal(other[:, 2, 0, :2], computed[:, 2, 0, :2]))
    assert not torch.equal(played(model, half=half, seed=9), replayed)


@pytest.mark.parametrize("half", [False, True])
def test_captures_tell_what_the_weights_are_now(half: bool, card: Card) -> None:
    model = build().to(card.device)
    before = played(model, half=half, sampler=GREEDY)
    made, old = captures(model), model.kept.steps[0][1]
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    now = played(model, half=half, sampler=GREEDY)
    assert captures(model) == made
    assert torch.equal(now, played(copy.deepcopy(model), half=half, sampler=GREEDY))
    assert not torch.equal(now, before)
    model.load_state_dict(build(1).to(card.device).state_dict(), assign=True)
    moved = played(model, half=half, sampler=GREEDY)
    assert torch.equal(moved, played(build(1).to(card.device), half=half, sampler=GREEDY))
    assert model.kept.steps[-1][1] is not old, "weights that lie elsewhere are captured anew"


@pytest.mark.parametrize("half", [False, True])
def test_nothing_waits_for_a_token(half: bool, card: Card) -> None:
    model, batch = build().to(card.device), toy_batch(toy_spec(), 3).to(card.device)
    ids = model.sequence(batch.latents[:, :2])
    with torch.no_grad(), torch.autocast(card.kind, torch.bfloat16, enabled=half):
        decoder = Decoder(model, GRID, 2, model.embed_actions(batch))
        decoder.go_on(ids, 1, SAMPLER)
        card.forget()
        rows = [torch.Generator(card.device).manual_seed(i) for i in range(2)]
        told, _ = decoder.go_on(torch.cat([ids, ids[:, :1]], 1), 12, SAMPLER, rows)
    assert told.shape == (2, 12)
    assert not card.waits
    assert not card.uploads


def test_decoders_that_live_at_once_have_a_room_each() -> None:
    model, (ids, others) = build(actions=False), torch.randint(60, (2, 1, 30))
    alone = told_by(Decoder(model, GRID, 1, fixed=True), ids, 20)
    one = Decoder(model, GRID, 1, fixed=True)
    with torch.inference_mode():
        told = [one.next_logits(ids[:, :20])]
        two = Decoder(model, GRID, 1, fixed=True)
        assert two.step is not one.step
        two.next_logits(others[:, :25])
        told += [one.next_logits(ids[:, i : i + 1]) for i in range(20, 30)]
    assert torch.equal(torch.stack(told, 1), alone)
    kept = two.step
    del two
    assert Decoder(model, GRID, 1, fixed=True).step is kept
    assert Decoder(model, GRID, 2, fixed=True).step is not kept, "of another batch"


def test_tokens_that_were_taken_back_are_not_seen() -> None:
    model, (ids, others) = build(actions=False), torch.randint(60, (2, 1, 30))
    for fixed in (False, True):
        decoder = Decoder(model, GRID, 1, fixed=fixed)
        alone = told_by(decoder, ids, 20)
        decoder.rewind(20)
        told_by(decoder, others[:, :9], 1)
        decoder.rewind(20)
        again = told_by(decoder, ids[:, 20:], 1)
        torch.testing.assert_close(again, alone[:, 1:])


def test_what_is_no_number_stays_with_its_sequence() -> None:
    model, ids = build(actions=False), torch.randint(60, (1, 30))
    alone = told_by(Decoder(model, GRID, 1, fixed=True), ids, 20)
    decoder = Decoder(model, GRID, 1, fixed=True)
    for memory in decoder.memory:
        memory.keys.fill_(torch.inf)
        memory.values.fill_(torch.nan)
    step = decoder.step
    del decoder, memory
    again = Decoder(model, GRID, 1, fixed=True)
    assert again.step is step
    assert torch.equal(told_by(again, ids, 20), alone)


def test_what_a_cache_remembers_outlives_the_room() -> None:
    model, batch = build(), toy_batch(toy_spec(), 4)
    with mock.patch.object(cosmos_ar, "Decoder", partial(Decoder, fixed=True)):
        first = model.predict(batch.window(0, 2, 3), sampler=GREEDY).cache
        before = [(k.clone(), v.clone()) for k, v in first.memory]
        model.predict(batch.window(1, 3, 4), sampler=GREEDY)
    for old, now in zip(before, first.memory, strict=True):
        assert torch.equal(old[0], now[0])
        assert torch.equal(old[1], now[1])


def test_training_gives_back_what_decoding_keeps() -> None:
    model = build(actions=False)
    with torch.autocast("cpu", torch.bfloat16):
        decoder = Decoder(model, GRID, 1, fixed=True)
    assert model.kept.products
    assert model.kept.steps[0][1] is decoder.step
    assert not copy.deepcopy(model).kept.steps
    assert model.train() is model
    assert not model.kept.products
    assert not model.kept.steps


# ---------------------------------------------------------------------- half precision
def test_weights_that_are_cast_once_give_what_autocast_gives() -> None:
    for changes in ({}, {"factorized": True}, TEXT):
        model, batch = build(**changes), toy_batch(toy_spec(), 3)
        ids = model.sequence(batch.latents)[:, :-1]
        text = Text(torch.randn(1, 5, 6)) if changes == TEXT else None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            embedded = model.embed_actions(batch)
            expected = model.output(model.hidden(ids, GRID, text=text, actions_BTD=embedded))
            decoder = Decoder(model, GRID, 2, embedded, text=text)
            found = decoder.model.output(decoder.feed(ids).to(torch.bfloat16))
            assert torch.equal(found, expected)
            decoder.rewind(decoder.length - 1)
            with Noted() as noted:
                decoder.next_logits(ids[:, -1:])
        cast = [shapes[0].numel() for name, shapes in noted.ran if "_to_copy" in name]
        assert max(cast) <= 2 * 48, "states are cast, and no weights"
        assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, partial(torch.optim.AdamW, fused=True)])
def test_weights_are_cast_again_when_they_changed_and_only_then(optimizer: Any) -> None:
    model, batch = build(actions=False), toy_batch(toy_spec(), 3)

    def predicted() -> tuple[Tensor, list[tuple[int, ...]]]:
        with torch.autocast("cpu", torch.bfloat16), Noted() as noted:
            logits = model.predict(batch.window(0, 2, 3), sampler=GREEDY, logits=True).logits
        return logits, [shapes[0] for name, shapes in noted.ran if "copy_" in name and shapes[0] in weights]

    weights = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    first, _ = predicted()
    again, cast = predicted()
    assert not cast
    assert torch.equal(again, first)

    linear = model.layers[0].attention.wq.weight
    linear.grad = torch.randn_like(linear)
    optimizer([linear], lr=0.1).step()
    changed, cast = predicted()
    assert tuple(linear.shape) in cast
    assert not torch.equal(changed, first)
    again, cast = predicted()
    assert not cast

    with torch.no_grad():
        linear.mul_(-1)
    changed, cast = predicted()
    assert cast == [tuple(linear.shape)], "of what is changed otherwise that alone"
    model.kept.forget()
    assert torch.equal(predicted()[0], changed)


def test_a_model_in_half_precision_knows_nothing_of_autocast() -> None:
    model, batch = build(dtype="bfloat16"), toy_batch(toy_spec(), 3).window(0, 2, 3)
    plain = model.predict(batch, sampler=GREEDY, logits=True).logits
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.predict(batch, sampler=GREEDY, logits=True).logits
    assert plain is not None
    assert torch.equal(plain, cast)


# ---------------------------------------------------------------------- texts
def text_file(folder: Path, **tensors: Tensor) -> Path:
    path = folder / "text.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("leading", [(), (1,)])
def test_a_text_that_was_read_is_what_every_call_reads(tmp_path: Path, leading: tuple[int, ...]) -> None:
    model, batch = build(**TEXT), toy_batch(toy_spec(), 3)
    context, mask = torch.randn(5, 6), torch.tensor([1, 1, 0, 1, 0])
    window = batch.window(0, 2, 3)

    def calls() -> list[Tensor]:
        made = model.predict(window, sampler=GREEDY, logits=True).logits
        told = model.teacher_forced(batch, 1).logits
        assert made is not None
        assert told is not None
        return [made, told, model.loss(batch)[0]]

    without = calls()
    model.read_text(text_file(tmp_path, context=context.view(*leading, 5, 6), mask=mask.view(*leading, 5)))
    read = calls()
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(read, without, strict=True))
    ids = model.sequence(batch.latents)[:, :-1]
    with torch.no_grad():
        embedded = model.embed_actions(batch)
        states = model.hidden(
            ids, GRID, text=Text(context.expand(2, -1, -1), mask.bool().expand(2, -1)), actions_BTD=embedded
        )
        torch.testing.assert_close(read[1].flatten(1, 3), model.output(states)[:, -32:], rtol=1e-4, atol=1e-5)
    model.read_text(text_file(tmp_path, context=torch.zeros(5, 6)))
    for a, b in zip(calls(), without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"vectors": torch.zeros(5, 6)}, r"holds \['vectors'\]"),
        ({"context": torch.zeros(5, 6), "more": torch.zeros(1)}, r"holds \['context', 'more'\]"),
        ({"context": torch.zeros(2, 5, 6)}, r"not \(C, E\)"),
        ({"context": torch.zeros(5, 6, dtype=torch.long)}, r"int64 \(5, 6\), not \(C, E\)"),
        ({"context": torch.full((5, 6), torch.nan)}, "not finite"),
        ({"context": torch.zeros(5, 6), "mask": torch.ones(4)}, r"`mask` is \(4,\)"),
        ({"context": torch.zeros(5, 6), "mask": torch.zeros(5)}, "with 0 places to be read"),
        ({"context": torch.zeros(5, 7)}, "vectors of 7, and this model reads those of 6"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    model = build(**TEXT)
    with pytest.raises(HwmError, match=message):
        model.read_text(text_file(tmp_path, **tensors))
    assert model.text is None


def test_models_that_read_no_text_say_so(tmp_path: Path) -> None:
    path = text_file(tmp_path, context=torch.zeros(5, 6))
    with pytest.raises(HwmError, match="cosmos_ar reads no text"):
        build().read_text(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(HwmError, match="cannot read the weights"):
        build(**TEXT).read_text(path)


# ---------------------------------------------------------------------- ids
@pytest.mark.parametrize("changes", [{}, {"factorized": True}, {"begin": True}])
@pytest.mark.parametrize("wrong", [-1, 60, 10**6])
def test_ids_that_are_none_of_the_vocabulary_are_refused(changes: dict[str, Any], wrong: int) -> None:
    model, batch = build(**changes), toy_batch(toy_spec(), 3)
    batch.latents[1, 0, 2, 3] = wrong
    with pytest.raises(HwmError, match=r"token ids must be in 0\.\.59"):
        model.predict(batch.window(0, 2, 3))
    with pytest.raises(HwmError, match=r"token ids must be in 0\.\.59"):
        model.teacher_forced(batch, 1)
    ids = batch.latents.flatten(1)
    if wrong == 60 and changes.get("begin"):  # the id of the beginning may stand in a sequence
        model.logits(ids, GRID)
    else:
        with pytest.raises(HwmError, match=r"token ids must be in 0\.\."):
            model.logits(ids, GRID)


def test_a_whole_step_is_drawn_in_passes_of_fixed_shapes() -> None:
    model, batch = build(**TEXT), toy_batch(toy_spec(), 3)
    ids = model.sequence(batch.latents[:, :2])
    with torch.inference_mode():
        embedded = model.embed_actions(batch)
        both = [Decoder(model, GRID, 2, embedded, fixed=f).go_on(ids, 16, GREEDY, keep_logits=True) for f in (0, 1)]
    assert torch.equal(both[0][0], both[1][0])
    torch.testing.assert_close(both[0][1], both[1][1], rtol=1e-4, atol=1e-4)


def test_corrupted_training_shows_other_tokens_and_asks_for_the_true_ones() -> None:
    batch = toy_batch(toy_spec(), 4)
    clean, wrong = build(), build(max_corrupt=0.5)
    shown: list[Tensor] = []
    wrong.tok_embeddings.register_forward_hook(lambda table, args, out: shown.append(args[0]))
    torch.manual_seed(1)
    loss = wrong.loss(batch)[0]
    share = (shown[0] != batch.latents.flatten(1)[:, :-1]).float().mean(1)
    assert ((share > 0) & (share < 0.6)).all()
    with torch.no_grad():
        states = clean.hidden(shown[0], (4, 4, 4), actions_BTD=clean.embed_actions(batch))
        told = clean.output(states[:, 15:])
    expected = torch.nn.functional.cross_entropy(told.flatten(0, 1), batch.latents[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("factorized", [False, True])
def test_a_second_stage_shows_the_models_own_tokens(factorized: bool) -> None:
    spec = toy_spec()
    model, batch = build(own_past=1.0, factorized=factorized, sampler=GREEDY), toy_batch(spec, 4)
    batch = Batch(*(torch.cat([x] * 3) for x in (batch.latents, batch.actions)), "arm")
    told = model.teacher_forced(batch, 1).latents.flatten(1)
    shown = model.with_own_guesses(batch)
    assert torch.equal(shown[3:], batch.latents[3:]), "every other clip stays"
    assert torch.equal(shown[:, 0], batch.latents[:, 0]), "of the first step there is no guess"
    mine, true, guess = shown[:3, 1:].flatten(1), batch.latents[:3, 1:].flatten(1), told[:3]
    assert ((mine == true) | (mine == guess)).all()
    share = (mine != true).float().mean(1)
    assert share.max() > 0.1
    assert len(share.unique()) == 3, "each clip has a share of its own"
    loss = model.loss(batch)[0]
    loss.backward()
    assert loss.isfinite()


def test_changes_of_actions_are_read() -> None:
    model, batch = build(action_deltas=True), toy_batch(toy_spec(), 3)
    still = Batch(batch.latents, batch.actions.mean((1, 2), keepdim=True).expand_as(batch.actions), "arm")
    assert [n for n, _ in model.named_parameters() if "read_change" in n]
    with torch.no_grad():
        before = model.embed_actions(still)
        for p in model.actions.read_change.parameters():  # type: ignore[union-attr]
            p.zero_()
        after = model.embed_actions(still)
        assert torch.equal(before, after), "what stands still has no change"
    with pytest.raises(HwmError, match="needs actions=True"):
        build(action_deltas=True, actions=False)
    for share in ({"max_corrupt": -0.1}, {"own_past": 1.1}):
        with pytest.raises(HwmError, match="are shares of the tokens"):
            build(**share)


def test_published_models_have_neither() -> None:
    c = CosmosAR.Config()
    assert (c.actions, c.action_deltas, c.max_corrupt, c.own_past) == (False, False, 0.0, 0.0)
