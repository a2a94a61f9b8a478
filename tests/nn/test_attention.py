"""Attention: its two ways of being computed, and the modules that project for it, against their formulas."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint, noop_context_fn
from torch.utils.flop_counter import FlopCounterMode

from hwm.errors import HwmError
from hwm.nn import attention
from hwm.nn.attention import FLOAT32, HALF, KEPT_KEYS, MANY_PROBLEMS, Attention, CrossAttention, Way, attend, way
from hwm.nn.compiled import Compiled
from hwm.nn.rope import rope_1d, rotate

CPU, HEADS, WIDTH = torch.device("cpu"), 3, 8
DIM = HEADS * WIDTH


def normed(x: Tensor, module: torch.nn.LayerNorm) -> Tensor:
    """Layer normalisation, written out."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias


def heads_of(x: Tensor, weight: Tensor) -> Tensor:
    """(B, L, D) and (D, D) -> (B, L, h, d)."""
    return torch.einsum("bli,oi->blo", x, weight).reshape(*x.shape[:2], HEADS, WIDTH)


def given() -> tuple[Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return torch.randn(2, 5, DIM), tuple(t[:, None] for t in rope_1d((0, 1, 2, 5, 9), WIDTH, CPU))  # type: ignore[return-value]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_projections_of_self_attention(qk_norm: bool) -> None:
    x, table = given()
    module = Attention(DIM, HEADS, qk_norm)
    if qk_norm:
        torch.nn.init.normal_(module.norm.weight)
        torch.nn.init.normal_(module.norm.bias)
    q, k, v = (heads_of(x, w) for w in module.qkv.weight.split(DIM))
    q, k = rotate(q, table), rotate(k, table)
    if qk_norm:  # after the rotation, by the same weights
        q, k = normed(q, module.norm), normed(k, module.norm)
    for found, wanted in zip(module.project(x, table), (q, k, v), strict=True):
        torch.testing.assert_close(found, wanted)
    assert module.qkv.bias is None
    assert module.proj.weight.shape == (DIM, DIM)
    assert module.proj.bias.shape == (DIM,)
    assert module.heads == HEADS
    assert len(list(module.parameters())) == 3 + 2 * qk_norm


def test_projections_of_cross_attention_are_normed_before_they_are_rotated() -> None:
    x, table = given()
    module = CrossAttention(DIM, HEADS)
    torch.nn.init.normal_(module.norm.weight)
    torch.nn.init.normal_(module.norm.bias)
    k, v = module.keys(x, table)
    torch.testing.assert_close(
        module.queries(x, table), rotate(normed(heads_of(x, module.q.weight), module.norm), table)
    )
    torch.testing.assert_close(k, rotate(normed(heads_of(x, module.k.weight), module.norm), table))
    torch.testing.assert_close(v, heads_of(x, module.v.weight))
    assert module.q.bias is module.k.bias is module.v.bias is None
    assert module.proj.weight.shape == (DIM, DIM)
    assert module.proj.bias.shape == (DIM,)
    assert module.heads == HEADS


def test_self_attention_norms_nothing_by_default_and_its_width_splits_into_heads() -> None:
    assert isinstance(Attention(DIM, HEADS).norm, torch.nn.Identity)
    with pytest.raises(HwmError, match="a width of 24 does not split into 5 heads"):
        Attention(DIM, 5)


def kernel(keys: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """How attention over so many keys is computed."""
    way = "fused"

    def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, first: bool) -> Tensor:
        nonlocal way
        way = "kept, first axis" if first else "kept, last axis"
        return q

    def recomputed(function: object, q: Tensor, *others: object) -> Tensor:
        nonlocal way
        assert function is written_out
        assert others[-1] is False
        way = "recomputed"
        return q

    monkeypatch.setattr(attention, "written_out", written_out)
    monkeypatch.setattr(attention, "recomputed", recomputed)
    q, k, v = (torch.zeros(2, 1, n, 4, dtype=dtype, device=device) for n in (3, keys, keys))
    assert attend(q, k, v).shape == q.shape
    return way


@pytest.mark.parametrize(
    ("keys", "dtype", "way"),
    [
        (FLOAT32.first, torch.float32, "kept, first axis"),
        (FLOAT32.first + 1, torch.float32, "kept, last axis"),
        (FLOAT32.keys, torch.float32, "kept, last axis"),
        (FLOAT32.keys + 1, torch.float32, "fused"),
        (HALF.first, torch.bfloat16, "kept, first axis"),
        (HALF.first + 1, torch.bfloat16, "kept, last axis"),
        (KEPT_KEYS, torch.bfloat16, "kept, last axis"),
        (KEPT_KEYS + 1, torch.bfloat16, "recomputed"),
        (HALF.keys, torch.bfloat16, "recomputed"),
        (HALF.keys + 1, torch.bfloat16, "fused"),
    ],
)
def test_the_number_of_keys_chooses_the_kernel(
    keys: int, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernel(keys, dtype, "cpu", monkeypatch) == way
    assert kernel(keys, dtype, "meta", monkeypatch) == "fused", "on any device but the CPU"


@pytest.mark.parametrize(("at_once", "sizes"), [(10**9, [7]), (2 * 3 * 4 * 200 + 1, [2, 2, 2, 1]), (1, [1] * 7)])
def test_scores_that_are_made_at_a_time_are_bounded(
    at_once: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def written_out(q: Tensor, k: Tensor, v: Tensor, *others: object) -> Tensor:
        assert len(q) == len(k) == len(v)
        seen.append(len(q))
        return q

    monkeypatch.setattr(attention, "written_out", written_out)
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    q, k, v = (torch.zeros(7, 3, n, 8, dtype=torch.bfloat16) for n in (4, 200, 200))
    assert attend(q, k, v).shape == q.shape
    assert seen == sizes


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_written_out_it_is_its_formula(first: bool, masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8) for n in (4, 6, 6))
    mask = torch.rand(4, 6) < 0.5
    mask[:, 1] = True
    out = attention.written_out(q, k, v, mask if masked else None, 0.3, first)
    weight = (0.3 * torch.einsum("nhld,nhmd->nhlm", q, k)).exp() * (mask if masked else 1)
    weight = weight / weight.sum(-1, keepdim=True)
    torch.testing.assert_close(out, torch.einsum("nhlm,nhmd->nhld", weight, v))


@pytest.mark.parametrize("keys", [6, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_scaled_by_the_root_of_the_width_or_as_asked(keys: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=dtype) for n in (4, keys, keys))
    for scale in (None, 0.7):
        weight = ((scale or 8**-0.5) * torch.einsum("nhld,nhmd->nhlm", q.float(), k.float())).softmax(-1)
        wanted = torch.einsum("nhlm,nhmd->nhld", weight, v.float())
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(attend(q, k, v, scale=scale).float(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("keys", [6, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 4, 6])
def test_causal_queries_are_the_last_of_their_places(queries: int, keys: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=dtype) for n in (queries, keys, keys))
    rows = [attend(q[:, :, i : i + 1], *(x[:, :, : keys - queries + i + 1] for x in (k, v))) for i in range(queries)]
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(attend(q, k, v, causal=True), torch.cat(rows, 2), atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------------- compiled, as on a GPU
@pytest.mark.parametrize(
    ("problems", "queries", "keys", "found"),
    [
        (MANY_PROBLEMS, 3, 6, Way.COMPILED),
        (MANY_PROBLEMS, 8, 8, Way.COMPILED),
        (MANY_PROBLEMS, 8, 9, Way.FUSED),
        (MANY_PROBLEMS - 4, 3, 6, Way.FUSED),
        (MANY_PROBLEMS, 16, 16, Way.FUSED),
    ],
)
def test_on_a_gpu_many_short_problems_are_compiled(problems: int, queries: int, keys: int, found: Way) -> None:
    with FakeTensorMode():
        q, k = (torch.empty(problems // 4, 4, n, 8, device="cuda") for n in (queries, keys))
        assert way(q, k) is found


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Attention as on a GPU, with a compiler that makes no kernels; it counts what it is given."""
    torch._dynamo.reset()
    counter, short = CompileCounterWithBackend("aot_eager"), Compiled(attention.products_and_sums, lambda q, *_: None)
    short.compiled = torch.compile(short.function, fullgraph=True, backend=counter)
    monkeypatch.setattr(attention, "COMPILED", short)
    monkeypatch.setattr(attention, "way", lambda q, k: Way.COMPILED)
    return counter


def problem(queries: int = 3, keys: int = 6, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(5, 2, n, 8).to(dtype).requires_grad_() for n in (queries, keys, keys)]


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, scale=0.3, causal=True)


def forgotten(context: Any) -> Callable[..., Tensor]:
    return partial(checkpoint, lambda *given: causal(*given), use_reentrant=False, context_fn=context)


@pytest.mark.parametrize("how", ["plain", "forgotten", "compiled around"])
@pytest.mark.parametrize("queries", [1, 3, 6])
def test_compiled_it_is_its_formula(how: str, queries: int, compiled: CompileCounterWithBackend) -> None:
    around = CompileCounterWithBackend("aot_eager")
    run = {
        "plain": causal,
        "forgotten": forgotten(noop_context_fn),
        "compiled around": torch.compile(causal, fullgraph=True, backend=around),
    }[how]
    ours, theirs = problem(queries), problem(queries)
    for given, function in ((ours, run), (theirs, reference)):
        function(*given).square().sum().backward()
    torch.testing.assert_close(run(*ours), reference(*theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    inside = how != "compiled around"
    assert (compiled.frame_count, around.frame_count) == ((1, 0) if inside else (0, 1))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_it_gives_the_type_that_the_fused_kernel_gives(
    autocast: bool, compiled: CompileCounterWithBackend
) -> None:
    given = problem(dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mine, theirs = causal(*given), reference(*given)
    assert mine.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0.02)
    assert compiled.frame_count == 1


def test_operations_that_are_watched_are_not_compiled(compiled: CompileCounterWithBackend) -> None:
    with FlopCounterMode(display=False):
        torch.testing.assert_close(causal(*problem()), reference(*problem()))
    assert compiled.frame_count == 0
    torch.testing.assert_close(causal(*problem()), reference(*problem()))
    assert compiled.frame_count == 1, "and later ones are, all the same"


def test_without_a_compiler_it_is_fused(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def backend(*given: object) -> Any:
        tried.append(given)
        raise RuntimeError("there is no compiler")

    short = Compiled(attention.products_and_sums, lambda q, *_: q.shape)
    short.compiled = torch.compile(short.function, fullgraph=True, backend=backend)
    monkeypatch.setattr(attention, "COMPILED", short)
    monkeypatch.setattr(attention, "way", lambda q, k: Way.COMPILED)
    for _ in range(3):
        torch.testing.assert_close(causal(*problem()), reference(*problem()))
    assert len(tried) == 1
    said = [record.getMessage() for record in caplog.records if record.name == "hwm.nn.compiled"]
    assert len(said) == 1
    assert "there is no compiler" in said[0]
