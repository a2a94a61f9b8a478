"""HMA over continuous latents: the transformer says of each patch what it should be, a diffusion head draws it.

Sources: HMA (arXiv 2502.04296), github.com/liruiw/HMA (Apache-2.0), the published checkpoint `liruiw/hma-base-cont`,
and MAR (arXiv 2406.11838).

Shape suffixes: B batch, T latent step of this pass, P past step, H missing step, S patches, N patches in a list,
X patches and action tokens, E numbers of a patch (or of a step's actions), C channels, K actions a step, A action
dimension, D width. Latents are (B, T, C, rows, columns).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.models.hma_actions import ActionModel
from hwm.models.hma_trunk import HMAFields, Trunk
from hwm.nn.causal import CausalCache, CausalWindow, mup_width
from hwm.nn.denoiser import Denoiser
from hwm.nn.layers import constant, init_weights
from hwm.nn.noise_level import ContextLevel
from hwm.nn.views import ViewEmbedding
from hwm.objectives import diffusion
from hwm.objectives.cells import Cells
from hwm.objectives.context import check_levels, noised
from hwm.objectives.draws import normal, uniform_like
from hwm.objectives.maskgit import clip_rates, cosine_mask, masked_counts, remask
from hwm.types import Batch, DataSpec, Generator, Prediction


@dataclass(frozen=True)
class MARSampler:
    """How missing steps are filled in.

    Attributes:
        steps: decoding steps for a missing step; each settles some of its patches, chosen at random, and the last the
            rest.
        diffusion_steps: of the head, for each patch.
        temperature: of the noise that the head adds at each of them; 0 adds none after the first.
        clamp: bound of the clean numbers that the head guesses on the way; 0 for none.
    """

    steps: int = 16
    diffusion_steps: int = 100
    temperature: float = 1.0
    clamp: float = 10.0

    def normal(self, shape: tuple[int, ...], device: torch.device, generator: Generator = None) -> Tensor:
        """Standard normal noise."""
        return normal(shape, device, generator)


class HMAContinuous(ActionModel, name="hma_continuous"):
    """Each step is guessed from the steps before it, from its actions, and from its own patches that are not masked.

    Where the spec has mean and standard deviation of the latents, the model works on standardised ones.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(HMAFields, WorldModel.Config):
        """The defaults are those of the published models, but for `window_stride`, `clamp_actions` and
        `following_actions`.

        Attributes:
            dim, depth, heads, mlp_ratio, mlp_drop: of the transformer, as in `MaskedModel.Config`.
            past, horizon, window_stride, prompt, non_mlm: as in `HMADiscrete.Config`.
            fully_masked: share of the masked steps that are masked whole in training, as at the first decoding step.
            context_noise: least and most noise on the latents shown in training, in standard deviations, a level a
                clip, which is told with every token (`hwm.objectives.context`); what is guessed is without it, and so
                is what is shown in sampling. Two zeros add none and tell none, as published.
            patch: side of the squares of latent cells that are one token.
            head_depth, head_width: of the diffusion head.
            published_positions: as published models have it, the table of positions has a row for every latent cell,
                of which those beyond patches and action tokens are never read.
            sampler: how missing steps are filled in unless a call says otherwise.
        """

        dim: int = 256
        depth: int = 32
        heads: int = 8
        mlp_ratio: float = 4.0
        mlp_drop: float = 0.05
        past: int = 11
        horizon: int = 1
        window_stride: int = 6
        prompt: int = 4
        non_mlm: float = 0.2
        fully_masked: float = 0.0
        qkv_bias: bool = True
        mlp_bias: bool = False
        context_noise: tuple[float, float] = (0.0, 0.0)
        patch: int = 2
        head_depth: int = 4
        head_width: int = 1024
        published_positions: bool = False
        sampler: MARSampler = field(default_factory=MARSampler)
        in_validation: ClassVar[Mapping[str, Any]] = {
            "non_mlm": 0.0, "fully_masked": 0.0, "context_noise": (0.0, 0.0),
        }  # fmt: skip

    adamw_only = ("embed", "context_level", "out", "head", "trunk.stems", "action")
    cache_axis = 1
    heeds_prompt = True

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(
            dim=32, depth=2, heads=2, past=4, window_stride=2, prompt=2, action_tokens=2, head_depth=2, head_width=32,
            mlp_drop=0.0, sampler=MARSampler(steps=2, diffusion_steps=4, clamp=1.0),
        )  # fmt: skip

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, latent = config, spec.latent
        if latent.channels is None:
            raise HwmError(f"{self.name} needs continuous latents, and this data has ids; hma_discrete reads those")
        if c.patch < 1 or any(n % c.patch for n in latent.view_grid):
            raise HwmError(f"a grid of {latent.view_grid} does not split into patches of {c.patch} x {c.patch}")
        self.side = latent.grid[0] // c.patch, latent.grid[1] // c.patch  # rows and columns of patches
        self.cells, numbers = self.side[0] * self.side[1], latent.channels * c.patch**2
        self.mup_width = mup_width(c)
        self.mask_cell = nn.Parameter(torch.zeros(latent.channels))
        self.embed, self.views = nn.Linear(numbers, c.dim, bias=False), ViewEmbedding(latent, c.dim)
        check_levels(c.context_noise)
        self.context_level = ContextLevel(c.dim) if any(c.context_noise) else None
        rows = latent.cells + c.action_tokens if c.published_positions else None
        self.trunk = Trunk(c, spec, self.cells, rows, nn.LayerNorm(c.dim, eps=1e-6))
        self.fresh = self.trunk.of_robots()  # type: ignore[misc]
        self.out, self.norm_out = nn.Linear(c.dim, c.dim), nn.LayerNorm(c.dim, eps=1e-6)
        self.position_out = nn.Parameter(torch.randn(self.trunk.steps, self.cells, c.dim) * 0.02)
        self.head = Denoiser(numbers, c.dim, c.head_width, c.head_depth)
        self.make_action_parts(
            lambda numbers: nn.ModuleDict({"net": Denoiser(numbers, c.dim, c.head_width, c.head_depth)})
        )
        conditions = tuple(f"action_heads.{key}.net.cond_embed" for key in getattr(self, "action_heads", ()))
        self.mup_hidden = (*self.trunk.wide(), "out", "head.cond_embed", *conditions)
        init_weights(self)
        self.trunk.blocks.scale_for_mup(self.mup_width)

    def units(self) -> Iterable[nn.Module]:
        return self.trunk.blocks

    # ------------------------------------------------------------------ latents and patches
    def standard(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation (C, 1, 1) of the latents, where they are known."""
        s, device = self.spec, self.mask_cell.device
        if not s.latent_std:
            return None
        mean, std = (constant(x, device)[:, None, None] for x in (s.latent_mean, s.latent_std))
        return mean, torch.where(std > 0, std, 1.0)

    def tokens(self, latents_BTCHW: Tensor) -> Tensor:
        """Latents as patches (B, T, S, E), E in the order row, column, channel."""
        known, p = self.standard(), self.config.patch
        x = latents_BTCHW if known is None else (latents_BTCHW - known[0]) / known[1]
        x = x.unflatten(-2, (self.side[0], p)).unflatten(-1, (self.side[1], p))  # B T C i p j q
        return x.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(2, 3)

    def latents(self, x_BTSE: Tensor) -> Tensor:
        """The inverse of `tokens`."""
        known, p = self.standard(), self.config.patch
        x = x_BTSE.unflatten(2, self.side).unflatten(-1, (p, p, -1)).permute(0, 1, 6, 2, 4, 3, 5)  # B T C i p j q
        x = x.flatten(-2).flatten(-3, -2)
        return x if known is None else x * known[1] + known[0]

    def hidden(self, x_BTSE: Tensor, masked: Tensor) -> Tensor:
        """Patches with the learned mask where `masked`, (B, T, S, 1) or for each number, says so."""
        return torch.where(masked, self.mask_cell.repeat(self.config.patch**2).to(x_BTSE.dtype), x_BTSE)

    # ------------------------------------------------------------------ the transformer
    def states(
        self, window: CausalWindow, x_BTSE: Tensor, level_B: Tensor | None = None, *, keep: int = 0, first: int = 0
    ) -> tuple[Tensor, CausalCache]:
        """States of all tokens (T - first, B, X, D) of the steps after those of the window's cache; see `Trunk`.

        Args:
            level_B: of the noise on the latents shown, of models that are told it; None is none.
        """
        x_TBSD = self.views(self.embed(x_BTSE.transpose(0, 1)))
        if self.context_level is not None:
            level_B = x_BTSE.new_zeros(len(x_BTSE)) if level_B is None else level_B
            x_TBSD = x_TBSD + self.context_level(level_B)[:, None]
        found: tuple[Tensor, CausalCache] = self.trunk(
            x_TBSD, window.actions, window.embodiment, window.cache, keep=keep, first=first
        )
        return found

    def conditions(self, x_TBXD: Tensor, start: int) -> Tensor:
        """What the head is conditioned on for each patch (B, T, S, D), of steps from `start` on."""
        condition_BTSD = self.norm_out(self.out(x_TBXD[:, :, : self.cells])).transpose(0, 1)
        return condition_BTSD + self.position_out[start : start + len(x_TBXD)]

    def run(self, window: CausalWindow, x_BTSE: Tensor, *, keep: int = 0, first: int = 0) -> tuple[Tensor, CausalCache]:
        """What the head is conditioned on for each patch (B, T - first, S, D) of the steps after those of the cache."""
        x_TBXD, kept = self.states(window, x_BTSE, keep=keep, first=first)
        return self.conditions(x_TBXD, window.cache.steps + first), kept

    def observe(
        self, x_BPSE: Tensor, actions_BTKA: Tensor, embodiment: str, missing: int, cache: CausalCache | None = None
    ) -> CausalWindow:
        """All that the decoding steps at the last `missing` steps need of the past, and of the actions."""
        past = x_BPSE.shape[1]
        window = self.window(actions_BTKA, embodiment, past + missing, cache)
        new = past - window.cache.steps
        if new:
            window = window._replace(cache=self.run(window, x_BPSE[:, -new:], keep=new, first=new)[1])
        return window

    # ------------------------------------------------------------------ training
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The head's loss on masked patches and, with `action_loss`, of the robot's on masked actions; the batch is a
        whole clip, and nothing of it is missing."""
        self.check(batch)
        x_BTSE = self.tokens(batch.latents)
        (B, T, S, _), c, first = x_BTSE.shape, self.config, max(1, batch.prompt)
        self.check_clip(T)
        _, ratio_BT = clip_rates(
            B, T, max_corrupt=0.0, non_mlm=c.non_mlm, prompt=c.prompt, fully_masked=c.fully_masked, first=first
        )
        cells = Cells(cosine_mask(ratio_BT, S) & (ratio_BT > 0)[..., None], x_BTSE.device)
        whole = batch.window(0, T, T)
        shown, hidden_BT = self.forget(whole) if c.action_drop or c.action_loss else (whole, None)
        window = self.window(self.actions_of(shown), batch.embodiment, T)
        seen_BTSE, level_B = (x_BTSE, None) if self.context_level is None else noised(x_BTSE, c.context_noise)
        x_TBXD, _ = self.states(window, self.hidden(seen_BTSE, cells.mask[..., None]), level_B)
        condition_BTSD = self.conditions(x_TBXD, 0)
        error_N, bound_N = self.denoising(cells.of(x_BTSE), cells.of(condition_BTSD))
        metrics = {"error": error_N.mean(), "bound": bound_N.mean(), "masked": cells.mask[:, first:].float().mean()}
        loss = (error_N + bound_N).mean()
        if c.action_loss and hidden_BT is not None:
            metrics["action_error"] = of_actions = self.loss_of_actions(x_TBXD, batch, hidden_BT)
            loss = loss + c.action_loss * of_actions
        return loss, {k: v.detach() for k, v in metrics.items()}

    def denoising(self, x_NE: Tensor, condition_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Both parts of the head's loss (N,), at random steps of diffusion."""
        step_N = torch.randint(diffusion.STEPS, x_NE.shape[:1], device=x_NE.device)
        return diffusion.denoising_loss(
            x_NE, step_N, torch.randn_like(x_NE), partial(self.head, condition_C=condition_ND)
        )

    # ------------------------------------------------------------------ actions
    def action_error(self, head: nn.Module, state_ND: Tensor, action_NE: Tensor) -> Tensor:
        step_N = torch.randint(diffusion.STEPS, state_ND.shape[:1], device=state_ND.device)
        denoiser = partial(cast(Denoiser, head.net), condition_C=state_ND)
        error_N, bound_N = diffusion.denoising_loss(action_NE, step_N, torch.randn_like(action_NE), denoiser)
        return error_N + bound_N

    def guess(self, head: nn.Module, state_D: Tensor, sampler: Any, generator: Generator) -> Tensor:
        denoiser = cast(Denoiser, head.net)
        return self.draw(state_D, denoiser.input_proj.in_features, sampler, generator, denoiser)

    def expectation(self, batch: Batch) -> Tensor:
        self.check(batch)
        past, missing = batch.latents.shape[1], batch.missing
        x_BTSE = F.pad(self.tokens(batch.latents), (0, 0, 0, 0, 0, missing))
        masked_T11 = (torch.arange(past + missing, device=x_BTSE.device) >= past)[:, None, None]
        window = self.window(self.actions_of(batch), batch.embodiment, past + missing)
        return self.states(window, self.hidden(x_BTSE, masked_T11))[0]

    # ------------------------------------------------------------------ sampling
    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        *,
        sampler: MARSampler | None = None,
        logits: bool = False,
        cache: Any = None,
        generator: Generator = None,
    ) -> Prediction:
        """MAR: all missing steps start masked; each decoding step settles some of their patches for good."""
        self.check(batch)
        c, past, missing = self.config, batch.latents.shape[1], batch.missing
        self.check_window(past, missing)
        x_BPSE = self.tokens(batch.latents)
        x_BHSE, window = self.fill_in(
            x_BPSE, self.actions_of(batch), batch.embodiment, missing, sampler or c.sampler, cache, generator
        )
        return Prediction(self.latents(x_BHSE).to(batch.latents.dtype), cache=window.cache)

    def fill_in(
        self,
        x_BPSE: Tensor,
        actions_BTKA: Tensor,
        embodiment: str,
        missing: int,
        sampler: MARSampler,
        cache: CausalCache | None = None,
        generator: Generator = None,
    ) -> tuple[Tensor, CausalWindow]:
        """Patches (B, H, S, E) of the `missing` steps, and the window looked at."""
        window = self.observe(x_BPSE, actions_BTKA, embodiment, missing, cache)
        x_BHSE = torch.zeros_like(x_BPSE[:, :1]).repeat_interleave(missing, 1)
        masked_BHS, left = torch.ones_like(x_BHSE[..., 0], dtype=torch.bool), x_BHSE.shape[2]
        for count in masked_counts(sampler.steps, left):
            condition_BHSD, _ = self.run(window, self.hidden(x_BHSE, masked_BHS[..., None]))
            score_BHS = uniform_like(x_BHSE[..., 0], generator) if count else x_BHSE[..., 0]
            still_BHS = remask(score_BHS, masked_BHS, count)
            # those that are settled now are as many in every row: they go to the head as one block
            where_BHN = (
                (masked_BHS & ~still_BHS).int().argsort(dim=-1, descending=True, stable=True)[..., : left - count]
            )
            new_BHNE = self.draw(self.taken(condition_BHSD, where_BHN), x_BHSE.shape[-1], sampler, generator)
            x_BHSE = x_BHSE.scatter(2, where_BHN[..., None].expand_as(new_BHNE), new_BHNE.to(x_BHSE.dtype))
            masked_BHS, left = still_BHS, count
        return x_BHSE, window

    def taken(self, condition_BHSD: Tensor, where_BHN: Tensor) -> Tensor:
        """The conditions of some patches (B, H, N, D)."""
        return condition_BHSD.gather(2, where_BHN[..., None].expand(-1, -1, -1, condition_BHSD.shape[-1]))

    def draw(
        self,
        condition_D: Tensor,
        numbers: int,
        sampler: MARSampler,
        generator: Generator = None,
        head: Denoiser | None = None,
    ) -> Tensor:
        """Patches (..., E) that the head (or another) draws, conditioned on (..., D)."""
        noise = partial(sampler.normal, (*condition_D.shape[:-1], numbers), condition_D.device, generator)
        denoiser = (head or self.head).conditioned(condition_D)
        return diffusion.draw(
            noise(), noise, denoiser, steps=sampler.diffusion_steps, temperature=sampler.temperature,
            clamp=sampler.clamp or float("inf"),
        )  # fmt: skip
