"""HMA over token ids: GENIE's masked transformer, conditioned on the actions of many robots.

Sources: HMA (arXiv 2502.04296), github.com/liruiw/HMA (Apache-2.0), the published checkpoint `liruiw/hma-base-disc`.

Shape suffixes: B batch, T latent step of this pass, M step of the window, P past step, H missing step, S cells,
X cells and action tokens, K actions a step, A action dimension, E = K * A, D width, N actions in a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.models.hma_actions import ActionModel
from hwm.models.hma_trunk import HMAFields, Trunk
from hwm.models.masked_causal import CausalMaskedModel
from hwm.nn.causal import CausalCache, CausalWindow
from hwm.nn.layers import init_weights
from hwm.types import Batch, DataSpec, Generator


class HMADiscrete(ActionModel, CausalMaskedModel, name="hma_discrete"):
    """GENIE's objective on the trunk that both HMA models share (`Trunk`), with stems and heads for each robot."""

    @dataclass(frozen=True, kw_only=True)
    class Config(HMAFields, CausalMaskedModel.Config):
        """The defaults are those of the published models, but for `window_stride`, `clamp_actions` and
        `following_actions`.

        Attributes:
            window_stride: 6 goes on from the last 6 to 11 steps once the window of 12 is full.
        """

        past: int = 11
        window_stride: int = 6
        prompt: int = 4
        non_mlm: float = 0.2
        least_kept: float = 0.2
        label_smoothing: float = 0.01

    adamw_only = ("embed", "head", "trunk.stems", "action")  # type: ignore[assignment]

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2, past=4, window_stride=2, prompt=2, action_tokens=2)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c = config
        self.trunk = Trunk(c, spec, spec.latent.cells)
        self.fresh, self.mup_hidden = self.trunk.of_robots(), self.trunk.wide()  # type: ignore[misc]
        self.make_action_parts(lambda numbers: nn.Linear(c.dim, numbers))
        init_weights(self)
        self.trunk.blocks.scale_for_mup(self.mup_width)

    def units(self) -> Iterable[nn.Module]:
        return self.trunk.blocks

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of masked tokens in nats and, with `action_loss`, the squared error of masked actions."""
        c = self.config
        if not (c.action_drop or c.action_loss):
            return super().loss(batch)
        self.check(batch)
        shown, hidden_BT = self.forget(batch)
        if not c.action_loss:
            return super().loss(shown)
        ids_BTS = self.tokens(batch.latents)
        past_BPS, shown_BHS, cells = self.corrupt_and_mask(ids_BTS, batch.prompt)
        steps, new = ids_BTS.shape[1], past_BPS.shape[1]
        window = self.window(self.actions_of(shown), shown.embodiment, steps)
        x_TBXD, _ = self.states(window, torch.cat([past_BPS, shown_BHS], 1), F.pad(cells.mask, (0, 0, new, 0)))
        hidden_BHSD = self.out(x_TBXD[new:, :, : self.trunk.cells])
        loss, accuracy = self.head.loss(hidden_BHSD, self.split(ids_BTS, batch.prompt)[1], cells, c.label_smoothing)
        of_actions = self.loss_of_actions(x_TBXD, batch, hidden_BT)
        metrics = {"accuracy": accuracy, "masked": cells.mask.float().mean(), "action_error": of_actions.detach()}
        return loss + c.action_loss * of_actions, metrics

    # ------------------------------------------------------------------ actions
    def action_error(self, head: nn.Module, state_ND: Tensor, action_NE: Tensor) -> Tensor:
        guess_NE: Tensor = head(state_ND / self.mup_width)
        return (guess_NE.float() - action_NE).square().mean(-1)

    def guess(self, head: nn.Module, state_D: Tensor, sampler: Any, generator: Generator) -> Tensor:
        found: Tensor = head(state_D / self.mup_width)
        return found

    def expectation(self, batch: Batch) -> Tensor:
        self.check(batch)
        past_BPS, missing = self.tokens(batch.latents), batch.missing
        steps = past_BPS.shape[1] + missing
        ids_BTS = F.pad(past_BPS, (0, 0, 0, missing))
        masked_BTS = torch.ones_like(ids_BTS, dtype=torch.bool)
        masked_BTS[:, : past_BPS.shape[1]] = False
        return self.states(self.window(self.actions_of(batch), batch.embodiment, steps), ids_BTS, masked_BTS)[0]

    # ------------------------------------------------------------------ decoding steps
    def states(
        self, window: CausalWindow, ids_BTS: Tensor, masked_BTS: Tensor | None, *, keep: int = 0, first: int = 0
    ) -> tuple[Tensor, CausalCache]:
        """States of all tokens (T - first, B, X, D) of the steps after those of the window's cache; see `Trunk`."""
        masked_TBS = None if masked_BTS is None else masked_BTS.transpose(0, 1)
        x_TBSD = self.embed(ids_BTS.transpose(0, 1), masked_TBS)
        found: tuple[Tensor, CausalCache] = self.trunk(
            x_TBSD, window.actions, window.embodiment, window.cache, keep=keep, first=first
        )
        return found

    def run(
        self, window: CausalWindow, ids_BTS: Tensor, masked_BTS: Tensor | None, *, keep: int = 0, first: int = 0
    ) -> tuple[Tensor, CausalCache]:
        """The same of the cells alone, (T - first, B, S, D)."""
        x_TBXD, kept = self.states(window, ids_BTS, masked_BTS, keep=keep, first=first)
        return x_TBXD[:, :, : self.trunk.cells], kept
