"""Matrix products of float32 training on a CPU by oneDNN, instead of the library behind `torch.mm`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from hwm.devices import Runtime

LARGE, WIDE = 10_000_000, 512
"""From so many multiplications on a product is left to oneDNN, if no side of the weight is narrower than this; that of
a weight's gradient if both are wider. GENIE, whose layers are 256 wide, is a tenth slower with all of them.

Measured on one core of an EPYC with AVX-512, in GFLOP/s of PyTorch's own (MKL) and oneDNN's: layers of 1152 to 4608
97 and 108 for 512 rows, 64 and 78 for 36, 30 and 42 for 8; 1536 to 512 96 and 104 for 256 rows; 192 to 192 98 and 99
for 256 rows, 64 and 40 for 16. Gradients of weights, of 256 rows: 1152 to 4608 99 and 103, 192 to 768 99 and 94.
"""


def use_onednn(module: nn.Module, runtime: Runtime) -> None:
    """Let the wide Linear layers of a module compute large products, and their gradients, by oneDNN where it is faster.

    The numbers are those of `F.linear` up to rounding. In half precision PyTorch does so by itself.
    """
    if runtime.device.type == "cpu" and runtime.format == "float32" and is_faster():
        for layer in module.modules():
            # a subclass of Linear may compute something else
            if type(layer) is nn.Linear and min(layer.weight.shape) >= WIDE:
                layer.forward = partial(_linear, layer)  # type: ignore[method-assign]


def is_faster() -> bool:
    """Whether oneDNN's kernels for this CPU are the faster ones. Those for AVX2 are not. (A rule and no measurement:
    a run that is resumed would not always be the uninterrupted one, bit for bit.)"""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    large = x.numel() * layer.out_features >= LARGE and x.dtype == weight.dtype == torch.float32
    # what compiles, counts, or recomputes operations by their kind knows those of PyTorch
    if not large or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return F.linear(x, weight, bias)
    found: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias)
    return found.view(*x.shape[:-1], -1)


def _product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    """x W^T + b of rows (N, I)."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return _product(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        gradient_NO, (of_x, of_weight, of_bias) = gradient_NO.contiguous(), ctx.needs_input_grad
        by = _product if min(weight_OI.shape) > WIDE else F.linear
        return (
            _product(gradient_NO, weight_OI.t()) if of_x else None,
            by(gradient_NO.t(), x_NI.t()) if of_weight else None,
            gradient_NO.sum(0) if of_bias else None,
        )
