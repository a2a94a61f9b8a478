"""Decoding token by token with heads of the published sizes, a text and actions: on a card by replayed captures."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.models.cosmos_ar import CosmosAR
from hwm.models.cosmos_decoder import Decoder
from hwm.models.cosmos_texts import Text
from hwm.objectives.next_token import NextTokenSampler
from hwm.types import Batch
from tests.gpu.beside import CARD, DEVICES, error, twin
from tests.models.test_cosmos_decoder import told_by
from tests.models.toys import toy_batch, toy_spec

GRID, PROMPT = (3, 4, 4), 20
BOUNDS = {torch.float32: 2e-3, torch.bfloat16: 0.05}
FORMATS = [
    ("cpu", torch.bfloat16),
    *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in BOUNDS if CARD),
]


@cache
def model() -> CosmosAR:
    """The heads of the 5B, its text and its positions, with actions; narrow and of two blocks."""
    torch.manual_seed(0)
    config = CosmosAR.Config(
        dim=256, depth=2, mlp_dim=512, heads=32, kv_heads=8, head_dim=128, context_dim=1024, begin=True,
        absolute="bfloat16", actions=True, past=3,
    )  # fmt: skip
    made: CosmosAR = config.build(toy_spec()).eval()
    with torch.no_grad():
        for p in made.parameters():  # so that attention looks somewhere, and every part matters
            p.add_(0.05 * torch.randn_like(p))
    return made


def told(device: str, dtype: torch.dtype, seed: int = 0, **options: Any) -> tuple[Decoder, Tensor]:
    """A decoder of a clip on a device, and the clip's tokens."""
    there = model() if (device, dtype) == ("cpu", torch.float32) else twin(model(), torch.device(device)).to(dtype)
    batch = toy_batch(toy_spec(), 3, seed=seed)
    context = torch.randn(1, 6, 1024, generator=torch.Generator().manual_seed(seed))
    text = Text(context.to(device), torch.tensor([[True] * 4 + [False] * 2], device=device))
    batch.actions = batch.actions.to(dtype)
    with torch.inference_mode():
        embedded = there.embed_actions(batch.to(device))
    return Decoder(there, GRID, 2, embedded, text=text, **options), there.sequence(batch.latents.to(device))[:, :-1]


@pytest.mark.parametrize(("device", "dtype"), FORMATS)
@pytest.mark.parametrize("fixed", [None, False])
def test_tokens_are_told_as_the_cpu_tells_them(device: str, dtype: torch.dtype, fixed: bool | None) -> None:
    """In the way that the device chooses, which on a card is by captures, and without."""
    wanted, got = (
        told_by(*made, PROMPT) for made in (told("cpu", torch.float32, fixed=False), told(device, dtype, fixed=fixed))
    )
    assert got.device.type == device
    assert error(got, wanted) < BOUNDS[dtype]


@pytest.mark.parametrize("device", DEVICES)
def test_in_half_precision_a_world_is_captured_once(device: str) -> None:
    """Weights in float32 under autocast, as `hwm play --dtype bfloat16` has them; tokens are drawn, step after step."""
    there, batch = twin(model(), torch.device(device)), toy_batch(toy_spec(), 5).to(device)
    window = Batch(batch.latents[:, :2], batch.actions, "arm")

    def rollout() -> Tensor:
        rows = [torch.Generator(device).manual_seed(i) for i in range(2)]
        with torch.autocast(device, torch.bfloat16):
            return there.rollout(window, generator=rows, sampler=NextTokenSampler(top_p=0.8, top_k=20)).latents

    first = rollout()
    captures = [step.captures.graphs for _, step, _ in there.kept.steps]
    assert len(captures) == (device == "cuda")
    assert all(len(graphs) == 1 for graphs in captures)
    assert torch.equal(rollout(), first)
    assert [step.captures.graphs for _, step, _ in there.kept.steps] == captures


@pytest.mark.parametrize("device", DEVICES)
def test_decoders_that_take_turns_do_not_disturb_each_other(device: str) -> None:
    """As those of two players do, each with its clip, its text and its captures."""
    pairs = [told(device, torch.float32, seed) for seed in (1, 2)]
    alone = [told_by(*told(device, torch.float32, seed), PROMPT) for seed in (1, 2)]
    turns: list[list[Tensor]] = [[], []]
    with torch.inference_mode():
        for place in range(PROMPT - 1, pairs[0][1].shape[1]):
            for (decoder, ids), logits in zip(pairs, turns, strict=True):
                logits.append(decoder.next_logits(ids[:, decoder.length : place + 1]))
    for got, wanted in zip(turns, alone, strict=True):
        assert error(torch.stack(got, 1), wanted) < 1e-4
