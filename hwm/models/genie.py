"""GENIE, the baseline of the 1X World Model Challenge: a spatio-temporal masked transformer over tokens of frames.

Sources: github.com/1x-technologies/1xgpt (Apache-2.0), the published checkpoints GENIE_35M and GENIE_138M, and
Genie (arXiv 2402.15391), after which it is named.

Shape suffixes: B batch, T latent step of this pass, M step of the window, S cells, K actions a step, A action
dimension, D width. Inside the blocks time comes first (TBSD).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.masked_causal import CausalMaskedModel
from hwm.nn.actions import ActionEncoder
from hwm.nn.causal import CausalBlock, CausalCache, CausalStack, CausalWindow
from hwm.nn.layers import init_weights
from hwm.types import Batch, DataSpec


class Genie(CausalMaskedModel, name="genie"):
    """Each step is guessed from the steps before it and from its own tokens that are not masked.

    Cells of a step see one another, and a cell sees itself at earlier steps. There is no norm after the last block.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(CausalMaskedModel.Config):
        """The defaults are those of the published GENIE_35M, but for `window_stride`, which nothing published has.

        Attributes:
            window_stride: 8 goes on from the last 8 to 15 steps once the window of 16 is full.
            actions: add to all tokens of a step an embedding of the actions that lead to it. No published model has it.
        """

        past: int = 15
        window_stride: int = 8
        actions: bool = False

    adamw_only = ("embed", "head", "actions")  # type: ignore[assignment]
    fresh = ("actions",)
    mup_hidden = ("actions.mix",)

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2, past=4, window_stride=2, prompt=2, actions=True)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c = config
        self.position = nn.Parameter(torch.zeros(c.past + c.horizon, spec.latent.cells, c.dim))
        self.actions = ActionEncoder(spec, c.dim, positions=1, ordered=True, deep=False) if c.actions else None
        self.blocks = CausalStack(CausalBlock(c) for _ in range(c.depth))
        init_weights(self)
        self.blocks.scale_for_mup(self.mup_width)

    def check_actions(self, batch: Batch) -> None:
        """A model that takes no actions takes those of any robot."""
        if self.actions is not None:
            super().check_actions(batch)

    def condition(self, actions_BTKA: Tensor, embodiment: str, steps: int) -> Tensor | None:
        """Embeddings (steps, B, D) of the actions of a window, in a model that has actions."""
        if steps > len(self.position):
            raise HwmError(f"only past + horizon = {len(self.position)} steps have positions, not {steps}")
        return None if self.actions is None else self.actions(actions_BTKA[:, :steps], embodiment)

    def run(
        self, window: CausalWindow, ids_BTS: Tensor, masked_BTS: Tensor | None, *, keep: int = 0, first: int = 0
    ) -> tuple[Tensor, CausalCache]:
        start, stop = window.cache.steps, window.cache.steps + ids_BTS.shape[1]
        x_TBSD = self.embed(ids_BTS.transpose(0, 1), None if masked_BTS is None else masked_BTS.transpose(0, 1))
        x_TBSD = x_TBSD + self.position[start:stop, None]
        if window.actions is not None:
            x_TBSD = x_TBSD + window.actions[start:stop, :, None]
        found: tuple[Tensor, CausalCache] = self.blocks(x_TBSD, window.cache, keep=keep, first=first)
        return found
