"""Parts of a decoder over video tokens: grouped-query attention, RMSNorm and SwiGLU.

Grouped queries: arXiv 2305.13245; SwiGLU: arXiv 2002.05202.

Shape suffixes: ... any leading axes, B batch, L tokens of this pass, M tokens so far, D width, h query heads,
g key and value heads, d head width, C tokens of a text, E width of a text.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.nn.rope import Table, rotate

KeysValues = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """x / rms(x), computed in float32 at least and rounded to the type of x, times a weight."""

    def __init__(self, dim: int, eps: float, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim, dtype=dtype)), eps

    def forward(self, x_D: Tensor) -> Tensor:
        wide_D = x_D.to(torch.promote_types(x_D.dtype, torch.float32))
        normed: Tensor = F.rms_norm(wide_D, x_D.shape[-1:], eps=self.eps).to(x_D.dtype)
        return normed * self.weight


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), without biases."""

    def __init__(self, dim: int, hidden: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(dim, hidden, bias=False, dtype=dtype) for _ in range(2))
        self.w2 = nn.Linear(hidden, dim, bias=False, dtype=dtype)

    def forward(self, x_D: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x_D)) * self.w3(x_D))
        return out


class TokenMemory(NamedTuple):
    """What a block keeps from pass to pass.

    Attributes:
        keys, values: (B, g, capacity, d), into which each pass writes those of its tokens.
        text: keys and values of the text (B, g, C, d), in a model that reads one.
    """

    keys: Tensor
    values: Tensor
    text: KeysValues | None


class GroupedAttention(nn.Module):
    """Attention in which several query heads share a head of keys and values: query head j reads head j // (h / g).

    Queries and keys have an RMSNorm over the head's width, one weight for all heads, before any rotation. No biases.

    Args:
        keys_dim: width of what keys and values are made of; None: the same as the queries'.
    """

    def __init__(
        self, dim: int, heads: int, kv_heads: int, head_dim: int, eps: float, *, keys_dim: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if heads % kv_heads:
            raise HwmError(f"{heads} query heads do not share {kv_heads} heads of keys evenly")
        self.kv_heads, self.head_dim = kv_heads, head_dim
        keys_dim = dim if keys_dim is None else keys_dim
        self.wq = nn.Linear(dim, heads * head_dim, bias=False, dtype=dtype)
        self.wk, self.wv = (nn.Linear(keys_dim, kv_heads * head_dim, bias=False, dtype=dtype) for _ in range(2))
        self.wo = nn.Linear(heads * head_dim, dim, bias=False, dtype=dtype)
        self.q_norm, self.k_norm = (RMSNorm(head_dim, eps, dtype) for _ in range(2))

    def queries(self, x_BLD: Tensor, table: Table | None = None) -> Tensor:
        return self._head(self.wq(x_BLD), self.q_norm, table)

    def keys(self, x_BLD: Tensor, table: Table | None = None) -> KeysValues:
        """Keys and values, each (B, g, L, d)."""
        return self._head(self.wk(x_BLD), self.k_norm, table), self._split(self.wv(x_BLD))

    def over(self, q_BhLd: Tensor, keys: KeysValues, *, causal: bool, mask_BM: Tensor | None = None) -> Tensor:
        """What the queries read, projected out: (B, L, D)."""
        o_BhLd = attend_grouped(q_BhLd, *keys, causal=causal, mask_BM=mask_BM)
        out: Tensor = self.wo(o_BhLd.transpose(1, 2).flatten(2))
        return out

    def forward(
        self,
        x_BLD: Tensor,
        table: Table,
        memory: TokenMemory | None,
        start: int | Tensor,
        seen_BM: Tensor | None = None,
    ) -> Tensor:
        """Causal self-attention of tokens start..start+L, over those before them too where there is a memory.

        Args:
            start: a tensor (1,) is read where it lies: there is one token then, which attends over the whole memory
                under a mask, so that passes at all places have the same shapes. Else over as much as there is.
            seen_BM: bool, that mask: which places of the memory hold this token and those before it.
        """
        q, (k, v) = self.queries(x_BLD, table), self.keys(x_BLD, table)
        if memory is None:
            return self.over(q, (k, v), causal=True)
        if isinstance(start, Tensor):
            memory.keys.index_copy_(2, start, k)
            memory.values.index_copy_(2, start, v)
            return self.over(q, (memory.keys, memory.values), causal=False, mask_BM=seen_BM)
        stop = start + x_BLD.shape[1]
        memory.keys[:, :, start:stop], memory.values[:, :, start:stop] = k, v
        return self.over(q, (memory.keys[:, :, :stop], memory.values[:, :, :stop]), causal=True)

    def _split(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _head(self, x_BLE: Tensor, norm: nn.Module, table: Table | None) -> Tensor:
        x_BhLd: Tensor = norm(self._split(x_BLE))
        return (x_BhLd if table is None else rotate(x_BhLd, table)).to(x_BLE.dtype)


def attend_grouped(
    q_BhLd: Tensor, k_BgMd: Tensor, v_BgMd: Tensor, *, causal: bool, mask_BM: Tensor | None = None
) -> Tensor:
    """Attention of h heads of queries over g heads of keys, none of which is copied for its queries.

    Args:
        causal: the queries are the last L of the M tokens, and see no later ones.
        mask_BM: bool, which keys may be seen at all, of attention that is not causal.
    """
    length, total, groups = q_BhLd.shape[2], k_BgMd.shape[2], k_BgMd.shape[1]
    if causal and length > 1:
        if length == total:
            return F.scaled_dot_product_attention(q_BhLd, k_BgMd, v_BgMd, is_causal=True, enable_gqa=True)
        from torch.nn.attention.bias import causal_lower_right  # here: it imports torch's compiler

        later = causal_lower_right(length, total)
        return F.scaled_dot_product_attention(q_BhLd, k_BgMd, v_BgMd, attn_mask=later, enable_gqa=True)
    # nothing hides anything from any query, so those of one head of keys are only more queries to the same keys
    q_BgNd = q_BhLd.unflatten(1, (groups, -1)).flatten(2, 3)
    mask = None if mask_BM is None else mask_BM[:, None, None]
    return (
        F.scaled_dot_product_attention(q_BgNd, k_BgMd, v_BgMd, attn_mask=mask).unflatten(2, (-1, length)).flatten(1, 2)
    )
