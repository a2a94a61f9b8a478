"""Four streams of tokens that share weights, and attend to one another, as a table says: the block of Flow-HWM.

A variant of the paper is a row; a model picks a row for each of its layers.

Shape suffixes: B batch, L tokens of a stream, M tokens that are attended to, D width, h heads, d = D/h head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.nn.attention import attend
from hwm.nn.dit import Modulation, modulated
from hwm.nn.layers import Mlp
from hwm.nn.rope import Table, rotate
from hwm.nn.streams import FULL, FUTURE_ACTION, FUTURE_VIDEO, MODALITY, OWN, PAST_ACTION, PAST_VIDEO, STREAMS

CONTEXT = tuple(s for s in STREAMS if s != FUTURE_VIDEO)
TOGETHER = ((FUTURE_VIDEO, PAST_VIDEO, FUTURE_ACTION, PAST_ACTION),)
APART = tuple((s,) for s in STREAMS)

Streams = dict[str, Tensor]  # stream -> tokens (B, L, D)
KeysValues = tuple[Tensor, Tensor]  # (B, h, M, d) each


@dataclass(frozen=True)
class FlowRow:
    """One kind of block.

    Attributes:
        weights: stream -> name of its modulation, of its projection to queries, keys and values, and of its MLP.
        proj: stream -> name of the projection out of attention.
        groups: streams that attend to one another, and to no others.
        cross: whether the future video then reads all other streams.
        qk_norm: LayerNorms on queries and keys, before the rotation.
    """

    weights: Mapping[str, str]
    proj: Mapping[str, str]
    groups: tuple[tuple[str, ...], ...] = TOGETHER
    cross: bool = False
    qk_norm: bool = True


FLOW_ROWS = {
    # arXiv 2506.01182; queries and keys are normed where the released code norms them
    "base": FlowRow(OWN, FULL),
    "modality": FlowRow(MODALITY, FULL, qk_norm=False),
    "full": FlowRow(FULL, FULL, qk_norm=False),
    "split": FlowRow(MODALITY, MODALITY, groups=APART, cross=True),
}


class Heads(nn.Module):
    """(B, L, D) -> `parts` tensors (B, h, L, d) through one projection without bias.

    The first `normed` of them (queries, keys) are normed, each with weights of its own, and then rotated: so a norm
    cannot bend the angles.
    """

    def __init__(self, dim: int, heads: int, parts: int, normed: int, norm: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise HwmError(f"a width of {dim} does not split into {heads} heads")
        self.heads, self.parts = heads, parts
        self.linear = nn.Linear(dim, parts * dim, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(dim // heads) if norm else nn.Identity() for _ in range(normed))

    def forward(self, x_BLD: Tensor, table: Table) -> tuple[Tensor, ...]:
        split = self.linear(x_BLD).unflatten(-1, (self.parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        turned = [rotate(norm(x), table) for norm, x in zip(self.norms, split[: len(self.norms)], strict=True)]
        return *(x.to(split[-1].dtype) for x in turned), *split[len(turned) :]


def joined(x_BhLd: Tensor) -> Tensor:
    """Heads side by side: (B, L, D)."""
    return x_BhLd.transpose(1, 2).flatten(2)


class CrossVideo(nn.Module):
    """The future video reads the other streams: its own modulation, and keys and values by a projection each."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.modulation = Modulation(dim, 3)
        self.q = Heads(dim, heads, parts=1, normed=1)
        self.kv = nn.ModuleDict({s: Heads(dim, heads, parts=2, normed=1) for s in CONTEXT})
        self.proj = nn.Linear(dim, dim)

    def keys(self, x: Streams, tables: Mapping[str, Table]) -> KeysValues:
        """Of all streams but the future video."""
        pairs = [self.kv[s](F.layer_norm(x[s], x[s].shape[-1:]), tables[s]) for s in CONTEXT]
        keys, values = zip(*pairs, strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)

    def forward(self, x_BLD: Tensor, c_BD: Tensor, table: Table, keys: KeysValues) -> Tensor:
        scale, shift, gate = self.modulation(c_BD)
        (q,) = self.q(modulated(x_BLD, scale, shift), table)
        return x_BLD + gate * self.proj(joined(attend(q, *keys)))


class FlowBlock(nn.Module):
    """Attention within the row's groups, (cross attention,) and MLPs; each residual, modulated and gated (AdaLN-Zero).

    Args:
        last: whether only the future video's MLP is read of this block: those that serve no other stream are left out.
    """

    def __init__(self, row: FlowRow, dim: int, heads: int, ratio: float, last: bool) -> None:
        super().__init__()
        self.row, names = row, dict.fromkeys(row.weights.values())
        self.mlps = (FUTURE_VIDEO,) if last else STREAMS
        self.modulation = nn.ModuleDict({n: Modulation(dim, 6) for n in names})
        self.qkv = nn.ModuleDict({n: Heads(dim, heads, parts=3, normed=2, norm=row.qk_norm) for n in names})
        self.proj = nn.ModuleDict({n: nn.Linear(dim, dim) for n in dict.fromkeys(row.proj.values())})
        self.mlp = nn.ModuleDict({n: Mlp(dim, ratio) for n in dict.fromkeys(row.weights[s] for s in self.mlps)})
        self.cross = CrossVideo(dim, heads) if row.cross else None

    def forward(
        self, x: Streams, times: Streams, tables: Mapping[str, Table], context: KeysValues | None = None
    ) -> tuple[Streams, KeysValues | None]:
        """Run streams through the block: all four, or those of whole groups.

        Args:
            times: stream -> embedded flow time (B, D).
            tables: stream -> rotary positions.
            context: what the context left, where it went through the block before: the future video reads it.

        Returns:
            the streams, and keys and values of the context, in a row with cross attention.
        """
        row, x = self.row, dict(x)
        m = {s: self.modulation[row.weights[s]](times[s]) for s in x}
        for group in row.groups:
            if group[0] in x:
                for s, read in self.attention(x, m, tables, group).items():
                    x[s] = x[s] + m[s][2] * read
        if self.cross is not None:
            context = context or self.cross.keys(x, tables)
            if FUTURE_VIDEO in x:
                x[FUTURE_VIDEO] = self.cross(x[FUTURE_VIDEO], times[FUTURE_VIDEO], tables[FUTURE_VIDEO], context)
        for s in x:
            if s in self.mlps:
                x[s] = x[s] + m[s][5] * self.mlp[row.weights[s]](modulated(x[s], m[s][3], m[s][4]))
        return x, context

    def attention(
        self, x: Streams, m: Mapping[str, tuple[Tensor, ...]], tables: Mapping[str, Table], group: tuple[str, ...]
    ) -> Streams:
        """What each stream of a group reads of the group.

        After the last block only the future video is read: in a group of it with others, only it asks.
        """
        parts = [self.qkv[self.row.weights[s]](modulated(x[s], m[s][0], m[s][1]), tables[s]) for s in group]
        asking = tuple(s for s in group if s in self.mlps) or group
        q, k, v = (torch.cat(each, 2) for each in zip(*parts, strict=True))
        lengths = [x[s].shape[1] for s in asking]
        read = joined(attend(q[:, :, : sum(lengths)], k, v)).split(lengths, 1)
        return {s: self.proj[self.row.proj[s]](r) for s, r in zip(asking, read, strict=True)}
