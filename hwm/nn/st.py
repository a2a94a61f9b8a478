"""The three parts of a spatio-temporal block: attention over the cells of a step, attention over time, and the MLPs.

A pass runs some steps of the window through the blocks. What it needs of steps that ran earlier it reads from their
keys and values (`StreamMemory`); what it leaves is its own. So one code serves three uses: the clean past is run once
and remembered, each decoding step of the missing ones reads that memory, and during play the memory lives on as the
cache.

Actions are one token a step and stay so: their keys and values are the same for all cells of a step, so they are
projected once and only expanded for the attention over time, where the release repeats every action token S times,
runs it through all layers S times, and averages at the end of each.

Shape suffixes: T steps of this pass, M steps remembered, B batch, S cells, D width, h heads, d head width.
Time comes first in every tensor here: then both attentions are views of the same memory, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
        roles: runs of steps in order, as (role, number of steps), the role "past" or "future": which weights a step
            uses.
        cells: rotary tables of the cells, (S, 1, d).
        times: rotary tables of the steps, (T, 1, 1, d).
        mask: (T, M + T) bool, which remembered and own steps each step sees; None is all of them. It holds for video
            and actions alike: an action sits at the time of the step that it leads to.
        near: for each earlier step whose cells spatial attention reads too, its index by step: from 0 on for steps of
            this pass, from -1 backwards for remembered ones. There is an index for each of the pass's last steps; the
            steps before those read no cells but their own.
        keep_cells: of how many of the last steps later passes will read the cells so.
    """

    roles: Roles
    cells: Table
    times: Table
    mask: Tensor | None = None
    near: tuple[tuple[int, ...], ...] = ()
    keep_cells: int = 0

    @property
    def video(self) -> Roles:
        """The roles of video steps, as the rows of blocks name them."""
        return tuple((f"{role}_video", n) for role, n in self.roles)

    @property
    def action(self) -> Roles:
        """The roles of action steps."""
        return tuple((f"{role}_action", n) for role, n in self.roles)


class StreamMemory(NamedTuple):
    """Keys and values that steps left in one block.

    Attributes:
        cells: of spatial attention, each (at most M, B, S, h, d): the last steps; empty where nobody reads them.
        video: of attention over time, each (M, B, cells, h, d), as the kind of attention wants them.
        action: each (M, B, h, d).
    """

    cells: tuple[Tensor, ...]
    video: tuple[Tensor, ...]
    action: tuple[Tensor, ...]

    def without_last(self, steps: int) -> StreamMemory:
        return StreamMemory(*(tuple(x[:-steps] for x in part) for part in self))

    def owned(self) -> StreamMemory:
        """The same in storage of its own: a slice keeps alive all that it is a slice of."""
        return StreamMemory(*(tuple(map(_owned, part)) for part in self))


def _owned(x: Tensor) -> Tensor:
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def grown(earlier: tuple[Tensor, ...], later: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Keys and values of earlier steps, if there are any, and of later ones."""
    return tuple(map(_cat, zip(earlier, later, strict=True))) if earlier else later


def _cat(parts: Iterable[Tensor], axis: int = 0) -> Tensor:
    """The parts as one; one part as it is, without a copy."""
    parts = tuple(parts)
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def later(roles: Roles, first: int) -> Roles:
    """The roles of the steps from `first` on."""
    found = []
    for role, steps in roles:
        found += [(role, steps - first)] if first < steps else []
        first = max(0, first - steps)
    return tuple(found)


def _over_time(x_TBhd: Tensor) -> Tensor:
    """(T, ..., h, d) -> (N, h, T, d), N all the axes between."""
    return x_TBhd.flatten(1, -3).permute(1, 2, 0, 3)


def attend_over_time(q_Thd: Tensor, keys_Mhd: Iterable[Tensor], mask_TM: Tensor | None) -> Tensor:
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

    def forward(self, x_TBSD: Tensor, view: View, memory: StreamMemory | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The video with what it read added, and the keys and values of its cells, each (T, B, S, h, d)."""
        own: tuple[Tensor, ...] = ()
        alone = x_TBSD.shape[0] - len(view.near[0]) if view.near else x_TBSD.shape[0]

        def run(h_TBSD: Tensor, role: str) -> Tensor:
            nonlocal own
            attn, before = self.attn.of(role), own[0].shape[0] if own else 0
            q, *keys = attn.project(h_TBSD, view.cells)
            own = grown(own, tuple(keys))
            # the first steps of the run look at their own cells alone, the others at those of earlier steps too
            mine = max(0, min(alone - before, q.shape[0]))
            read = [_among_cells(q[:mine], [[x[:mine]] for x in keys])] if mine else []
            if mine < q.shape[0]:
                index = [steps[before + mine - alone :] for steps in view.near]
                old = memory.cells if memory is not None else (None, None)
                near = [[_pick(m, o, i) for i in index] + [x[mine:]] for m, o, x in zip(old, own, keys, strict=True)]
                read.append(_among_cells(q[mine:], near))
            return attn.proj(_cat(read))

        return x_TBSD + by_run(self.norm(x_TBSD), view.video, (self.attn,), run), own


def _among_cells(q_TBShd: Tensor, keys: Iterable[list[Tensor]]) -> Tensor:
    """Queries of cells to the keys and values, a list each of (T, B, S, h, d), of some steps' cells: (T, B, S, D)."""
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q_TBShd, *(_cat(parts, 2) for parts in keys)))
    return attend(q, k, v).transpose(1, 2).reshape(*q_TBShd.shape[:3], -1)


def _pick(old_M: Tensor | None, own_T: Tensor, index: tuple[int, ...]) -> Tensor:
    """Steps by index, as in `View.near`; a slice where the indices are a range, which costs nothing."""
    first, count = index[0], len(index)
    source = own_T if first >= 0 else old_M
    assert source is not None
    if index == tuple(range(first, first + count)) and (first >= 0 or first + count <= 0):
        first %= source.shape[0]
        return source[first : first + count]
    return torch.stack([source[i] if i < 0 else own_T[i] for i in index])


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
        self, x_TBSD: Tensor, a_TBD: Tensor, view: View, memory: StreamMemory | None, first: int
    ) -> tuple[Tensor, Tensor, StreamMemory]:
        """Video and actions with what they read added, of the steps from `first` on, and the memory of all steps.

        The action of a step runs along as one more cell. That cell's keys and values of video are the mean of the
        others', and this is how they are remembered.
        """
        x_TBCD = torch.cat([x_TBSD, a_TBD[:, :, None]], 2)
        h_TBCD = self.norm(x_TBCD)
        if self.pool:
            h_TBCD = torch.cat([h_TBCD[:, :, :-1].mean(2, keepdim=True), h_TBCD[:, :, -1:]], 2)
        if self.stream is not None:
            which = torch.cat([self.stream[i::2].expand(n, 2, -1) for i, (_, n) in enumerate(view.roles)])
            cells = h_TBCD.shape[2] - 1
            h_TBCD = h_TBCD + torch.cat([which[:, :1].expand(-1, cells, -1), which[:, 1:]], 1)[:, None]
        q, *keys = self.attn.project(h_TBCD, view.times)
        parts = [_cells_and_action(x) for x in keys]
        video = tuple(torch.cat([x, x.mean(2, keepdim=True)], 2) for x, _ in parts)
        old = memory or StreamMemory((), (), ())
        action = grown(old.action, tuple(x for _, x in parts))
        x_TBCD, q = x_TBCD[first:], q[first:]
        if not x_TBCD.shape[0]:
            return *_cells_and_action(x_TBCD), StreamMemory((), grown(old.video, video), action)
        # Keys and values of [video, actions], whose halves share a mask; the first half is what is remembered.
        for_all = tuple(x[:, :, None].expand(-1, -1, q.shape[2], -1, -1) for x in action)
        both = [torch.cat(parts) for parts in zip(*filter(None, (old.video, video, for_all)), strict=True)]
        left = StreamMemory((), tuple(x[: len(x) // 2] for x in both), action)
        mask = None if view.mask is None else torch.cat([view.mask, view.mask], 1)[first:]
        o_TBCD = self.attn.proj(attend_over_time(q, both, mask))
        if self.pool:
            o_TBCD = torch.cat([o_TBCD[:, :, :1].expand(-1, -1, x_TBSD.shape[2], -1), o_TBCD[:, :, 1:]], 2)
        return *_cells_and_action(x_TBCD + o_TBCD), left


def _cells_and_action(x_TBC: Tensor) -> tuple[Tensor, Tensor]:
    """What is of the cells of each step (T, B, S, ...), and of its action (T, B, ...), which is the last of them."""
    cells_TBS, action_TB1 = x_TBC.split((x_TBC.shape[2] - 1, 1), 2)
    return cells_TBS, action_TB1.squeeze(2)


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
        self, x_TBSD: Tensor, a_TBD: Tensor, view: View, memory: StreamMemory | None, first: int
    ) -> tuple[Tensor, Tensor, StreamMemory]:
        """As `JointTime.forward`; the actions come back as they were."""
        times = tuple(t[:, 0] for t in view.times)
        qa, ka, va = self.action_attn.project(self.action_norm(a_TBD), times)  # type: ignore[arg-type]
        old = memory or StreamMemory((), (), ())
        action_keys = grown(old.action[:2], (ka, va))
        read = a_TBD + self.action_attn.proj(attend_over_time(qa, action_keys, view.mask))
        cross_keys = grown(old.action[2:], self.cross_attn.keys(read, times))  # type: ignore[arg-type]
        q, *keys = self.attn.project(self.norm(x_TBSD), view.times)
        left = StreamMemory((), grown(old.video, tuple(keys)), (*action_keys, *cross_keys))
        x_TBSD, q = x_TBSD[first:], q[first:]
        T, _, S, _ = x_TBSD.shape
        if T:
            mask = None if view.mask is None else view.mask[first:]
            x_TBSD = x_TBSD + self.attn.proj(attend_over_time(q, left.video, mask))
            # Cells are only more queries to the same few keys: (B, h, T*S, d) against (B, h, M+T, d).
            times = tuple(t[first:] for t in view.times)
            q = self.cross_attn.queries(self.cross_norm(x_TBSD), times).permute(1, 3, 0, 2, 4).flatten(2, 3)  # type: ignore[arg-type]
            k, v = map(_over_time, cross_keys)
            mask = None if mask is None else mask.repeat_interleave(S, 0)
            o = attend(q, k, v, mask).unflatten(2, (T, S)).permute(2, 0, 3, 1, 4).reshape(x_TBSD.shape)
            x_TBSD = x_TBSD + self.cross_attn.proj(o)
        return x_TBSD, a_TBD[first:], left


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
