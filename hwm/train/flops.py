"""Counting the floating-point operations of a pass."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]

aten = torch.ops.aten


def count_flops() -> FlopCounterMode:
    """A context that counts the operations of matrix products inside, with those of attention on a CPU, whose kernels
    PyTorch's own counter has no formula for; `get_total_flops` tells them."""
    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=kernels)


def _attention(q_NhLd: Shape, k_NhMd: Shape, v_NhMd: Shape, *_: Any, **__: Any) -> int:
    """Two products: the scores, and what they weigh."""
    batch, heads, queries, width = q_NhLd
    return 2 * batch * heads * queries * k_NhMd[2] * (width + v_NhMd[3])


def _attention_backward(out_NhLd: Shape, q_NhLd: Shape, k_NhMd: Shape, v_NhMd: Shape, *_: Any, **__: Any) -> int:
    """Five products: the scores again, and two for each of the two before."""
    batch, heads, queries, width = q_NhLd
    return 2 * batch * heads * queries * k_NhMd[2] * (3 * width + 2 * v_NhMd[3])
