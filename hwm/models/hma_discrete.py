"""HMA over token ids: GENIE's masked transformer, told the actions of many robots.

Sources: HMA (arXiv 2502.04296), github.com/liruiw/HMA (Apache-2.0), the published checkpoint `liruiw/hma-base-disc`.

Shape suffixes: B batch, T latent step of this pass, M step of the window, P past step, H missing step, S cells,
X cells and action tokens, K actions a step, A action dimension, E = K * A, D width, N actions in a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.genie import BASE_WIDTH, Cache, corrupt_digits, noise
from hwm.models.hma_actions import ActionModel
from hwm.models.hma_trunk import HMAFields, Trunk
from hwm.models.masked import MaskedModel
from hwm.nn.layers import init_weights
from hwm.objectives.maskgit import MaskGITSampler, cosine_mask
from hwm.types import Batch, DataSpec, Generator


class Window(NamedTuple):
    """The past as remembered, and what all steps of the window are told of their actions (M, B, D), if anything."""

    cache: Cache
    actions: Tensor | None
    embodiment: str


class HMADiscrete(ActionModel, MaskedModel, name="hma_discrete"):
    """Each step is guessed from the steps before it, from its actions, and from its own tokens that are not masked.

    As in GENIE no step depends on later ones; in training all steps but the first are partly masked and guessed at
    once. Under muP the head reads the states divided by dim / 256.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(HMAFields, MaskedModel.Config):
        """The defaults are those of the published models, but for `hop`, `clamp_actions` and `following_actions`.

        Attributes:
            past, horizon: of the past + horizon steps of a window each has its learned positions.
            hop: 6 goes on from the last 6 to 11 steps once the window of 12 is full.
            prompt: in the training mode closer to autoregressive, steps at the start of a clip that are never masked.
            least_kept: in that mode, the least share of digits that the first masked step keeps.
        """

        dim: int = 256
        depth: int = 32
        heads: int = 8
        past: int = 11
        horizon: int = 1
        hop: int = 6
        prompt: int = 4
        non_mlm: float = 0.2
        least_kept: float = 0.2
        label_smoothing: float = 0.01
        factorized: bool = True
        sampler: MaskGITSampler = field(default_factory=lambda: MaskGITSampler(steps=2, order="random"))

    adamw_only = ("embed", "head", "trunk.stems", "action")  # type: ignore[assignment]

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2, past=4, hop=2, prompt=2, action_tokens=2)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c = config
        if c.own_past:
            raise HwmError("own_past needs the parallel layout of Masked-HWM, which HMA does not have; leave it at 0")
        self.levels = spec.latent.levels if c.factorized else (self.vocab,)
        self.mup_width = c.dim / BASE_WIDTH if c.mup else 1.0
        self.trunk = Trunk(c, spec, spec.latent.cells)
        self.fresh = self.trunk.of_robots()  # type: ignore[misc]
        self.make_action_parts(lambda numbers: nn.Linear(c.dim, numbers))
        init_weights(self)
        self.trunk.scale_for_mup()

    def units(self) -> Iterable[nn.Module]:
        return self.trunk.blocks

    def split(self, ids_BTS: Tensor) -> tuple[Tensor, Tensor]:
        """All steps of a training clip but the first are guessed."""
        if not 2 <= ids_BTS.shape[1] <= self.trunk.steps:
            raise HwmError(f"HMA trains on clips of 2 to past + horizon = {self.trunk.steps}, not {ids_BTS.shape[1]}")
        return ids_BTS[:, :1], ids_BTS[:, 1:]

    def corrupt_and_mask(
        self, ids_BTS: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        c, (batch, steps) = self.config, ids_BTS.shape[:2]
        rate_BT, ratio_BT = noise(
            batch, steps, max_corrupt=c.max_corrupt, non_mlm=c.non_mlm, prompt=c.prompt, fully_masked=c.fully_masked,
            least_kept=c.least_kept, device=ids_BTS.device, generator=generator,
        )  # fmt: skip
        past_BPS, shown_BHS = self.split(corrupt_digits(ids_BTS, rate_BT, self.levels, generator))
        ratio_BH = ratio_BT[:, 1:]
        masked_BHS = cosine_mask(ratio_BH, ids_BTS.shape[2], generator) & (ratio_BH > 0)[..., None]
        return past_BPS, shown_BHS, masked_BHS

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of masked tokens in nats and, with `action_loss`, the squared error of masked actions."""
        c = self.config
        if not (c.action_drop or c.action_loss):
            return super().loss(batch)
        self.check(batch)
        told, hidden_BT = self.forget(batch)
        if not c.action_loss:
            return super().loss(told)
        ids_BTS = self.tokens(batch.latents)
        past_BPS, shown_BHS, masked_BHS = self.corrupt_and_mask(ids_BTS)
        steps, new = ids_BTS.shape[1], past_BPS.shape[1]
        window = Window(Cache((), 0), self.told(told.actions, told.embodiment, steps), told.embodiment)
        x_TBXD, _ = self.states(window, torch.cat([past_BPS, shown_BHS], 1), F.pad(masked_BHS, (0, 0, new, 0)))
        hidden_BHSD = self.out(x_TBXD[new:, :, : self.trunk.cells])
        loss, accuracy = self.head.loss(hidden_BHSD, self.split(ids_BTS)[1], masked_BHS, c.label_smoothing)
        of_actions = self.loss_of_actions(x_TBXD, batch, hidden_BT)
        metrics = {"accuracy": accuracy, "masked": masked_BHS.float().mean(), "action_error": of_actions.detach()}
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
        window = Window(Cache((), 0), self.told(batch.actions, batch.embodiment, steps), batch.embodiment)
        return self.states(window, ids_BTS, masked_BTS)[0]

    # ------------------------------------------------------------------ looks
    def cache_of(self, window: Window) -> Cache:
        return window.cache

    def states(
        self, window: Window, ids_BTS: Tensor, masked_BTS: Tensor | None, *, keep: int = 0, first: int = 0
    ) -> tuple[Tensor, Cache]:
        """States of all tokens (T - first, B, X, D) of the steps after those of the window's cache; see `Trunk`."""
        masked_TBS = None if masked_BTS is None else masked_BTS.transpose(0, 1)
        x_TBSD = self.embed(ids_BTS.transpose(0, 1), masked_TBS)
        found: tuple[Tensor, Cache] = self.trunk(
            x_TBSD, window.actions, window.embodiment, window.cache, keep=keep, first=first
        )
        return found

    def run(
        self, window: Window, ids_BTS: Tensor, masked_BTS: Tensor | None, *, keep: int = 0, first: int = 0
    ) -> tuple[Tensor, Cache]:
        """The same of the cells alone, (T - first, B, S, D)."""
        x_TBXD, kept = self.states(window, ids_BTS, masked_BTS, keep=keep, first=first)
        return x_TBXD[:, :, : self.trunk.cells], kept

    def observe(
        self, ids_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, missing: int, cache: Cache | None = None
    ) -> Window:
        past = ids_BPS.shape[1]
        told_MBD = self.told(actions_BTKA, embodiment, past + missing)
        window = Window(cache or Cache((), 0), told_MBD, embodiment)
        new = past - window.cache.steps
        if new:
            _, kept = self.run(window, ids_BPS[:, -new:], None, keep=new, first=new)
            window = window._replace(cache=kept)
        return window

    def look(self, window: Window, ids_BHS: Tensor, masked_BHS: Tensor) -> Tensor:
        return self.out(self.run(window, ids_BHS, masked_BHS)[0])

    def out(self, x_HBSD: Tensor) -> Tensor:
        """The states that the head reads (B, H, S, D)."""
        return (x_HBSD / self.mup_width).transpose(0, 1)

    def first_look(
        self,
        ids_BPS: Tensor,
        actions_BTKA: Tensor,
        embodiment: str,
        ids_BHS: Tensor,
        masked_BHS: Tensor,
        cache: Cache | None = None,
        *,
        keep: bool = True,
    ) -> tuple[Window, Tensor]:
        """The steps that are not remembered yet and those asked for go through the blocks together.

        Args:
            keep: whether there will be more looks.
        """
        past, steps = ids_BPS.shape[1], ids_BPS.shape[1] + ids_BHS.shape[1]
        told_MBD = self.told(actions_BTKA, embodiment, steps)
        window = Window(cache or Cache((), 0), told_MBD, embodiment)
        new = past - window.cache.steps
        ids_BTS = torch.cat([ids_BPS[:, window.cache.steps :], ids_BHS], 1)
        masked_BTS = F.pad(masked_BHS, (0, 0, new, 0))  # none of the past
        x_HBSD, kept = self.run(window, ids_BTS, masked_BTS, keep=new if keep else 0, first=new)
        return window._replace(cache=kept), self.out(x_HBSD)

    def look_at_clip(
        self, past_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, shown_BHS: Tensor, masked_BHS: Tensor
    ) -> Tensor:
        return self.first_look(past_BPS, actions_BTKA, embodiment, shown_BHS, masked_BHS, keep=False)[1]
