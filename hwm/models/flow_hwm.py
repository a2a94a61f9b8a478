"""Flow-HWM (arXiv 2506.01182): flow matching over continuous video latents, four streams of tokens, four variants.

Shape suffixes: B batch, P past step, C channels, H W latent grid, T step of the window, K actions a step, A action
dimension, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hwm.models.flow import Context, FlowModel
from hwm.nn.flow_streams import CONTEXT, FLOW_ROWS, FlowRow, Streams
from hwm.nn.streams import FUTURE_VIDEO
from hwm.objectives.flow import FlowSampler
from hwm.types import DataSpec

# variant -> rows of the first `unshared_layers` blocks and of the others
VARIANTS = {
    "base": ("base", "base"),
    "modality": ("base", "modality"),
    "full": ("base", "full"),
    "split": ("split", "split"),
}


class FlowHWM(FlowModel, name="flow_hwm"):
    """One block after another, of kinds that a table says.

    Where the released code departs from the paper this class follows the paper: there the path is noised by t / 49 and
    the network conditioned on t; the sampler shows the network the same noise at every step, and wipes out the
    condition after the first; the turn of the action tokens is no rotation, and their norms change.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FlowModel.Config):
        """The defaults are those of the paper's base block.

        Attributes:
            variant: "base" has weights of its own for each stream; "modality" one set for video and one for actions,
                "full" one for all four streams (both after `unshared_layers` blocks of "base"); in "split" each stream
                attends to itself, and the future video then reads the others. With `clean_context` nothing of the
                context depends on the sample in "split".
        """

        variant: Literal["base", "modality", "full", "split"] = "base"
        unshared_layers: int = 4

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2, unshared_layers=1, sampler=FlowSampler(steps=2, guidance=1.5))

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.settled = config.clean_context and all((FUTURE_VIDEO,) in row.groups for row in self.rows())
        self.init_weights()

    def rows(self) -> list[FlowRow]:
        first, others = VARIANTS[self.config.variant]
        return [FLOW_ROWS[first if i < self.config.unshared_layers else others] for i in range(self.config.depth)]

    def observe(
        self, past_BPCHW: Tensor, actions_BTKA: Tensor, embodiment: str, kept_B: Tensor, level_B: Tensor | None = None
    ) -> Context:
        context = super().observe(past_BPCHW, actions_BTKA, embodiment, kept_B, level_B)
        if not self.settled:
            return context
        x, times, memory = context.x, dict.fromkeys(CONTEXT, self.timed(context, torch.ones_like(kept_B))), []
        for block in self.blocks:
            x, keys = block(x, times, context.tables)
            memory.append(keys)
        return context._replace(memory=tuple(memory))

    def through(self, x: Streams, times: Streams, context: Context) -> Tensor:
        for i, block in enumerate(self.blocks):
            x, _ = block(x, times, context.tables, context.memory[i] if context.memory else None)
        return x[FUTURE_VIDEO]
