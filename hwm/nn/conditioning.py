"""Ways to condition the states of steps on one vector a step, such as their actions: a table.

A way is a module made of (width, heads). Given the vectors of a window's first M steps and the number T of steps in
this pass, the last of them, it reads the vectors once and returns a function of the states.

Shape suffixes: B batch, T step of this pass, M step of the window up to the last of this pass, S cells, D width,
h heads, d = D/h head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.nn.attention import attend

Conditioned = Callable[[Tensor], Tensor]  # states (T, B, S, D) -> states


class Add(nn.Module):
    """Each state plus the vector of its step."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()

    def forward(self, condition_MBD: Tensor, steps: int) -> Conditioned:
        condition_TB1D = condition_MBD[-steps:, :, None]
        return lambda x_TBSD: x_TBSD + condition_TB1D


class Modulate(nn.Module):
    """Each state plus a Linear of its norm, scaled and shifted as the vector of its step says (adaLN, no gate)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.out = nn.Linear(dim, dim)

    def forward(self, condition_MBD: Tensor, steps: int) -> Conditioned:
        shift_TB1D, scale_TB1D = self.read(condition_MBD[-steps:, :, None]).chunk(2, -1)

        def conditioned(x_TBSD: Tensor) -> Tensor:
            normed = F.layer_norm(x_TBSD, x_TBSD.shape[-1:], eps=1e-6)
            return x_TBSD + self.out(normed * (1 + scale_TB1D) + shift_TB1D)

        return conditioned


class CrossAttend(nn.Module):
    """Each state attends to the vectors of its step and of those before it; one norm for queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim // heads)

    def forward(self, condition_MBD: Tensor, steps: int) -> Conditioned:
        # every state of a step looks back on the same keys: one problem of T x S queries a sample
        k, v = (x(condition_MBD).unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3) for x in (self.k, self.v))
        k, M = self.norm(k).to(v.dtype), condition_MBD.shape[0]
        mask_TM = torch.ones(steps, M, dtype=torch.bool, device=condition_MBD.device).tril(M - steps)

        def conditioned(x_TBSD: Tensor) -> Tensor:
            T, S = x_TBSD.shape[0], x_TBSD.shape[2]
            q = self.norm(self.q(x_TBSD).unflatten(-1, (self.heads, -1))).to(v.dtype)  # (T, B, S, h, d)
            o = attend(q.permute(1, 3, 0, 2, 4).flatten(2, 3), k, v, mask_TM.repeat_interleave(S, 0))
            return x_TBSD + self.proj(o.unflatten(2, (T, S)).permute(2, 0, 3, 1, 4).flatten(3))

        return conditioned


WAYS: dict[str, Callable[[int, int], nn.Module]] = {"add": Add, "modulate": Modulate, "cross_attend": CrossAttend}
