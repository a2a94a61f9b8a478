"""Flow-HWM (arXiv 2506.01182): flow matching over continuous video latents, four streams of tokens, four variants.

Shape suffixes: B batch, T latent step of the window, P past step, H missing step, C channels, H W latent grid (after a
C), K actions a step, A action dimension, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hwm.models.base import WorldModel
from hwm.nn.dit import ActionTokens, Modulation, TimeEmbedding, modulated, patches, rope_3d, unpatched
from hwm.nn.flow_streams import CONTEXT, ROWS, Block, KeysValues, Streams
from hwm.nn.layers import constant
from hwm.nn.rope import Table
from hwm.nn.streams import FUTURE_ACTION, FUTURE_VIDEO, PAST_ACTION, PAST_VIDEO, STREAMS
from hwm.objectives.flow import FlowSampler, at_time, draw_times, guided, integrate, normal
from hwm.types import Batch, DataSpec, Generator, HwmError, Prediction

# variant -> rows of the first `unshared_layers` blocks and of the others
VARIANTS = {
    "base": ("base", "base"),
    "modality": ("base", "modality"),
    "full": ("base", "full"),
    "split": ("split", "split"),
}


class Context(NamedTuple):
    """What is known of a window, embedded once however many velocities are asked for.

    Attributes:
        x: tokens of the past video and of all actions.
        tables: stream -> rotary positions.
        memory: keys and values of the context, a block each, where it does not depend on the flow time; else None.
    """

    x: Streams
    tables: Mapping[str, Table]
    memory: tuple[KeysValues, ...] | None


class FlowHWM(WorldModel, name="flow_hwm"):
    """The velocity of a noisy future from past video, past and future actions, and the flow time.

    Video goes in as patches and actions one by one. All have their place on one axis of time. The future steps are made
    together, so that all of them see all actions of the window, in every variant.

    Where the released code departs from the paper this class follows the paper: there the path is noised by t / 49 and
    the network told t; the sampler shows the network the same noise at every step, and wipes out the condition after
    the first; the turn of the action tokens is no rotation, and their norms change.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        """The defaults are those of the paper's base block.

        Attributes:
            dim, depth, heads, mlp_ratio: width, blocks, attention heads, and how much wider the MLPs are.
            variant: "base" has weights of its own for each stream; "modality" one set for video and one for actions,
                "full" one for all four streams (both after `unshared_layers` blocks of "base"); in "split" each stream
                attends to itself, and the future video then reads the others.
            patch: cells of a patch, in rows and in columns.
            drop: share of the training examples whose condition (past video, and all actions) is hidden: what the
                unconditional velocity of guided sampling is learned from.
            clean_context: the context is told the flow time of data, 1, instead of that of the noisy video. In
                variant "split" nothing of the context depends on the sample then, and it goes through the blocks once
                a prediction instead of at every step of the solver. False in the paper.
            sampler: how missing steps are made unless a call says otherwise.
        """

        dim: int = 1152
        depth: int = 15
        heads: int = 16
        mlp_ratio: float = 4.0
        variant: Literal["base", "modality", "full", "split"] = "base"
        unshared_layers: int = 4
        patch: int = 2
        drop: float = 0.15
        clean_context: bool = False
        sampler: FlowSampler = field(default_factory=FlowSampler)

    adamw_only = ("time", "patch_past", "patch_future", "actions", "final")

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2, unshared_layers=1, sampler=FlowSampler(steps=2, guidance=1.5))

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, latent = config, spec.latent
        if latent.channels is None:
            raise HwmError(f"{self.name} needs continuous latents, and this data has ids of {latent.vocab}")
        if any(n % c.patch for n in latent.grid):
            raise HwmError(f"a grid of {latent.grid} does not split into patches of {c.patch} x {c.patch}")
        if not 0 <= c.drop < 1:
            raise HwmError(f"drop={c.drop} must be at least 0 and below 1")
        width = c.patch**2 * latent.channels
        self.patch_past, self.patch_future = nn.Linear(width, c.dim), nn.Linear(width, c.dim)
        self.actions, self.time = ActionTokens(spec, c.dim), TimeEmbedding(c.dim)
        first, others = VARIANTS[c.variant]
        rows = [ROWS[first if i < c.unshared_layers else others] for i in range(c.depth)]
        self.blocks = nn.ModuleList(
            Block(row, c.dim, c.heads, c.mlp_ratio, last=i == c.depth - 1) for i, row in enumerate(rows)
        )
        self.final_modulation, self.final = Modulation(c.dim, 2), nn.Linear(c.dim, width, bias=False)
        self.settled = c.clean_context and all((FUTURE_VIDEO,) in row.groups for row in rows)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier and zero biases, N(0, 0.02) for the flow time, and modulations of zero: every block begins as the
        identity. The last projection is Xavier too: the paper found zeros there unstable."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for linear in (self.time.fc1, self.time.fc2):
            nn.init.normal_(linear.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)

    def units(self) -> Iterable[nn.Module]:
        return self.blocks

    def scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C, 1, 1) of the latents' channels: 0 and 1 where the spec has none."""
        spec = self.spec
        channels = spec.latent.channels or 0
        mean = spec.latent_mean or (0.0,) * channels
        std = tuple(s if s > 0 else 1.0 for s in spec.latent_std) or (1.0,) * channels
        return constant(mean, device)[:, None, None], constant(std, device)[:, None, None]

    def normalised(self, latents_BTCHW: Tensor) -> Tensor:
        """Latents in standard deviations of their channel, in float32."""
        mean, std = self.scale(latents_BTCHW.device)
        return (latents_BTCHW.float() - mean) / std

    def observe(self, past_BPCHW: Tensor, actions_BTKA: Tensor, embodiment: str, kept_B: Tensor) -> Context:
        """Embed the condition.

        Args:
            past_BPCHW: normalised latents.
            kept_B: 0 where an example's condition is hidden: mean pictures and mean actions are shown instead.
        """
        (past, steps), per_step = (past_BPCHW.shape[1], actions_BTKA.shape[1]), actions_BTKA.shape[2]
        kept = kept_B.view(-1, 1, 1, 1, 1)
        video = self.patch_past(patches(past_BPCHW * kept, self.config.patch).to(self.patch_past.weight.dtype))
        tokens = self.actions(actions_BTKA, embodiment, kept_B)
        old = len(self.actions.times(past, per_step))
        x = {PAST_VIDEO: video.flatten(1, 3), FUTURE_ACTION: tokens[:, old:], PAST_ACTION: tokens[:, :old]}
        x = {s: tokens_BLD.to(self.patch_past.weight.dtype) for s, tokens_BLD in x.items()}
        context = Context(x, self.tables(past, steps, per_step, past_BPCHW.device), None)
        if not self.settled:
            return context
        times = dict.fromkeys(CONTEXT, self.time(torch.ones_like(kept_B)))
        memory = []
        for block in self.blocks:
            x, keys = block(x, times, context.tables)
            memory.append(keys)
        return context._replace(memory=tuple(memory))

    def tables(self, past: int, steps: int, per_step: int, device: torch.device) -> dict[str, Table]:
        """Rotary positions of each stream: the last action that leads to a step has the time of its video."""
        c, (height, width) = self.config, self.spec.latent.grid
        grid, head = (height // c.patch, width // c.patch), c.dim // c.heads
        acts, old = self.actions.times(steps, per_step), len(self.actions.times(past, per_step))
        places = {
            PAST_VIDEO: (tuple(map(float, range(past))), grid),
            FUTURE_VIDEO: (tuple(map(float, range(past, steps))), grid),
            PAST_ACTION: (acts[:old], (1, 1)),
            FUTURE_ACTION: (acts[old:], (1, 1)),
        }
        return {s: rope_3d(times, cells, head, device) for s, (times, cells) in places.items()}

    def velocity(self, context: Context, noisy_BHCHW: Tensor, t_B: Tensor) -> Tensor:
        """The velocity (B, H, C, H, W) of the future steps at these flow times, in float32."""
        grid = patches(noisy_BHCHW, self.config.patch)
        dtype = self.patch_future.weight.dtype
        future_BLD = self.patch_future(grid.to(dtype)).flatten(1, 3).to(dtype)
        c_BD = self.time(t_B)
        if context.memory is not None:
            x, times = {FUTURE_VIDEO: future_BLD}, {FUTURE_VIDEO: c_BD}
        else:
            x = {FUTURE_VIDEO: future_BLD, **context.x}
            known = self.time(torch.ones_like(t_B)) if self.config.clean_context else c_BD
            times = {s: c_BD if s == FUTURE_VIDEO else known for s in STREAMS}
        for i, block in enumerate(self.blocks):
            x, _ = block(x, times, context.tables, context.memory[i] if context.memory else None)
        scale, shift = self.final_modulation(c_BD)
        out_BLD = self.final(modulated(x[FUTURE_VIDEO], scale, shift, eps=1e-6))
        return unpatched(out_BLD.unflatten(1, grid.shape[1:4]), self.config.patch).float()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the velocity of a clip's last `horizon` steps, at one random flow time an example."""
        self.check(batch)
        x_BTCHW, past = self.normalised(batch.latents), batch.latents.shape[1] - self.config.horizon
        self.check_window(past, self.config.horizon)
        data, device, size = x_BTCHW[:, past:], x_BTCHW.device, len(x_BTCHW)
        noise, t_B = normal(tuple(data.shape), device), draw_times(size, device)
        kept_B = (torch.rand(size, device=device) >= self.config.drop).float()
        actions = batch.actions[:, : x_BTCHW.shape[1]]
        context = self.observe(x_BTCHW[:, :past], actions, batch.embodiment, kept_B)
        target = data - noise
        loss = (self.velocity(context, at_time(data, noise, t_B), t_B) - target).square().mean()
        return loss, {"explained": 1 - loss.detach() / target.square().mean()}

    def check(self, batch: Batch) -> None:
        super().check(batch)
        channels = self.spec.latent.channels
        if batch.latents.dim() != 5 or batch.latents.shape[2] != channels:
            raise HwmError(f"latents are (B, T, {channels}, H, W), got shape {tuple(batch.latents.shape)}")

    def check_window(self, past: int, missing: int) -> None:
        """Raise `HwmError` for windows that this model was not made for."""
        c = self.config
        if not (1 <= past <= c.past and 1 <= missing <= c.horizon):
            raise HwmError(
                f"this model predicts 1 to {c.horizon} steps from 1 to {c.past} and not {missing} from {past}; "
                "use rollout for more, and train on clips of past + horizon steps"
            )

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        *,
        sampler: FlowSampler | None = None,
        logits: bool = False,
        cache: object | None = None,
        generator: Generator = None,
    ) -> Prediction:
        """Follow the velocity from noise to latents, all missing steps together. There are no logits and no cache."""
        self.check(batch)
        self.check_window(batch.latents.shape[1], batch.missing)
        sampler, device, size = sampler or self.config.sampler, batch.latents.device, len(batch.latents)
        past_BPCHW, actions, kept_B = self.normalised(batch.latents), batch.actions, torch.ones(size, device=device)
        alone = sampler.guidance == 1
        if not alone:  # both velocities of a step in one pass, those without a condition first
            past_BPCHW, actions = past_BPCHW.repeat(2, 1, 1, 1, 1), actions.repeat(2, 1, 1, 1)
            kept_B = torch.cat([torch.zeros_like(kept_B), kept_B])
        context = self.observe(past_BPCHW, actions, batch.embodiment, kept_B)

        def field(x: Tensor, t: float) -> Tensor:
            t_B = torch.full_like(kept_B, t)
            if alone:
                return self.velocity(context, x, t_B)
            unconditional, conditional = self.velocity(context, x.repeat(2, 1, 1, 1, 1), t_B).chunk(2)
            return guided(unconditional, conditional, sampler.guidance)

        shape = (size, batch.missing, *batch.latents.shape[2:])
        x_BHCHW = integrate(field, normal(shape, device, generator), sampler)
        mean, std = self.scale(device)
        return Prediction((x_BHCHW * std + mean).to(batch.latents.dtype))
