"""Blocks in which no step depends on later ones: attention among the cells of a step, then over the steps before it.

They are GENIE's (github.com/1x-technologies/1xgpt, Apache-2.0), and HMA's. muP: arXiv 2203.03466.

Shape suffixes: B batch, T latent step of this pass, M steps remembered, S cells, D width, h heads, d = D/h head width.
Time comes first (TBSD).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.nn.attention import attend
from hwm.nn.layers import added, in_parts, plainly, recomputed, roomy

# The width at which muP changes nothing but the attention scale: that of the smallest published model.
BASE_WIDTH = 256

# How many times what goes into a block is kept of it for the backward pass where nothing is spared.
KEPT = 23

# Of attention over time in one block: keys, and then values, each (1, B, S, h, d), a tensor a step. Caches of one
# rollout share those of the steps that they have in common.
TimeMemory = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class CausalFields:
    """The part of a model's config that its blocks read.

    Attributes:
        mup: attention scale 8 / d, smaller initial weights and learning rates of hidden matrices, and a head that
            reads states divided by dim / 256: what the learning rate of a small model needs to suit a wide one.
        qk_norm: LayerNorm on queries and keys, and no other norm.
        qkv_bias, proj_bias, mlp_bias: which Linear layers of a block have biases.
    """

    mup: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    proj_bias: bool = True
    mlp_bias: bool = True


class CausalCache(NamedTuple):
    """What is remembered of the first `steps` steps of a window, a block each; empty when there are none."""

    memory: tuple[TimeMemory, ...] = ()
    steps: int = 0


class CausalWindow(NamedTuple):
    """The past as remembered, and what all steps of the window are conditioned on (T, B, D), if anything."""

    cache: CausalCache
    actions: Tensor | None
    embodiment: str


def mup_width(config: Any) -> float:
    """How much wider than the published model of the least width, of a model with `CausalFields` and `dim`."""
    return config.dim / BASE_WIDTH if config.mup else 1.0


class SelfAttention(nn.Module):
    """The weights of self-attention: one projection laid out (3, h, d), an optional norm, and one projection out.

    With `qk_norm` one affine LayerNorm(d) serves queries and keys. Logits are scaled by 1 / sqrt(d), under muP by 8 / d
    (the same at d = 64).
    """

    def __init__(self, dim: int, heads: int, *, qk_norm: bool, qkv_bias: bool, proj_bias: bool, mup: bool) -> None:
        super().__init__()
        if dim % heads:
            raise HwmError(f"a width of {dim} does not split into {heads} heads")
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, qkv_bias), nn.Linear(dim, dim, proj_bias)
        self.norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.scale = 8 / self.head_dim if mup else self.head_dim**-0.5

    def split(self, qkv_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `qkv` puts out, (..., 3D), as queries, keys and values, each (..., h, d)."""
        q, k, v = qkv_E.unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        return self.norm(q).to(v.dtype), self.norm(k).to(v.dtype), v


class CausalBlock(nn.Module):
    """Attention among the cells of each step, causal attention over the steps of each cell, and an MLP; residual.

    LayerNorms precede the first and the last part; there is none before attention over time. With `qk_norm` there are
    none at all but those of queries and keys.

    Args:
        config: with `CausalFields`, `dim`, `heads`, `mlp_ratio` and `mlp_drop`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        c, dim = config, config.dim
        self.norm1, self.norm2 = (nn.Identity() if c.qk_norm else nn.LayerNorm(dim) for _ in range(2))
        self.space, self.time = (
            SelfAttention(dim, c.heads, qk_norm=c.qk_norm, qkv_bias=c.qkv_bias, proj_bias=c.proj_bias, mup=c.mup)
            for _ in range(2)
        )
        hidden = int(dim * c.mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(dim, hidden, c.mlp_bias), nn.Linear(hidden, dim, c.mlp_bias)
        self.drop = nn.Dropout(c.mlp_drop)

    def forward(
        self,
        x_TBSD: Tensor,
        memory: TimeMemory = (),
        first: int = 0,
        keep: int = 0,
        spare: bool = True,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, TimeMemory]:
        """Run T steps through the block.

        Args:
            memory: of the M steps before, which every step of this pass sees.
            first: from which step on anyone reads the states that come out.
            keep: how many of the steps are to be remembered.
            spare: of a training pass keep what goes into the block, and attention among cells, and compute the rest
                again in the backward pass. Of a token that is 5 D numbers instead of 23 D (`KEPT`), for a sixth more
                arithmetic. If not, only what costs next to nothing is computed again, norms and the GELU.
            between: what becomes of the states (T, B, S, D) between attention among cells and attention over time; it
                keeps cells apart.

        Returns:
            the states (T - first, B, S, D), and the memory of the M + keep steps, or nothing if none are kept.
        """
        o_TBSD = self.over_cells(recomputed(self.project_cells, x_TBSD))
        if keep:
            x_TBSD, *new = self.over_time(x_TBSD, o_TBSD, *memory, first=first, spare=spare, between=between)
            old = memory[: len(memory) // 2], memory[len(memory) // 2 :]
            return x_TBSD, tuple(chain(*((*o, *n[:keep].clone().split(1)) for o, n in zip(old, new, strict=True))))

        def rest(*given: Tensor) -> Tensor:
            return self.over_time(*given, first=first, spare=spare, between=between)[0]

        return in_parts(partial(recomputed, rest) if spare else rest, 2, x_TBSD, o_TBSD, *memory), ()

    def project_cells(self, x_TBSD: Tensor) -> Tensor:
        """Queries, keys and values of attention among cells, (T, B, S, 3D)."""
        qkv_TBSE: Tensor = self.space.qkv(self.norm1(x_TBSD))
        return qkv_TBSE

    def over_cells(self, qkv_TBSE: Tensor) -> Tensor:
        """What each cell reads from those of its step (T, B, S, D), not yet projected."""
        q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in self.space.split(qkv_TBSE))
        return attend(q, k, v, scale=self.space.scale).transpose(1, 2).reshape(*qkv_TBSE.shape[:3], -1)

    def over_time(
        self,
        x_TBSD: Tensor,
        o_TBSD: Tensor,
        *memory: Tensor,
        first: int,
        spare: bool,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rest of the block, in which each cell is by itself: states of the steps from `first` on, and keys and
        values (T, B, S, h, d) of all."""
        x_TBSD = added(x_TBSD, self.space.proj(o_TBSD))
        if between is not None:
            x_TBSD = between(x_TBSD)
        q, k, v = self.time.split(self.time.qkv(x_TBSD))
        x_TBSD, q = x_TBSD[first:], q[first:]
        L, half = x_TBSD.shape[0], len(memory) // 2
        if L:
            k_M, v_M = (torch.cat([*old, x]) if old else x for old, x in ((memory[:half], k), (memory[half:], v)))
            q_NhLd, k_NhMd, v_NhMd = (x.flatten(1, 2).permute(1, 2, 0, 3) for x in (q, k_M, v_M))
            o_NhLd = attend(q_NhLd, k_NhMd, v_NhMd, scale=self.time.scale, causal=True)
            x_TBSD = added(x_TBSD, self.time.proj(o_NhLd.permute(2, 0, 1, 3).reshape(x_TBSD.shape)))
            x_TBSD = self.mlp(x_TBSD, spare)
        return x_TBSD, k, v

    def mlp(self, x_D: Tensor, spare: bool) -> Tensor:
        run = plainly if spare else recomputed  # what is recomputed as a whole need not be in parts
        hidden_E = run(lambda x: self.fc1(self.norm2(x)), x_D)
        return added(x_D, run(lambda x: self.drop(self.fc2(self.drop(F.gelu(x)))), hidden_E))


class CausalStack(nn.ModuleList):
    """Blocks in a row, each with its own memory."""

    def scale_for_mup(self, width: float) -> None:
        """Initial weights of hidden matrices as they suit a width (`mup_width`)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.mul_(width**-0.5)

    def forward(
        self, x_TBSD: Tensor, cache: CausalCache, *given: Any, keep: int = 0, first: int = 0
    ) -> tuple[Tensor, CausalCache]:
        """The steps after those of a cache through all blocks.

        Args:
            given: what a block takes besides.
            keep: how many of these steps are to be remembered; their keys and values are of no use otherwise.
            first: from which step on anyone reads the states that come out.

        Returns:
            states (T - first, B, S, D), and, if any are kept, a cache of the steps so far.
        """
        memory, last = [], len(self) - 1
        spare = not roomy(KEPT * x_TBSD.numel() * x_TBSD.element_size() * len(self), x_TBSD.device)
        for i, block in enumerate(self):
            old = cache.memory[i] if cache.memory else ()
            x_TBSD, so_far = block(x_TBSD, old, first if i == last else 0, keep, spare, *given)
            memory.append(so_far)
        return x_TBSD, CausalCache(tuple(memory), cache.steps + keep) if keep else cache
