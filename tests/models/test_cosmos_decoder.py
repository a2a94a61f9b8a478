"""Decoding: passes of fixed shapes, captured and compiled, and texts from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwm.errors import HwmError
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.cosmos_decoder import Decoder, Text
from hwm.objectives.next_token import NextTokenSampler
from hwm.types import Batch
from tests.models.test_cosmos_ar import TEXT, build
from tests.models.toys import toy_batch, toy_spec

GREEDY = NextTokenSampler(temperature=0.0)
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
    plain, fixed = (
        told_by(Decoder(model, GRID, 2, embedded, text=told, fixed=fixed), ids, prompt) for fixed in (False, True)
    )
    torch.testing.assert_close(fixed, plain, rtol=1e-4, atol=1e-5)


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
            step(torch.tensor([[place]]), place)
        runs.append(noted.ran)
    assert len(runs[0]) > 50
    assert runs[0] == runs[1] == runs[2]
    assert not [name for name, _ in runs[0] if "item" in name or "_local_scalar" in name], "nothing is waited for"


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
    with pytest.raises(HwmError, match="this model knows 0 to 59"):
        model.predict(batch.window(0, 2, 3))
    with pytest.raises(HwmError, match="this model knows 0 to 59"):
        model.teacher_forced(batch, 1)
    ids = batch.latents.flatten(1)
    if wrong == 60 and changes.get("begin"):  # the id of the beginning may stand in a sequence
        model.logits(ids, GRID)
    else:
        with pytest.raises(HwmError, match="this model knows 0 to"):
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
