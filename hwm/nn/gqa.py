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
        normed: Tensor = F.rms_norm(x_D, x_D.shape[-1:], eps=self.eps)  # which widens half precision by itself
        return normed * self.weight


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), without biases."""

    def __init__(self, dim: int, hidden: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(dim, hidden, bias=False, dtype=dtype) for _ in range(2))
        self.w2 = nn.Linear(hidden, dim, bias=False, dtype=dtype)

    def forward(self, x_D: Tensor) -> Tensor:
        x_D = x_D.to(self.w1.weight.dtype)
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

    def read(self, q_BhLd: Tensor, k_BgLd: Tensor, v_BgLd: Tensor, start: int) -> Tensor:
        """What tokens start..start+L read of those before them, and of one another, whose keys and values are kept."""
        stop = start + q_BhLd.shape[2]
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = k_BgLd, v_BgLd
        return attend_grouped(q_BhLd, self.keys[:, :, :stop], self.values[:, :, :stop], causal=True)


MARKS, ABSENT = 8, -4096.0
"""Channels that mark a place as empty, as many as keep rows aligned for fused kernels; and what stands in them then,
a number of every format. Of a score that is eight times lower the exponential is zero."""


class MarkedMemory(NamedTuple):
    """The same for passes over one token that all have the same shapes, wherever the token is.

    They attend over all places, of which some hold no token yet. A mask would say so, but the fused kernels that are
    made for few queries and many keys take none. So each key has further channels, of which each query has 1: `ABSENT`
    where there is no token, else 0. What is absent has a weight of exactly zero.

    Attributes:
        keys, values: (B, g, places, d + MARKS).
        text: as `TokenMemory.text`.
    """

    keys: Tensor
    values: Tensor
    text: KeysValues | None

    def read(self, q_Bh1d: Tensor, k_Bg1d: Tensor, v_Bg1d: Tensor, start_1: Tensor) -> Tensor:
        """What token `start` (1,), a number read where it lies, reads of those before it and of itself."""
        width = q_Bh1d.shape[-1]
        self.keys.index_copy_(2, start_1, F.pad(k_Bg1d, (0, MARKS)))
        self.values[..., :width].index_copy_(2, start_1, v_Bg1d)
        q_Bh1d = F.pad(q_Bh1d, (0, MARKS), value=1.0)
        return attend_grouped(q_Bh1d, self.keys, self.values, causal=False, scale=width**-0.5)[..., :width]

    def upto(self, stop: int) -> MarkedMemory:
        """Of the first places alone."""
        return MarkedMemory(self.keys[:, :, :stop], self.values[:, :, :stop], self.text)


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
        """(B, h, L, d)."""
        return self._head(self.wq(x_BLD.to(self.wq.weight.dtype)), self.q_norm, table)

    def keys(self, x_BLD: Tensor, table: Table | None = None) -> KeysValues:
        """Keys and values, each (B, g, L, d)."""
        x_BLD = x_BLD.to(self.wk.weight.dtype)
        return self._head(self.wk(x_BLD), self.k_norm, table), self._split(self.wv(x_BLD))

    def over(self, q_BhLd: Tensor, keys: KeysValues, *, mask_BM: Tensor | None = None) -> Tensor:
        """What queries that see all keys read, projected out: (B, L, D)."""
        return self._out(attend_grouped(q_BhLd, *keys, causal=False, mask_BM=mask_BM))

    def forward(
        self, x_BLD: Tensor, table: Table, memory: TokenMemory | MarkedMemory | None, start: int | Tensor
    ) -> Tensor:
        """Causal self-attention of tokens start..start+L, over those before them too where there is a memory.

        Args:
            start: a number, or (1,) for a `MarkedMemory`.
        """
        x_BLD = x_BLD.to(self.wq.weight.dtype)  # once; of weights that are cast already, autocast knows nothing
        q, (k, v) = self.queries(x_BLD, table), self.keys(x_BLD, table)
        if memory is None:
            return self._out(attend_grouped(q, k, v, causal=True))
        return self._out(memory.read(q, k, v, start))  # type: ignore[arg-type]

    def _out(self, o_BhLd: Tensor) -> Tensor:
        out: Tensor = self.wo(o_BhLd.transpose(1, 2).flatten(2))
        return out

    def _split(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _head(self, x_BLE: Tensor, norm: nn.Module, table: Table | None) -> Tensor:
        x_BhLd: Tensor = norm(self._split(x_BLE))
        return (x_BhLd if table is None else rotate(x_BhLd, table)).to(x_BLE.dtype)


def attend_grouped(
    q_BhLd: Tensor,
    k_BgMd: Tensor,
    v_BgMd: Tensor,
    *,
    causal: bool,
    mask_BM: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of h heads of queries over g heads of keys, none of which is copied for its queries.

    Args:
        causal: the queries are the last L of the M tokens, and see no later ones.
        mask_BM: bool, which keys may be seen at all, of attention that is not causal.
        scale: of the scores of attention that is not causal; None is 1 / sqrt(d).
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
    o_BgNd = F.scaled_dot_product_attention(q_BgNd, k_BgMd, v_BgMd, attn_mask=mask, scale=scale)
    return o_BgNd.unflatten(2, (-1, length)).flatten(1, 2)
