"""The three parts of a spatio-temporal block: attention over the cells of a step, attention over time, and the MLPs.

A pass runs some steps of the window through the blocks. What it needs of steps that ran earlier it reads from their
keys and values (`Memory`); what it leaves is its own. So one code serves three uses: the clean past is run once and
remembered, each look at the missing steps reads that memory, and during play the memory lives on as the cache.

Actions are one token a step and stay so: their keys and values are the same for all cells of a step, so they are
projected once and only expanded for the attention over time, where the release repeats every action token S times,
runs it through all layers S times, and averages at the end of each.

Shape suffixes: T steps of this pass, M steps remembered, B batch, S cells, D width, h heads, d head width.
Time comes first in every tensor here: then both attentions are views of the same memory, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hwm.nn.attention import Attention, CrossAttention, attend
from hwm.nn.layers import Mlp
from hwm.nn.rope import Table

Roles = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class View:
    """Which steps a pass runs, when they are, and what they may see.

    Attributes:
        roles: runs of steps in order, as (role, number of steps): which weights a step uses.
        cells: rotary tables of the cells, (S, 1, d/2).
        times: rotary tables of the steps, (T, 1, 1, d/2).
        mask: (T, M + T) bool, which remembered and own steps each step sees; None is all of them. It holds for video
            and actions alike: an action sits at the time of the step that it leads to.
        near: for each earlier step whose cells spatial attention reads too, its index in the memory, by step.
        keep_cells: whether later passes will read this pass's cells so.
    """

    roles: Roles
    cells: Table
    times: Table
    mask: Tensor | None = None
    near: tuple[tuple[int, ...], ...] = ()
    keep_cells: bool = False


class Memory(NamedTuple):
    """Keys and values that steps left in one block.

    Attributes:
        cells: of spatial attention, each (M, B, S, h, d); empty where nobody reads them.
        video: of attention over time, each (M, B, S, h, d).
        action: each (M, B, h, d).
    """

    cells: tuple[Tensor, ...]
    video: tuple[Tensor, Tensor]
    action: tuple[Tensor, Tensor]

    def then(self, later: Memory) -> Memory:
        """This memory, and the steps that came later."""
        return Memory(*(tuple(map(_after, a, b)) for a, b in zip(self, later, strict=True)))  # type: ignore[arg-type]


def _after(earlier: Tensor, later: Tensor) -> Tensor:
    return torch.cat([earlier, later])


def _over_time(x_TBhd: Tensor) -> Tensor:
    """(T, ..., h, d) -> (N, h, T, d), N all the axes between."""
    return x_TBhd.flatten(1, -3).permute(1, 2, 0, 3)


def attend_over_time(q_Thd: Tensor, keys_Mhd: Sequence[Tensor], mask_TM: Tensor | None) -> Tensor:
    """Queries (T, ..., h, d) to keys and values (M, ..., h, d), each of the axes between by itself: (T, ..., D)."""
    k, v = keys_Mhd
    o_NhTd = attend(_over_time(q_Thd), _over_time(k), _over_time(v), mask_TM)
    return o_NhTd.permute(2, 0, 1, 3).reshape(*q_Thd.shape[:-2], -1)


class PerStream(nn.ModuleDict):
    """One module for each group of weights; a row says which group a role uses."""

    def __init__(self, row: Mapping[str, str], make: Callable[[], nn.Module]) -> None:
        super().__init__({group: make() for group in dict.fromkeys(row.values())})
        self.row = dict(row)

    def of(self, role: str) -> Any:
        return self[self.row[role]]


def runs(roles: Roles, *parts: PerStream) -> list[tuple[str, int]]:
    """Neighbouring steps that use the same weights in all `parts`, as one run: shared weights are one large call."""
    found: list[tuple[str, int]] = []
    for role, steps in roles:
        if found and all(part.row[found[-1][0]] == part.row[role] for part in parts):
            role, steps = found[-1][0], found.pop()[1] + steps
        found.append((role, steps))
    return found


def by_run(x: Tensor, roles: Roles, parts: tuple[PerStream, ...], fn: Callable[[Tensor, str], Tensor]) -> Tensor:
    """Apply `fn` to each run of steps (axis 0) with the role that names its weights."""
    found = runs(roles, *parts)
    if len(found) == 1:
        return fn(x, found[0][0])
    return torch.cat([fn(piece, role) for piece, (role, _) in zip(x.split([n for _, n in found]), found, strict=True)])


class SpaceAttention(nn.Module):
    """x += attention over the S cells of each step, with 2-D rotary positions; no step sees another.

    With `View.near`, the cells of earlier clean steps are keys too: a picture that shifts as the camera turns is then
    one look away, at the same rotary offsets. (Not in the paper, where steps meet only cell by cell, over time.)
    """

    def __init__(self, dim: int, heads: int, row: Mapping[str, str], qk_norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = PerStream(row, lambda: Attention(dim, heads, qk_norm))

    def forward(self, x_TBSD: Tensor, view: View, memory: Memory | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        kept: list[tuple[Tensor, Tensor]] = []

        def run(h_TBSD: Tensor, role: str) -> Tensor:
            attn = self.attn.of(role)
            q, k, v = attn.project(h_TBSD, view.cells)
            kept.append((k, v))
            if memory is not None and view.near:
                near = ([_pick(old, index) for index in view.near] for old in memory.cells)
                k, v = (torch.cat([*old, own], 2) for old, own in zip(near, (k, v), strict=True))
            o = attend(*(t.flatten(0, 1).transpose(1, 2) for t in (q, k, v)))
            return attn.proj(o.transpose(1, 2).reshape(h_TBSD.shape))

        x_TBSD = x_TBSD + by_run(self.norm(x_TBSD), view.roles, (self.attn,), run)
        return x_TBSD, tuple(t[0] if len(t) == 1 else torch.cat(t) for t in zip(*kept, strict=True))  # type: ignore[return-value]


def _pick(x_M: Tensor, index: tuple[int, ...]) -> Tensor:
    """Steps of a memory by index; a slice where the indices are a range, which costs nothing."""
    if index == tuple(range(index[0], index[0] + len(index))):
        return x_M[index[0] : index[0] + len(index)]
    return torch.stack([x_M[i] for i in index])


class JointTime(nn.Module):
    """Attention over time in which video and actions are one sequence: one set of weights for all streams.

    A cell's video tokens attend to the video tokens of that cell and to the actions. Action tokens attend to actions
    and to the mean over cells of the video's keys and values. The release lets the S copies of an action token each
    read one cell and averages what they read; with the mean inside, actions read from video at the cost of one more
    key a step instead of S.

    Args:
        stream_embedding: a learned vector for each of past and future video and past and future actions, added before
            the projection.
        pool: attend with the mean over cells, and give all cells the same result (the first version of the model with
            shared parameters).
    """

    def __init__(
        self, dim: int, heads: int, qk_norm: bool = False, stream_embedding: bool = False, pool: bool = False
    ) -> None:
        super().__init__()
        self.norm, self.attn, self.pool = nn.LayerNorm(dim), Attention(dim, heads, qk_norm), pool
        self.stream = nn.Parameter(torch.zeros(4, dim)) if stream_embedding else None

    def forward(
        self, x_TBSD: Tensor, a_TBD: Tensor, view: View, memory: Memory | None, outputs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor, Memory]:
        """Video and actions with what they read added (where `outputs` asks for them), and the keys and values left."""
        video, action = self.norm(x_TBSD), self.norm(a_TBD)
        if self.pool:
            video = video.mean(2, keepdim=True)
        if self.stream is not None:
            which = torch.cat([self.stream[[i, i + 2]].expand(n, 2, -1) for i, (_, n) in enumerate(view.roles)])
            video, action = video + which[:, 0, None, None], action + which[:, 1, None]
        q, k, v = self.attn.project(video, view.times)
        qa, ka, va = self.attn.project(action, tuple(t[:, 0] for t in view.times))  # type: ignore[arg-type]
        own = Memory((), (k, v), (ka, va))
        # Keys and values of [remembered video, own video, remembered actions, own actions]: the halves share a mask.
        passes = [own] if memory is None else [memory, own]
        mask = None if view.mask is None else torch.cat([view.mask, view.mask], 1)
        sources = [([m.video[i] for m in passes], [m.action[i] for m in passes]) for i in (0, 1)]
        if outputs[0]:
            size = (-1, -1, q.shape[2], -1, -1)
            keys = [torch.cat([*vs, *(a[:, :, None].expand(size) for a in actions)]) for vs, actions in sources]
            x_TBSD = x_TBSD + self.attn.proj(attend_over_time(q, keys, mask))
        if outputs[1]:
            keys = [torch.cat([*(s.mean(2) for s in vs), *actions]) for vs, actions in sources]
            a_TBD = a_TBD + self.attn.proj(attend_over_time(qa, keys, mask))
        return x_TBSD, a_TBD, own


class SplitTime(nn.Module):
    """Attention over time in three passes: video to video, actions to actions, video to the result of the second.

    As released, what actions read is not carried to the next block, and the cross attention takes it un-normed. Unlike
    the release, cross attention runs over time (there: over heads, at one time) and has rotary positions: a video step
    must be able to find its own action when no learned position tells steps apart.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(dim), Attention(dim, heads, qk_norm)
        self.action_norm, self.action_attn = nn.LayerNorm(dim), Attention(dim, heads, qk_norm)
        self.cross_norm, self.cross_attn = nn.LayerNorm(dim), CrossAttention(dim, heads)

    def forward(
        self, x_TBSD: Tensor, a_TBD: Tensor, view: View, memory: Memory | None, outputs: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor, Memory]:
        """As `JointTime.forward`; the actions come back as they were."""
        times = tuple(t[:, 0] for t in view.times)
        qa, ka, va = self.action_attn.project(self.action_norm(a_TBD), times)  # type: ignore[arg-type]
        old = memory.action if memory is not None else (ka[:0], va[:0], ka[:0], va[:0])
        action_keys = tuple(map(_after, old[:2], (ka, va)))
        read = a_TBD + self.action_attn.proj(attend_over_time(qa, action_keys, view.mask))
        kc, vc = self.cross_attn.keys(read, times)  # type: ignore[arg-type]
        q, k, v = self.attn.project(self.norm(x_TBSD), view.times)
        own = Memory((), (k, v), (ka, va, kc, vc))  # type: ignore[arg-type]
        if outputs[0]:
            keys = own.video if memory is None else tuple(map(_after, memory.video, own.video))
            x_TBSD = x_TBSD + self.attn.proj(attend_over_time(q, keys, view.mask))
            # Cells are only more queries to the same few keys: (B, h, T*S, d) against (B, h, M+T, d).
            T, _, S, _ = x_TBSD.shape
            q = self.cross_attn.queries(self.cross_norm(x_TBSD), view.times).permute(1, 3, 0, 2, 4).flatten(2, 3)
            k, v = map(_over_time, map(_after, old[2:], (kc, vc)))
            mask = None if view.mask is None else view.mask.repeat_interleave(S, 0)
            o = attend(q, k, v, mask).unflatten(2, (T, S)).permute(2, 0, 3, 1, 4).reshape(x_TBSD.shape)
            x_TBSD = x_TBSD + self.cross_attn.proj(o)
        return x_TBSD, a_TBD, own


class Mlps(nn.Module):
    """x += mlp(norm(x)), with the MLP and the norm that the stream's rows name."""

    def __init__(
        self, dim: int, ratio: float, drop: float, row: Mapping[str, str], norms: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.norm = PerStream(norms or row, lambda: nn.LayerNorm(dim))
        self.mlp = PerStream(row, lambda: Mlp(dim, ratio, drop))

    def forward(self, x: Tensor, roles: Roles) -> Tensor:
        return by_run(x, roles, (self.norm, self.mlp), lambda y, r: y + self.mlp.of(r)(self.norm.of(r)(y)))
