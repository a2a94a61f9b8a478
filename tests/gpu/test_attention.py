"""Attention in each of the ways that a device takes it, at the sizes of recipes, beside the CPU's float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwm.nn.attention import attend
from tests.gpu.beside import CARD, error, runtime

SIZES = {
    "over time": (8, 3, 6, 64),
    "over time, one step": (8, 1, 4, 64),
    "within a step": (8, 256, 256, 64),
    "of odd length": (6, 65, 130, 32),
}
"""Heads, queries, keys, and width of a head; of as many problems as a clip has cells, where they are short."""

BOUNDS = {"float32": 3e-3, "bfloat16": 0.02}
FORMATS = [
    ("cpu", "bfloat16", 16),
    *(pytest.param("cuda", form, 2048, marks=pytest.mark.gpu) for form in BOUNDS if CARD),
]


@pytest.mark.parametrize(("device", "form", "problems"), FORMATS)
@pytest.mark.parametrize("kind", ["all", "masked", "causal"])
@pytest.mark.parametrize("name", SIZES)
def test_attention_is_that_of_the_cpu(name: str, kind: str, device: str, form: str, problems: int) -> None:
    """What comes out, and the gradients."""
    heads, queries, keys, width = SIZES[name]
    problems = problems if keys < 16 else 8
    generator = torch.Generator().manual_seed(0)
    q, k, v, asked = (
        torch.randn(problems, heads, n, width, generator=generator) for n in (queries, keys, keys, queries)
    )
    mask = torch.rand(queries, keys, generator=generator) < 0.6 if kind == "masked" else None
    if mask is not None:
        mask[:, 0] = True

    def run(device: str, dtype: torch.dtype) -> list[Tensor]:
        given = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
        shown = None if mask is None else mask.to(device)
        out = attend(*given, shown, causal=kind == "causal")
        return [out, *torch.autograd.grad(out, given, asked.to(device, dtype))]

    where = runtime(device, form)
    for got, wanted in zip(run(device, where.dtype), run("cpu", torch.float32), strict=True):
        assert got.device.type == device
        assert got.dtype == where.dtype
        assert error(got, wanted) < BOUNDS[form] if wanted.any() else not got.any()
