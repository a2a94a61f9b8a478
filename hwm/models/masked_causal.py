"""Models of which no step depends on later ones: what they share, and the masked ones, GENIE and HMA over token ids.

Shape suffixes: B batch, T latent step of this pass, M step of the window, P past step, H missing step, S cells,
K actions a step, A action dimension, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.models.base import WorldModel
from hwm.models.masked import MaskedModel
from hwm.nn.causal import CausalCache, CausalFields, CausalWindow, mup_width
from hwm.objectives.cells import Cells
from hwm.objectives.maskgit import MaskGITSampler, clip_rates, corrupt_digits, cosine_mask
from hwm.types import DataSpec, sent


class CausalModel(WorldModel):
    """A model of which no step depends on later ones: what a window of it is."""

    @abstractmethod
    def condition(self, actions_BTKA: Tensor, embodiment: str, steps: int) -> Tensor | None:
        """What the first `steps` steps of a window are conditioned on, (steps, B, D), if on anything."""

    def window(
        self, actions_BTKA: Tensor, embodiment: str, steps: int, cache: CausalCache | None = None
    ) -> CausalWindow:
        """A window of `steps` steps, of which no more is known than what an earlier one left."""
        return CausalWindow(cache or CausalCache(), self.condition(actions_BTKA, embodiment, steps), embodiment)


class CausalMaskedModel(CausalModel, MaskedModel):
    """Each step is guessed from the steps before it, from its actions, and from its own tokens that are not masked.

    So the past is run through the blocks once, and it is kept from step to step while the window stands. In training
    all steps but the first are partly masked and guessed at once, and see the masked ones before them. Under muP the
    head reads the states divided by dim / 256.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(CausalFields, MaskedModel.Config):
        """
        Attributes:
            past, horizon: of the past + horizon steps of a window each has its learned positions.
            prompt: in the training mode closer to autoregressive, steps at the start of a clip that are never masked.
            least_kept: in that mode, the least share of digits that the first masked step keeps.
        """

        dim: int = 256
        depth: int = 32
        heads: int = 8
        horizon: int = 1
        prompt: int = 8
        least_kept: float = 0.25
        factorized: bool = True
        sampler: MaskGITSampler = field(default_factory=lambda: MaskGITSampler(steps=2, order="random"))

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.levels = spec.latent.levels if config.factorized else (self.vocab,)
        self.mup_width = mup_width(config)

    @abstractmethod
    def run(
        self, window: CausalWindow, ids_BTS: Tensor, masked_BTS: Tensor | None, *, keep: int = 0, first: int = 0
    ) -> tuple[Tensor, CausalCache]:
        """States of the cells (T - first, B, S, D) of the steps after those of the cache; see `CausalStack`."""

    def split(self, ids_BTS: Tensor, prompt: int = 0) -> tuple[Tensor, Tensor]:
        """All steps of a training clip are guessed but its prompt, which is the first at least."""
        self.check_clip(ids_BTS.shape[1])
        first = max(1, prompt)
        return ids_BTS[:, :first], ids_BTS[:, first:]

    def corrupt_and_mask(self, ids_BTS: Tensor, prompt: int = 0) -> tuple[Tensor, Tensor, Cells]:
        c, (batch, steps), device, first = self.config, ids_BTS.shape[:2], ids_BTS.device, max(1, prompt)
        rate_BT, ratio_BT = clip_rates(
            batch, steps, max_corrupt=c.max_corrupt, non_mlm=c.non_mlm, prompt=c.prompt, fully_masked=c.fully_masked,
            least_kept=c.least_kept, first=first,
        )  # fmt: skip
        ids_BTS = self.moved(corrupt_digits(ids_BTS, sent(rate_BT, device), self.levels))
        past_BPS, shown_BHS = self.split(ids_BTS, prompt)
        ratio_BH = ratio_BT[:, first:]
        masked_BHS = cosine_mask(ratio_BH, ids_BTS.shape[2]) & (ratio_BH > 0)[..., None]
        return past_BPS, shown_BHS, Cells(masked_BHS, device)

    def cache_of(self, window: CausalWindow) -> CausalCache:
        return window.cache

    def observe(
        self, ids_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, missing: int, cache: CausalCache | None = None
    ) -> CausalWindow:
        past = ids_BPS.shape[1]
        window = self.window(actions_BTKA, embodiment, past + missing, cache)
        new = past - window.cache.steps
        if new:
            window = window._replace(cache=self.run(window, ids_BPS[:, -new:], None, keep=new, first=new)[1])
        return window

    def decoding_step(self, window: CausalWindow, ids_BHS: Tensor, masked_BHS: Tensor) -> Tensor:
        return self.out(self.run(window, ids_BHS, masked_BHS)[0])

    def out(self, x_HBSD: Tensor) -> Tensor:
        """The states that the head reads (B, H, S, D)."""
        return (x_HBSD / self.mup_width).transpose(0, 1)

    def prefill(
        self,
        ids_BPS: Tensor,
        actions_BTKA: Tensor,
        embodiment: str,
        ids_BHS: Tensor,
        masked_BHS: Tensor,
        cache: CausalCache | None = None,
        *,
        keep: bool = True,
    ) -> tuple[CausalWindow, Tensor]:
        """The steps that are not remembered yet and those asked for go through the blocks together.

        Args:
            keep: whether there will be more decoding steps.
        """
        past = ids_BPS.shape[1]
        window = self.window(actions_BTKA, embodiment, past + ids_BHS.shape[1], cache)
        new = past - window.cache.steps
        ids_BTS = torch.cat([ids_BPS[:, window.cache.steps :], ids_BHS], 1)
        masked_BTS = F.pad(masked_BHS, (0, 0, new, 0))  # none of the past
        x_HBSD, kept = self.run(window, ids_BTS, masked_BTS, keep=new if keep else 0, first=new)
        return window._replace(cache=kept), self.out(x_HBSD)

    def states_of_clip(
        self, past_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, shown_BHS: Tensor, masked_BHS: Tensor
    ) -> Tensor:
        return self.prefill(past_BPS, actions_BTKA, embodiment, shown_BHS, masked_BHS, keep=False)[1]
