"""Products of float32 training by oneDNN: the same numbers, and only where they are asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from hwm.devices import Runtime
from hwm.train import onednn
from hwm.train.flops import count_flops
from hwm.train.onednn import use_onednn
from tests.train.low_rank import make_trainer

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")

CPU = torch.device("cpu")
FLOAT32 = Runtime(CPU, "float32")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """This CPU counts as one whose kernels are fast, and small products as large ones."""
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    monkeypatch.setattr(onednn, "LARGE", 100)
    monkeypatch.setattr(onednn, "WIDE", 10)


def passed(layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor | None]:
    """What a layer puts out, and the gradients of its input and its parameters."""
    x = x.detach().requires_grad_(x.requires_grad)
    out = layer(x)
    out.backward(gradient)
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("features", "out"), [(12, 20), (20, 12), (10, 33)])
@pytest.mark.parametrize("laid", ["whole", "turned", "one for all"])
def test_layers_and_their_gradients_are_those_of_pytorch(features: int, out: int, bias: bool, laid: str) -> None:
    torch.manual_seed(features)
    layer = nn.Linear(features, out, bias=bias)
    ours = copy.deepcopy(layer)
    use_onednn(ours, FLOAT32)
    x, gradient = torch.randn(3, 5, features), torch.randn(3, 5, out)
    if laid == "turned":
        x, gradient = torch.randn(5, 3, features).transpose(0, 1), torch.randn(5, out, 3).permute(2, 0, 1)
    if laid == "one for all":
        x, gradient = torch.randn(5, features).expand(3, 5, -1), torch.randn(()).expand(3, 5, out)
    with mock.patch.object(onednn, "_product", wraps=onednn._product) as product:
        found = passed(ours, x.requires_grad_(), gradient)
    assert product.call_count == (3 if features > 10 else 2), "a gradient of narrow weights is left to PyTorch"
    for mine, theirs in zip(found, passed(layer, x, gradient), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_that_nobody_wants_are_not_computed() -> None:
    layer = nn.Linear(12, 20)
    layer.weight.requires_grad_(False)
    use_onednn(layer, FLOAT32)
    x, gradient = torch.randn(15, 12), torch.randn(15, 20)
    with mock.patch.object(onednn, "_product", wraps=onednn._product) as product:
        _, of_x, of_weight, of_bias = passed(layer, x, gradient)
    assert (of_x, of_weight, product.call_count) == (None, None, 1)
    assert of_bias is not None
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_small_products_other_formats_and_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_product", mock.Mock(side_effect=AssertionError))
    layer = nn.Linear(12, 20)
    use_onednn(layer, FLOAT32)
    layer(torch.randn(0, 12))
    monkeypatch.setattr(onednn, "LARGE", 15 * 12 * 20 + 1)
    layer(torch.randn(15, 12)).sum().backward()
    monkeypatch.setattr(onednn, "LARGE", 0)
    layer.double()(torch.randn(15, 12, dtype=torch.float64))
    with count_flops() as flops:
        layer.float()(torch.randn(15, 12)).sum().backward()
    assert flops.get_total_flops() == 2 * 2 * 15 * 12 * 20
    narrow = nn.Linear(9, 20)
    use_onednn(narrow, FLOAT32)
    assert "forward" not in vars(narrow)
    for other in (Runtime(CPU, "bfloat16"), Runtime(torch.device("cuda"), "float32")):
        plain = nn.Linear(12, 20)
        use_onednn(plain, other)
        assert "forward" not in vars(plain)
    monkeypatch.setattr(onednn, "is_faster", lambda: False)
    use_onednn(plain, FLOAT32)
    assert "forward" not in vars(plain)


def test_a_run_is_the_same_up_to_rounding(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwm.train import trainer

    monkeypatch.setattr(trainer, "peak_flops", lambda device, dtype: 1e9)
    runs: list[dict[str, Any]] = []
    with mock.patch.object(onednn, "_product", wraps=onednn._product) as product:
        for name, faster in (("plain", False), ("onednn", True)):
            monkeypatch.setattr(onednn, "is_faster", lambda faster=faster: faster)
            runs.append(make_trainer(data, tmp_path / name, steps=3, lora=0, only=()).run().state_dict())
            assert bool(product.call_count) is faster
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=1e-4, atol=2e-5, msg=name)
