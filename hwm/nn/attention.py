"""Attention: one call, and the modules that project for it.

Keys and values are returned as plain tensors, so that whoever calls may keep them: a cache is a value that the caller
holds, and no module has a state.

Shape suffixes: ... any leading axes, L query length, M key length, D width, h heads, d = D/h head width.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from hwm.errors import HwmError
from hwm.nn.compiled import Compiled
from hwm.nn.layers import recomputed
from hwm.nn.rope import Table, rotate


class Plain(NamedTuple):
    """How attention is written out on a CPU.

    The fused kernel exists to save the memory of the scores, which are few here, and in half precision its backward
    pass is slow for short sequences: on one core in bfloat16, forward and backward over 512 x 6 problems of 6 queries
    and 24 keys take 171 ms fused and 14 ms written out, 48 x 6 problems of 64 and 128 take 47 and 14 ms, 16 x 8
    problems of 256 and 256 take 76 and 37 ms, 12 x 8 of 320 and 320 126 and 84 ms, 4 x 8 of 800 and 800 207 and 155 ms,
    4 x 8 of 1024 and 1024 317 and 316 ms. In float32 it is the slower one only where keys are very few (23 and
    17 ms; 22 and 28 ms; 58 and 131 ms).

    Attributes:
        keys: up to so many are written out.
        first: up to so many, the softmax runs over the first axis: over a last axis so short it takes its exponentials
            one by one. 65 x 6 problems of 2 queries and 14 keys take 162 us so, and 318 us with the keys last.
    """

    keys: int
    first: int


FLOAT32, HALF = Plain(keys=24, first=15), Plain(keys=800, first=16)
# Of more keys than this, scores that were written out are not kept for the backward pass, and not more than so many are
# made at a time: 16 x 8 problems of 256 and 256 take 49 ms instead of 38, and leave 12 MB instead of 46.
KEPT_KEYS, SCORES_AT_ONCE = 128, 2**21
# On a GPU: up to so many scores a problem, in so many problems or more, are products and sums of one compiled kernel. A
# fused kernel computes tiles of 64 queries and 64 keys at least, 99 % of them for nothing where there are 3 and 6. By
# count: 4,096 scores of matrix units, which are some 16 times as fast as others, cost what 256 cost there; and fewer
# problems are over before the next kernel is launched.
FEW_SCORES, MANY_PROBLEMS = 64, 2**13


class Way(Enum):
    """A way of computing attention."""

    FUSED = "a kernel of PyTorch's"
    FIRST = "written out, with the softmax over the first axis"
    LAST = "written out, with the softmax over the last axis"
    PARTS = "the same, a part of the problems at a time, whose scores are forgotten"
    COMPILED = "products and sums, compiled"


def way(q_hLd: Tensor, k_hMd: Tensor) -> Way:
    """How attention is computed, by device and sizes."""
    keys = k_hMd.shape[-2]
    if q_hLd.device.type == "cuda":
        problems, scores = q_hLd.shape[0] * q_hLd.shape[1], q_hLd.shape[2] * keys
        return Way.COMPILED if scores <= FEW_SCORES and problems >= MANY_PROBLEMS else Way.FUSED
    plain = FLOAT32 if q_hLd.dtype == torch.float32 else HALF
    if q_hLd.device.type != "cpu" or keys > plain.keys:
        return Way.FUSED
    if keys > KEPT_KEYS:
        return Way.PARTS
    return Way.FIRST if keys <= plain.first else Way.LAST


def attend(
    q_hLd: Tensor,
    k_hMd: Tensor,
    v_hMd: Tensor,
    mask_LM: Tensor | None = None,
    scale: float | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """softmax(scale q k^T) v over (N, h, L, d) queries and (N, h, M, d) keys.

    Args:
        mask_LM: True means "may see".
        scale: of the scores; None is 1 / sqrt(d).
        causal: the queries are the last L of the M places, and none sees a later one; instead of a mask.
    """
    found, queries, keys = way(q_hLd, k_hMd), q_hLd.shape[-2], k_hMd.shape[-2]
    scale = q_hLd.shape[-1] ** -0.5 if scale is None else scale
    square = causal and queries == keys  # the one kind of mask that the fastest of the fused kernels know
    if causal and queries > 1 and not (square and found is Way.FUSED):
        mask_LM = torch.ones(queries, keys, dtype=torch.bool, device=q_hLd.device).tril(keys - queries)
    if found is Way.COMPILED:
        return _short(q_hLd, k_hMd, v_hMd, mask_LM, scale)
    if found is Way.FUSED:
        return fused(q_hLd, k_hMd, v_hMd, mask_LM, scale, square)
    if found is not Way.PARTS:
        return written_out(q_hLd, k_hMd, v_hMd, mask_LM, scale, found is Way.FIRST)
    size = max(1, SCORES_AT_ONCE // (q_hLd.shape[1] * queries * keys))
    parts = zip(*(x.split(size) for x in (q_hLd, k_hMd, v_hMd)), strict=True)
    return torch.cat([recomputed(written_out, *part, mask_LM, scale, False) for part in parts])


def fused(
    q_hLd: Tensor, k_hMd: Tensor, v_hMd: Tensor, mask_LM: Tensor | None, scale: float, square: bool = False
) -> Tensor:
    """By a kernel of PyTorch's; `square` for as many queries as keys, none of which sees a later key."""
    return F.scaled_dot_product_attention(q_hLd, k_hMd, v_hMd, attn_mask=mask_LM, is_causal=square, scale=scale)


def written_out(
    q_hLd: Tensor, k_hMd: Tensor, v_hMd: Tensor, mask_LM: Tensor | None, scale: float, first: bool
) -> Tensor:
    """softmax(scale q k^T) v by its parts, the softmax over the first axis or over the last."""
    scores_hLM = (q_hLd * scale) @ k_hMd.transpose(-1, -2)
    if mask_LM is not None:
        hidden_LM = torch.zeros_like(mask_LM, dtype=scores_hLM.dtype).masked_fill_(~mask_LM, -torch.inf)
        scores_hLM = scores_hLM + hidden_LM
    if first:
        return scores_hLM.movedim(-1, 0).softmax(0).movedim(0, -1).contiguous() @ v_hMd
    return scores_hLM.softmax(-1) @ v_hMd


def products_and_sums(
    q_hLd: Tensor, k_hMd: Tensor, v_hMd: Tensor, mask_LM: Tensor | None, scale: float, dtype: torch.dtype
) -> Tensor:
    """softmax(scale q k^T) v in float32 at least, without a matrix product; what it makes on the way is large."""
    wide = torch.promote_types(q_hLd.dtype, torch.float32)
    q_hLd, k_hMd, v_hMd = (x.to(wide) for x in (q_hLd, k_hMd, v_hMd))
    scores_hLM = (q_hLd[..., :, None, :] * k_hMd[..., None, :, :]).sum(-1) * scale
    if mask_LM is not None:
        scores_hLM = scores_hLM.masked_fill(~mask_LM, -torch.inf)
    weights_hLM = scores_hLM.softmax(-1)
    return (weights_hLM[..., None] * v_hMd[..., None, :, :]).sum(-2).to(dtype)


COMPILED = Compiled(products_and_sums, key=lambda q, k, *_: (q.shape[1:], k.shape[2], q.dtype))


def _short(q_hLd: Tensor, k_hMd: Tensor, v_hMd: Tensor, mask_LM: Tensor | None, scale: float) -> Tensor:
    """By one compiled kernel, of which a compiler around it makes a part of its own, or where that cannot be, fused."""
    kind = q_hLd.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else v_hMd.dtype
    if torch.compiler.is_compiling():
        return products_and_sums(q_hLd, k_hMd, v_hMd, mask_LM, scale, dtype)
    # where operations are counted, or recomputed by their kind, nothing can be compiled
    found = None if is_in_torch_dispatch_mode() else COMPILED(q_hLd, k_hMd, v_hMd, mask_LM, scale, dtype)
    return fused(q_hLd, k_hMd, v_hMd, mask_LM, scale) if found is None else found


class Attention(nn.Module):
    """The weights of self-attention: a fused projection without bias, laid out (3, h, d), and one out of it with bias.

    The optional norm on queries and keys is one affine LayerNorm(d) for both, after the rotation, as released.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise HwmError(f"a width of {dim} does not split into {heads} heads")
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()

    def project(self, x_D: Tensor, table: Table) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) -> rotated queries, rotated keys and values, each (..., h, d); the table broadcasts over heads."""
        qkv = self.qkv(x_D).unflatten(-1, (3 * self.heads, self.head_dim))
        qk, v = qkv.split((2 * self.heads, self.heads), -2)  # (not slices, whose gradients are each a whole tensor)
        q, k = self.norm(rotate(qk, table)).chunk(2, -2)
        return q, k, v


class CrossAttention(nn.Module):
    """The weights of attention from one sequence to another: separate projections, queries and keys always normed.

    As released: no biases but that of the projection out, and one LayerNorm(d) shared by queries and keys. It comes
    before the rotation (the release has none here), so that its scale cannot bend the angles.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj, self.norm = nn.Linear(dim, dim), nn.LayerNorm(self.head_dim)

    def queries(self, x_D: Tensor, table: Table) -> Tensor:
        """(..., D) -> (..., h, d)."""
        return rotate(self.norm(self.q(x_D).unflatten(-1, (self.heads, self.head_dim))), table)

    def keys(self, x_D: Tensor, table: Table) -> tuple[Tensor, Tensor]:
        """(..., D) -> keys and values, each (..., h, d)."""
        k, v = (linear(x_D).unflatten(-1, (self.heads, self.head_dim)) for linear in (self.k, self.v))
        return rotate(self.norm(k), table), v
