"""Flow-HWM with the skips of a U-ViT (Bao et al. 2022, arXiv 2209.12152).

Shape suffixes: B batch, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.flow import Context, FlowModel
from hwm.nn.flow_streams import FLOW_ROWS, FlowRow, Streams
from hwm.nn.streams import FUTURE_VIDEO, STREAMS
from hwm.objectives.flow import FlowSampler
from hwm.types import DataSpec


class FlowHWMUViT(FlowModel, name="flow_hwm_uvit"):
    """Blocks of the variant "base", an odd number: before each block of the second half, every stream is joined with
    what left its counterpart in the first half, the last with the first."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FlowModel.Config):
        """As `FlowHWM.Config`, without its variants; `depth` is odd."""

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=3, heads=2, sampler=FlowSampler(steps=2, guidance=1.5))

    def __init__(self, config: Config, spec: DataSpec) -> None:
        if config.depth < 3 or config.depth % 2 == 0:
            raise HwmError(f"depth={config.depth}: {self.name} has two halves and a block between, so 3, 5, 7, ...")
        super().__init__(config, spec)
        # token by token, as a convolution of 1 x 1 x 1 is
        self.skips = nn.ModuleList(
            nn.ModuleDict({s: nn.Linear(2 * config.dim, config.dim) for s in STREAMS}) for _ in range(config.depth // 2)
        )
        self.init_weights()

    def rows(self) -> list[FlowRow]:
        return [FLOW_ROWS["base"]] * self.config.depth

    def through(self, x: Streams, times: Streams, context: Context) -> Tensor:
        half, left = len(self.skips), list[Streams]()
        for i, block in enumerate(self.blocks):
            if i > half:
                skip, old = self.skips[i - half - 1], left.pop()
                x = {s: skip[s](torch.cat([x_BLD, old[s]], -1)) for s, x_BLD in x.items()}  # type: ignore[index]
            x, _ = block(x, times, context.tables)
            if i < half:
                left.append(x)
        return x[FUTURE_VIDEO]
