"""Muon (Jordan et al., 2024): steps of hidden matrices whose singular values are all near one. The kernel of a
convolution is a matrix with a row for each channel that it makes.

Shape suffixes: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from hwm.train.distributed import own_part, part_like, whole

QUINTIC = 3.4445, -4.7750, 2.0315
"""Coefficients of x, x^3 and x^5 in a step that moves singular values towards one: of Jordan's Muon."""

AT_ONCE = 2**24
"""Numbers in the matrices that are orthogonalised as one block, unless a single matrix has more: enough to keep a
graphics card busy, and little beside the weights where each process otherwise holds a share of them."""


class Muon(torch.optim.Optimizer):
    """What `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` computes, with the same names in its state.

    It differs in two points. Momentum is orthogonalised in a number format of choice, where PyTorch's takes bfloat16 on
    any machine: a CPU without arithmetic for it is twenty times slower so than in float32. And matrices of one shape
    are orthogonalised together.

    Args:
        params: matrices and kernels, whole or divided among processes (then a step is to be taken by all of them).
        lr: size of a step, as AdamW's: the root mean square of a whole step's entries is about a fifth of it.
        weight_decay: share of `lr` by which weights shrink in a step.
        momentum: of the mean of gradients, in Nesterov's form.
        format: in which products are computed.

    Attributes:
        found_inf: as fused optimizers of PyTorch take it, a scalar on the device: where it is not 0, a step leaves
            weights and means as they are, whatever the gradients. None: no step does.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        format: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.format = format

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step with the gradients that there are."""
        assert closure is None, "no loss is computed again"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)  # type: ignore[arg-type]
        means, grads = [self.state[p]["momentum_buffer"] for p in params], [p.grad for p in params]
        keep, decay = self._ignore_bad(_own(means), _own(grads), 1 - lr * weight_decay)
        torch._foreach_lerp_(_own(means), _own(grads), 1 - momentum)
        torch._foreach_mul_(_own(params), decay)
        for alike in _alike(params):
            step_NRC = torch.stack([whole(grads[i].lerp(means[i], momentum)) for i in alike])  # type: ignore[union-attr]
            step_NRC = orthogonal(step_NRC.flatten(2).to(self.format)) * keep
            for i, step_RC in zip(alike, step_NRC, strict=True):
                size = 0.2 * math.sqrt(max(step_RC.shape))
                step = step_RC.view(params[i].shape)
                own_part(params[i]).add_(part_like(step, params[i]), alpha=-lr * size)

    def _ignore_bad(self, means: list[Tensor], grads: list[Tensor], decay: float) -> tuple[Any, Any]:
        """Factors of a step and of the weights, with which nothing changes where the device says that a gradient is
        bad. Gradients are then those that leave means alone."""
        if self.found_inf is None:
            return 1, decay
        bad = self.found_inf != 0
        for mean, grad in zip(means, grads, strict=True):
            torch.where(bad, mean, grad, out=grad)
        return torch.where(bad, 0.0, 1.0).to(self.format), torch.where(bad, 1.0, decay)


def _own(tensors: list[Any]) -> list[Tensor]:
    return [own_part(x) for x in tensors]


def _alike(params: list[Tensor]) -> Iterator[list[int]]:
    """Which matrices are of one shape and one device, no more at a time than `AT_ONCE` numbers."""
    found: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        found.setdefault((p.shape, p.device), []).append(i)
    for (shape, _), places in found.items():
        count = max(1, AT_ONCE // max(1, shape.numel()))
        yield from (places[i : i + count] for i in range(0, len(places), count))


def orthogonal(x_NRC: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Matrices with the singular vectors of those given and singular values between about 0.7 and 1.2: five steps of a
    Newton-Schulz iteration, which takes products alone."""
    if x_NRC.shape[1] > x_NRC.shape[2]:
        return orthogonal(x_NRC.mT.contiguous(), steps, eps).mT
    a, b, c = QUINTIC
    x_NRC = x_NRC / torch.linalg.matrix_norm(x_NRC, keepdim=True).clamp(min=eps)  # no singular value is above one
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        gain_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, gain_NRR, x_NRC, beta=a)
    return x_NRC
