"""Diffusion of the next frame by a U-Net, as in playable game models.

DIAMOND (Alonso et al. 2024, arXiv 2405.12399): a U-Net denoises the next frame, with the frames before it as further
channels and actions by feature-wise scale and shift, preconditioned as in EDM (arXiv 2206.00364). GameNGen (Valevski et
al. 2024, arXiv 2408.14837): noise on the known frames, whose level the model is told, so that it learns to mend the
errors of its own earlier frames.

Shape suffixes: B batch, T step of the window, P past step, C channels, H W latent grid, K actions a step, A action
dimension, D width, E width of the condition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.base import Way, WorldModel
from hwm.nn.actions import module_key, standardised
from hwm.nn.latents import latent_scale
from hwm.nn.moving import Flow, moved
from hwm.nn.noise_level import ContextLevel, NoiseLevel
from hwm.nn.unet import UNet, groups
from hwm.nn.views import ViewEmbedding
from hwm.objectives.context import check_levels, noised
from hwm.objectives.draws import normal
from hwm.objectives.edm import EDMSampler, draw_sigmas, preconditioning, solve
from hwm.objectives.flow import column, guided
from hwm.types import Batch, DataSpec, Generator, Prediction


class Context(NamedTuple):
    """What is known of a window, embedded once however often a sample is denoised.

    Attributes:
        video: features of the frames known (B, D, H, W).
        condition: of the actions, and of how far the frames can be relied on (B, E).
        flow: where the cells of the next frame come from in the last one (B, 2, H, W); None where none is predicted.
        moved: the last frame with its noise, moved by it, once for each step of the horizon, (B, D, H, W).
    """

    video: Tensor
    condition: Tensor
    flow: Tensor | None = None
    moved: Tensor | None = None


class Diffusion(WorldModel, name="diffusion"):
    """The next frame's latents from noise, given `past` frames and all actions of the window.

    With a horizon of more than one step, these are made together, as further channels. A window of fewer frames than
    `past` is filled up with absent ones. Latents are measured in standard deviations of their channel, and read and
    made in squares of `patch` x `patch` cells: below, C, H and W are those of squares.
    """

    cache_axis = 0  # it keeps none
    heeds_prompt = True
    ways: ClassVar[Mapping[str, Way]] = {
        "quick": Way(
            "Quick",
            "One step of sampling: the fastest, and a mean of what may come, blurred and soon still.",
            {"steps": 1},
        ),
        "sharp": Way(
            "Sharp",
            "Twice the steps and time of the default: sharper and livelier, and further from the true pixels.",
            {"steps": 6},
        ),
        "steady": Way(
            "Steady",
            "More noise on what is remembered: mends its own errors more freely, and forgets details sooner.",
            {"context_noise": 0.2},
        ),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        """The defaults play on two cores over 16 x 16 cells of eight numbers.

        Attributes:
            widths, blocks, attention: of the U-Net, an entry a level: channels, blocks on each way, and whether these
                attend. Each level has half the rows and columns of the one before it.
            condition: width of the vector of actions and levels of noise that scales and shifts features.
            patch: side in cells of the squares that are read and made as one cell of the U-Net.
            flow: weight in the loss of how far the last frame, moved by a predicted flow, is from the next; what is
                moved is a further input, and what is made begins with it. 0 predicts none.
            sigma_mean, sigma_std: of the logarithm of the levels of noise in training.
            context_noise: least and most noise on the known frames in training, in standard deviations; each clip has
                a level of its own, all of one order of magnitude as likely as all of another, and the model is told
                it. Two zeros add none.
            short_past: share of the training clips of which only the last one or few known frames are shown.
            dropped_actions: share of the training clips whose actions are hidden: what sampling with `guidance` needs.
            sampler: how missing steps are made unless a call says otherwise.
        """

        past: int = 4
        horizon: int = 1
        widths: tuple[int, ...] = (96, 192, 192)
        blocks: tuple[int, ...] = (2, 2, 2)
        attention: tuple[bool, ...] = (False, True, True)
        condition: int = 256
        patch: int = 1
        flow: float = 0.0
        sigma_mean: float = -0.4
        sigma_std: float = 1.2
        context_noise: tuple[float, float] = (0.02, 0.75)
        short_past: float = 0.05
        dropped_actions: float = 0.0
        sampler: EDMSampler = field(default_factory=EDMSampler)
        in_validation: ClassVar[Mapping[str, Any]] = {
            "context_noise": (0.0, 0.0),
            "short_past": 0.0,
            "dropped_actions": 0.0,
            "sigma_mean": -0.4,
            "sigma_std": 1.2,
        }

    adamw_only = ("read", "shown", "level", "context_level")

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(
            past=2, widths=(16, 32), blocks=(1, 1), attention=(False, True), condition=32, sampler=EDMSampler(steps=2)
        )

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, latent = config, spec.latent
        self._check_config()
        channels, width = (latent.channels or 0) * c.patch**2, c.widths[0]
        steps = c.past + c.horizon
        self.read = nn.ModuleDict({
            module_key(e): nn.Linear(steps * a.per_step * a.dim, c.condition) for e, a in spec.actions.items()
        })  # fmt: skip
        self.shown = nn.Linear(c.past + 1, c.condition, bias=False)  # which frames are known, and whether actions are
        self.actions = nn.Linear(c.condition, c.condition)
        self.level, self.context_level = NoiseLevel(c.condition), ContextLevel(c.condition)
        self.mix = nn.Linear(c.condition, c.condition)
        self.enter = nn.Conv2d(c.horizon * channels, width, 3, padding=1)
        self.enter_past = nn.Conv2d(c.past * channels, width, 3, padding=1, bias=False)
        self.views = ViewEmbedding(latent, width)
        if c.flow:
            self.flow = Flow(width, c.condition, c.patch, max(1, len(latent.views)))
            self.enter_moved = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.carried = nn.Linear(c.condition, c.horizon * channels)
            nn.init.zeros_(self.carried.weight)
            nn.init.zeros_(self.carried.bias)
        self.unet = UNet(c.widths, c.blocks, c.attention, c.condition)
        self.norm, self.leave = nn.GroupNorm(groups(width), width), nn.Conv2d(width, c.horizon * channels, 3, padding=1)

    def _check_config(self) -> None:
        c, latent, halvings = self.config, self.spec.latent, 2 ** (len(self.config.widths) - 1)
        if latent.channels is None:
            raise HwmError(f"{self.name} needs continuous latents, and this data has ids of {latent.vocab}")
        if c.patch < 1 or c.flow < 0:
            raise HwmError(f"patch={c.patch} must be at least 1, and flow={c.flow} not negative")
        if any(n % (halvings * c.patch) for n in latent.view_grid):
            squares = "" if c.patch == 1 else f" in squares of {c.patch} x {c.patch} cells"
            raise HwmError(
                f"a grid of {latent.view_grid} cannot be halved {len(c.widths) - 1} times{squares}: choose fewer widths"
            )
        check_levels(c.context_noise)
        if not (0 <= c.short_past < 1 and 0 <= c.dropped_actions < 1):
            raise HwmError(
                f"short_past={c.short_past} and dropped_actions={c.dropped_actions} must be at least 0 and below 1"
            )

    def units(self) -> Iterable[nn.Module]:
        return self.unet.units()

    def normalised(self, latents_BTCHW: Tensor) -> Tensor:
        """Latents in standard deviations of their channel, in squares, in float32."""
        mean, std = latent_scale(self.spec, latents_BTCHW.device)
        return F.pixel_unshuffle((latents_BTCHW.float() - mean) / std, self.config.patch)

    # ------------------------------------------------------------------ the network
    def observe(
        self,
        past_BPCHW: Tensor,
        actions_BTKA: Tensor,
        embodiment: str,
        level_B: Tensor,
        *,
        shown_BP: Tensor | None = None,
        kept_B: Tensor | None = None,
    ) -> Context:
        """Embed what is known.

        Args:
            past_BPCHW: normalised latents with noise of `level_B`, at most `past` steps.
            actions_BTKA: of those steps and of `horizon` steps more.
            shown_BP: 0 where a frame, and the actions that lead to it, are hidden; None hides none.
            kept_B: 0 where all actions of an example are hidden; None hides none.
        """
        c, past = self.config, past_BPCHW.shape[1]
        shown_BP = torch.ones_like(level_B)[:, None].expand(-1, past) if shown_BP is None else shown_BP
        kept_B = torch.ones_like(level_B) if kept_B is None else kept_B
        shown_BP = F.pad(shown_BP, (c.past - past, 0))
        seen_BPCHW = past_BPCHW * (1 + level_B.square()).rsqrt()[:, None, None, None, None]
        seen_BPCHW = F.pad(seen_BPCHW, (0, 0, 0, 0, 0, 0, c.past - past, 0)) * shown_BP[..., None, None, None]
        real_BT = torch.cat([shown_BP, torch.ones_like(shown_BP[:, :1]).expand(-1, c.horizon)], 1) * kept_B[:, None]
        told_BTKA = self.told(actions_BTKA, embodiment) * real_BT[..., None, None]
        dtype = self.mix.weight.dtype
        h_BE = self.read[module_key(embodiment)](told_BTKA.flatten(1).to(dtype))
        h_BE = h_BE + self.shown(torch.cat([shown_BP, kept_B[:, None]], 1).to(dtype))
        condition_BE = self.actions(F.silu(h_BE)) + self.context_level(level_B)
        seen_BDHW = seen_BPCHW.flatten(1, 2).to(dtype).contiguous(memory_format=torch.channels_last)
        video_BDHW = self.views.in_grid(self.enter_past(seen_BDHW))
        if not c.flow:
            return Context(video_BDHW, condition_BE)
        flow_B2HW = self.flow(video_BDHW, F.silu(condition_BE))
        moved_BCHW = self.moved(seen_BPCHW[:, -1], flow_B2HW)
        entered = self.enter_moved(moved_BCHW.to(dtype).contiguous(memory_format=torch.channels_last))
        return Context(video_BDHW + entered, condition_BE, flow_B2HW, moved_BCHW.repeat(1, c.horizon, 1, 1))

    def moved(self, frame_BCHW: Tensor, flow_B2HW: Tensor) -> Tensor:
        """A frame in squares, moved by a flow of its cells."""
        patch, views = self.config.patch, max(1, len(self.spec.latent.views))
        return F.pixel_unshuffle(moved(F.pixel_shuffle(frame_BCHW, patch), flow_B2HW, views), patch)

    def told(self, actions_BTKA: Tensor, embodiment: str) -> Tensor:
        """Normalised actions of `past + horizon` steps; those of absent steps, and absent ones of a window's first
        step, are at their mean. (The first step of a tokenizer with stride s > 1 holds one frame, so that only the last
        K/s of its K actions are real.)"""
        x_BTKA, _ = standardised(actions_BTKA, self.spec.actions[embodiment])
        per_step, absent = x_BTKA.shape[2], self.config.past + self.config.horizon - x_BTKA.shape[1]
        unreal = per_step - max(1, per_step // self.spec.latent.stride)
        first_B1KA = F.pad(x_BTKA[:, :1, unreal:], (0, 0, unreal, 0))
        return F.pad(torch.cat([first_B1KA, x_BTKA[:, 1:]], 1), (0, 0, 0, 0, absent, 0))

    def made(self, context: Context, scaled_BDHW: Tensor, sigma_B: Tensor) -> Tensor:
        """What the network makes (B, D, H, W), in float32, of noisy frames with a variance of 1; D is the channels of
        all steps of the horizon."""
        dtype = self.mix.weight.dtype
        seen_BDHW = scaled_BDHW.to(dtype).contiguous(memory_format=torch.channels_last)
        condition_BE = F.silu(self.mix(F.silu(context.condition + self.level(sigma_B))))
        h_BDHW = self.unet(self.enter(seen_BDHW) + context.video, condition_BE)
        out: Tensor = self.leave(F.silu(self.norm(h_BDHW))).float()
        if context.moved is None:
            return out
        return out + self.carried(condition_BE).float()[..., None, None] * context.moved

    def denoised(self, context: Context, noisy_BDHW: Tensor, sigma_B: Tensor) -> Tensor:
        """The mean of the frames that noisy ones of these levels may have come from."""
        p = preconditioning(sigma_B, noisy_BDHW)
        return p.denoised(noisy_BDHW, self.made(context, p.scale * noisy_BDHW, sigma_B))

    # ------------------------------------------------------------------ training
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """EDM's weighted squared error of a clip's last `horizon` steps, at one random level of noise an example."""
        self.check(batch)
        past = batch.latents.shape[1] - self.config.horizon
        self.check_window(past, self.config.horizon)
        x_BTCHW = self.normalised(batch.latents)
        return self.denoising_loss(x_BTCHW[:, :past], x_BTCHW[:, past:], batch.actions, batch.embodiment)

    def denoising_loss(
        self, past_BPCHW: Tensor, true_BTCHW: Tensor, actions_BTKA: Tensor, embodiment: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of true frames, given frames before them, all normalised, which need not be true themselves."""
        c, device, (size, past) = self.config, past_BPCHW.device, past_BPCHW.shape[:2]
        unclear_BPCHW, level_B = noised(past_BPCHW, c.context_noise)
        shown_BP, kept_B = self.draw_shown(size, past, device), torch.rand(size, device=device) >= c.dropped_actions
        context = self.observe(
            unclear_BPCHW, actions_BTKA, embodiment, level_B, shown_BP=shown_BP, kept_B=kept_B.float()
        )
        data_BDHW, sigma_B = true_BTCHW.flatten(1, 2), draw_sigmas(size, device, c.sigma_mean, c.sigma_std)
        noisy_BDHW = data_BDHW + column(sigma_B, data_BDHW) * torch.randn_like(data_BDHW)
        p = preconditioning(sigma_B, data_BDHW)
        target_BDHW = p.target(data_BDHW, noisy_BDHW)
        loss = (self.made(context, p.scale * noisy_BDHW, sigma_B) - target_BDHW).square().mean()
        values = {"explained": 1 - loss.detach() / target_BDHW.square().mean()}
        if context.flow is None:
            return loss, values
        # the error of the flow alone: of a frame without noise
        missed = (self.moved(past_BPCHW[:, -1], context.flow) - true_BTCHW[:, 0]).abs().mean()
        return loss + c.flow * missed, values | {"missed_by_flow": missed.detach()}

    def draw_shown(self, size: int, past: int, device: torch.device) -> Tensor:
        """Which frames are shown (B, P): all, or in `short_past` of the rows the last few, any number as likely."""
        few_B1 = torch.rand(size, 1, device=device) < self.config.short_past
        hidden_B1 = (torch.rand(size, 1, device=device) * (past - 1)).ceil() * few_B1
        return (torch.arange(past, device=device) >= hidden_B1).float()

    # ------------------------------------------------------------------ sampling
    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        *,
        sampler: EDMSampler | None = None,
        logits: bool = False,
        cache: object | None = None,
        generator: Generator = None,
    ) -> Prediction:
        """Denoise all missing steps together. There are no logits and no cache.

        Where fewer steps than `horizon` are missing, the last action is taken to go on, and later steps are left out.
        """
        self.check(batch)
        self.check_window(batch.latents.shape[1], batch.missing)
        c, sampler, device = self.config, sampler or self.config.sampler, batch.latents.device
        past_BPCHW, beyond = self.normalised(batch.latents), c.horizon - batch.missing
        actions_BTKA = torch.cat([batch.actions, batch.actions[:, -1:].expand(-1, beyond, -1, -1)], 1)
        noise = normal((len(past_BPCHW), c.horizon, *past_BPCHW.shape[2:]), device, generator)
        unclear = normal(tuple(past_BPCHW.shape), device, generator)
        past_BPCHW = past_BPCHW + sampler.context_noise * unclear
        kept_B = torch.ones(len(past_BPCHW), device=device)
        alone = sampler.guidance == 1
        if not alone:  # both answers in one pass, those without actions first
            past_BPCHW, actions_BTKA = past_BPCHW.repeat(2, 1, 1, 1, 1), actions_BTKA.repeat(2, 1, 1, 1)
            kept_B = torch.cat([torch.zeros_like(kept_B), kept_B])
        level_B = torch.full_like(kept_B, sampler.context_noise)
        context = self.observe(past_BPCHW, actions_BTKA, batch.embodiment, level_B, kept_B=kept_B)

        def denoiser(x_BDHW: Tensor, sigma: float) -> Tensor:
            sigma_B = torch.full_like(kept_B, sigma)
            if alone:
                return self.denoised(context, x_BDHW, sigma_B)
            without, with_actions = self.denoised(context, x_BDHW.repeat(2, 1, 1, 1), sigma_B).chunk(2)
            return guided(without, with_actions, sampler.guidance)

        made_BDHW = solve(denoiser, noise.flatten(1, 2), sampler)
        mean, std = latent_scale(self.spec, device)
        made_BTCHW = F.pixel_shuffle(made_BDHW.unflatten(1, (c.horizon, -1))[:, : batch.missing], c.patch)
        return Prediction((made_BTCHW * std + mean).to(batch.latents.dtype))
