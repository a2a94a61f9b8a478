"""Muon: its steps are PyTorch's in the same number format, also of matrices together, and go on from its state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hwm.config import REGISTRY
from hwm.train import muon
from hwm.train.muon import QUINTIC, Muon, orthogonal
from tests.conftest import make_store
from tests.train.toy import Toy, make_trainer

SHAPES = [(24, 96), (96, 24), (32, 32), (24, 96), (1, 8), (24, 96)]
OPTIONS = {"lr": 0.1, "weight_decay": 0.3}


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def gradients(params: list[nn.Parameter], count: int = 3) -> Iterator[None]:
    """Gives the parameters gradients again and again, the last none at first."""
    for i in range(count):
        torch.manual_seed(i + 1)
        for p in params:
            p.grad = torch.randn_like(p)
        if i == 0:
            params[-1].grad = None
        yield


def moved(by: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[Tensor]:
    for _ in gradients(params):
        by.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("at_once", [2**24, 5000, 1])
def test_steps_are_those_of_pytorch_in_bfloat16(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "AT_ONCE", at_once)
    ours, theirs = matrices(), matrices()
    begun = [p.detach().clone() for p in ours]
    plain = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **OPTIONS)
    made = Muon(ours, format=torch.bfloat16, **OPTIONS)
    for a, b, first in zip(moved(made, ours), moved(plain, theirs), begun, strict=True):
        change = (b - first).norm()
        assert change > 0.1
        assert (a - b).norm() < 0.02 * change
    for p, q in zip(ours, theirs, strict=True):
        assert made.state[p].keys() == plain.state[q].keys()
        assert torch.allclose(made.state[p]["momentum_buffer"], plain.state[q]["momentum_buffer"], atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_a_matrix_with_a_row_for_each_channel_it_makes(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(24, 8, 3, 3).contiguous(memory_format=layout))
    matrix = nn.Parameter(kernel.detach().reshape(24, 72).clone())
    one, other = Muon([kernel], **OPTIONS), Muon([matrix], **OPTIONS)
    for _ in range(2):
        kernel.grad = torch.randn(24, 8, 3, 3).contiguous(memory_format=layout)
        matrix.grad = kernel.grad.reshape(24, 72)
        one.step()
        other.step()
    torch.testing.assert_close(kernel.detach().reshape(24, 72), matrix.detach())


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_float32_is_exact_where_bfloat16_is_not(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x_NRC = torch.randn(3, *shape)
    u, s, v = torch.linalg.svd(x_NRC.double(), full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):  # what the iteration does to each singular value
        s = QUINTIC[0] * s + QUINTIC[1] * s**3 + QUINTIC[2] * s**5
    wanted = (u * s[:, None]) @ v
    error = {f: (orthogonal(x_NRC.to(f)).double() - wanted).abs().max() for f in (torch.float32, torch.bfloat16)}
    assert error[torch.float32] < 1e-4 < 1e-3 < error[torch.bfloat16] < 0.1


def test_goes_on_from_the_state_of_pytorchs_own() -> None:
    ours, theirs = matrices(), matrices()
    plain = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **OPTIONS)
    moved(plain, theirs)
    made = Muon(ours, format=torch.bfloat16, **OPTIONS)
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q.data)
        made.state[p]["momentum_buffer"] = plain.state[q]["momentum_buffer"].clone()
    for a, b in zip(moved(made, ours), moved(plain, theirs), strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize(
    ("dtype", "format"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float32)],
)
def test_the_format_of_the_run_is_that_of_its_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, format: torch.dtype
) -> None:
    monkeypatch.setitem(REGISTRY, Toy.name, Toy)
    data = make_store(tmp_path / "store", [30, 40]).path
    made = make_trainer(data, tmp_path / "run", steps=1, optimizer="muon", dtype=dtype)
    assert [o.format for o in made.optimizers if isinstance(o, Muon)] == [format]
