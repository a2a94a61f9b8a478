"""Blocks as tables: which streams use which weights, and how video, past and future meet the actions.

Four streams run through every block: past and future video, past and future actions. A variant of the paper is a row;
a model picks a row for each of its layers.

Shape suffixes as in `hwm.nn.st`: T steps of a pass, B batch, S cells, D width, time first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hwm.nn.st import JointTime, Mlps, SpaceAttention, SplitTime, StreamMemory, View, grown, later

PAST_VIDEO, FUTURE_VIDEO, PAST_ACTION, FUTURE_ACTION = "past_video", "future_video", "past_action", "future_action"
STREAMS = (PAST_VIDEO, FUTURE_VIDEO, PAST_ACTION, FUTURE_ACTION)
VIDEO = (PAST_VIDEO, FUTURE_VIDEO)

# stream -> name of the weights it uses
OWN = {s: s for s in STREAMS}
MODALITY = {PAST_VIDEO: "video", FUTURE_VIDEO: "video", PAST_ACTION: "action", FUTURE_ACTION: "action"}
FULL = dict.fromkeys(STREAMS, "shared")
VIDEO_ONLY = dict.fromkeys(VIDEO, "video")

# how attention over time connects the streams
ATTENTION: dict[str, type[nn.Module]] = {"joint": JointTime, "split": SplitTime}


@dataclass(frozen=True)
class StreamRow:
    """One kind of block.

    Attributes:
        mlp: stream -> MLP after attention over time; a stream that is not named has none.
        norm: stream -> norm before that MLP; None: as `mlp`.
        attention: key of `ATTENTION`.
        space: video stream -> spatial attention.
        space_mlp: video stream -> an MLP between the two attentions; empty: none.
        space_norm: video stream -> norm before that MLP.
    """

    mlp: Mapping[str, str]
    norm: Mapping[str, str] | None = None
    attention: str = "joint"
    space: Mapping[str, str] = field(default_factory=lambda: VIDEO_ONLY)
    space_mlp: Mapping[str, str] = field(default_factory=dict)
    space_norm: Mapping[str, str] = field(default_factory=lambda: VIDEO_ONLY)


OWN_VIDEO = {s: s for s in VIDEO}

STREAM_ROWS = {
    # arXiv 2506.01182, section on parameter sharing; in all of them attention is one set of weights for all streams
    "base": StreamRow(OWN),
    "modality": StreamRow(MODALITY),
    "full": StreamRow(FULL),
    "split": StreamRow(VIDEO_ONLY, attention="split"),
    # the four-stream model with shared parameters: two MLPs a block, one norm for each kind of part
    "four": StreamRow(OWN, norm=FULL, space=OWN_VIDEO, space_mlp=OWN_VIDEO),
    "four_shared": StreamRow(OWN, norm=FULL, space_mlp=VIDEO_ONLY),
}


class StreamBlock(nn.Module):
    """Spatial attention, (an MLP,) attention over time, and MLPs: pre-norm, residual, no gates."""

    def __init__(
        self, row: StreamRow, dim: int, heads: int, ratio: float, drop: float, qk_norm: bool = False, **time: Any
    ) -> None:
        super().__init__()
        self.space = SpaceAttention(dim, heads, row.space, qk_norm)
        self.space_mlp = Mlps(dim, ratio, drop, row.space_mlp, row.space_norm) if row.space_mlp else None
        self.time = ATTENTION[row.attention](dim, heads, qk_norm, **time)
        self.mlp = Mlps(dim, ratio, drop, row.mlp, row.norm)
        self.moves_actions = PAST_ACTION in row.mlp

    def forward(
        self,
        x_TBSD: Tensor,
        a_TBD: Tensor,
        view: View,
        memory: StreamMemory | None,
        first: int = 0,
        actions: bool = True,
    ) -> tuple[Tensor, Tensor, StreamMemory]:
        """Run a pass's steps through the block.

        Args:
            first: from which step on anyone reads what comes out; the steps before it only leave their memory.
            actions: whether anyone reads the actions that come out.

        Returns:
            video and actions of the steps from `first` on, and the keys and values of all steps so far.
        """
        x_TBSD, cells = self.space(x_TBSD, view, memory)
        if self.space_mlp is not None:
            x_TBSD = self.space_mlp(x_TBSD, view.video)
        x_TBSD, a_TBD, left = self.time(x_TBSD, a_TBD, view, memory, first)
        if x_TBSD.shape[0]:
            x_TBSD = self.mlp(x_TBSD, later(view.video, first))
            if actions and self.moves_actions:
                a_TBD = self.mlp(a_TBD, later(view.action, first))
        if view.keep_cells:
            if memory and view.keep_cells > cells[0].shape[0]:
                cells = grown(memory.cells, cells)
            left = left._replace(cells=tuple(x[-view.keep_cells :] for x in cells))
        return x_TBSD, a_TBD, left


class Stack(nn.ModuleList):
    """Blocks in a row, each with its own memory."""

    def forward(
        self,
        x_TBSD: Tensor,
        a_TBD: Tensor,
        view: View,
        memory: tuple[StreamMemory, ...] | None = None,
        *,
        first: int = 0,
    ) -> tuple[Tensor, tuple[StreamMemory, ...]]:
        """The video that comes out, and each block's keys and values of all steps so far.

        Args:
            memory: what earlier passes left, a block each.
            first: from which step on the video that comes out is wanted: of the steps before it the last block only
                makes its memory.
        """
        left = []
        for i, block in enumerate(self):
            last = i == len(self) - 1
            old = memory[i] if memory else None
            x_TBSD, a_TBD, so_far = block(x_TBSD, a_TBD, view, old, first if last else 0, not last)
            left.append(so_far)
        return x_TBSD, tuple(left)
