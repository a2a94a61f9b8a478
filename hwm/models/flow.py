"""What models of flow matching over continuous video latents share: embedding, objective, sampling.

A family gives the rows of its blocks and says how its streams go through them.

Shape suffixes: B batch, T latent step of the window, P past step, H missing step, C channels, H W latent grid (after a
C), K actions a step, A action dimension, L tokens, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.nn.dit import ActionTokens, Modulation, TimeEmbedding, modulated, patches, unpatched
from hwm.nn.flow_streams import FlowBlock, FlowRow, KeysValues, Streams
from hwm.nn.latents import latent_scale
from hwm.nn.noise_level import ContextLevel
from hwm.nn.rope import Table, rope_3d
from hwm.nn.streams import FUTURE_ACTION, FUTURE_VIDEO, PAST_ACTION, PAST_VIDEO, STREAMS
from hwm.nn.views import ViewEmbedding
from hwm.objectives.context import check_levels, noised
from hwm.objectives.draws import normal
from hwm.objectives.flow import FlowSampler, guided, integrate
from hwm.objectives.shortcut import OBJECTIVES, training_targets
from hwm.types import Batch, DataSpec, Generator, Prediction


class Context(NamedTuple):
    """What is known of a window, embedded once however many velocities are asked for.

    Attributes:
        x: tokens of the past video and of all actions.
        tables: stream -> rotary positions.
        last, led: where the model is conditioned on them directly, the last known step (B, 1, C, H, W), and of each
            missing step the sum of what led from there to it (B, H, 1, 1, D).
        level: embedded level of the noise on the past video (B, D), where the model is told it.
        memory: keys and values of the context, a block each, where it does not depend on the flow time; else None.
    """

    x: Streams
    tables: Mapping[str, Table]
    last: Tensor | None = None
    led: Tensor | None = None
    level: Tensor | None = None
    memory: tuple[KeysValues, ...] | None = None

    def rows(self, part: slice) -> Context:
        """The context of some of the examples, through which no gradient flows."""

        def of(x: Tensor) -> Tensor:
            return x.detach()[part]

        return Context(
            {s: of(x_BLD) for s, x_BLD in self.x.items()},
            self.tables,
            None if self.last is None else of(self.last),
            None if self.led is None else of(self.led),
            None if self.level is None else of(self.level),
            None if self.memory is None else tuple((of(k), of(v)) for k, v in self.memory),
        )


class FlowModel(WorldModel):
    """The velocity of a noisy future from past video, past and future actions, and the flow time.

    Video goes in as patches and actions one by one. All have their place on one axis of time. The future steps are made
    together, so that all of them see all actions of the window.
    """

    cache_axis = 0  # it keeps none
    heeds_prompt = True

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        """The defaults are those of the paper.

        Attributes:
            dim, depth, heads, mlp_ratio: width, blocks, attention heads, and how much wider the MLPs are.
            patch: cells of a patch, in rows and in columns.
            condition_dropout: share of the training examples whose condition (past video, and all actions) is hidden:
                what the unconditional velocity of guided sampling is learned from.
            context_noise: least and most noise on the past video in training, in standard deviations, a level a clip,
                which is told beside the flow time (`hwm.objectives.context`); in sampling there is none. Two zeros add
                none and tell none, as the paper has it.
            clean_context: the context is conditioned on the flow time of data, 1, instead of that of the noisy video.
                Where nothing of the context depends on the sample then, it goes through the blocks once a prediction
                instead of at every step of the solver. False in the paper.
            direct: tokens of a missing step are also conditioned directly on what it follows from: the last known step,
                shown beside the noise cell by cell, and the actions from there on, each step's mean added up. They need
                not find both by attention, which takes long to learn. False in the paper.
            any_horizon: an update trains on 1 to `horizon` missing steps, as many as chance has it, so that the model
                can be asked for fewer than `horizon` too, as it is in play. False in the paper, whose horizon is 1.
            objective: "flow" learns velocities; "shortcut" also mean velocities over steps along the path, so that a
                few steps of Euler's will do (`hwm.objectives.shortcut`).
            logit_normal_mean: of the flow times of training, see `draw_times`; below 0 more noise is shown, and more
                has to be found in the condition. 0 in the paper.
            self_consistency: share of the training examples of "shortcut" whose target is a mean velocity.
            sampler: how missing steps are made unless a call says otherwise.
        """

        dim: int = 1152
        depth: int = 15
        heads: int = 16
        mlp_ratio: float = 4.0
        patch: int = 2
        condition_dropout: float = 0.15
        context_noise: tuple[float, float] = (0.0, 0.0)
        clean_context: bool = False
        direct: bool = False
        any_horizon: bool = False
        objective: Literal["flow", "shortcut"] = "flow"
        logit_normal_mean: float = 0.0
        self_consistency: float = 0.25
        sampler: FlowSampler = field(default_factory=FlowSampler)
        renamed: ClassVar[Mapping[str, str]] = {
            "drop": "condition_dropout", "middle": "logit_normal_mean", "spans": "self_consistency",
        }  # fmt: skip
        in_validation: ClassVar[Mapping[str, Any]] = {
            "condition_dropout": 0.0,
            "context_noise": (0.0, 0.0),
            "any_horizon": False,
            "logit_normal_mean": 0.0,
            "self_consistency": 0.0,
        }

    adamw_only = ("time", "span", "context_level", "patch_past", "patch_future", "actions", "final")

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, latent = config, spec.latent
        if latent.channels is None:
            raise HwmError(f"{self.name} needs continuous latents, and this data has ids of {latent.vocab}")
        if any(n % c.patch for n in latent.view_grid):
            raise HwmError(f"a grid of {latent.view_grid} does not split into patches of {c.patch} x {c.patch}")
        if not (0 <= c.condition_dropout < 1 and 0 <= c.self_consistency < 1):
            raise HwmError(
                f"condition_dropout={c.condition_dropout} and self_consistency={c.self_consistency} must be at least 0 "
                "and below 1"
            )
        check_levels(c.context_noise)
        self.objective = OBJECTIVES.get(c.objective)
        width = c.patch**2 * latent.channels
        self.patch_past = nn.Linear(width, c.dim)
        self.patch_future = nn.Linear((1 + c.direct) * width, c.dim)
        self.views = ViewEmbedding(latent, c.dim)
        self.actions, self.time = ActionTokens(spec, c.dim), TimeEmbedding(c.dim)
        self.span = TimeEmbedding(c.dim) if self.objective else None  # of the step size; checkpoints name it so
        self.context_level = ContextLevel(c.dim) if any(c.context_noise) else None
        self.blocks = nn.ModuleList(
            FlowBlock(row, c.dim, c.heads, c.mlp_ratio, last=i == c.depth - 1) for i, row in enumerate(self.rows())
        )
        self.final_modulation, self.final = Modulation(c.dim, 2), nn.Linear(c.dim, width, bias=False)

    @abstractmethod
    def rows(self) -> list[FlowRow]:
        """The kind of each block."""

    @abstractmethod
    def through(self, x: Streams, times: Streams, context: Context) -> Tensor:
        """Streams through the blocks: all four, or the future video alone where the context has left its memory.

        Args:
            times: stream -> embedded flow time (B, D).

        Returns:
            the future video (B, L, D).
        """

    def init_weights(self) -> None:
        """Xavier and zero biases, N(0, 0.02) for flow times, and modulations of zero: every block begins as the
        identity. The last projection is Xavier too: the paper found zeros there unstable."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, TimeEmbedding):
                nn.init.normal_(module.fc1.weight, std=0.02)
                nn.init.normal_(module.fc2.weight, std=0.02)
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)

    def units(self) -> Iterable[nn.Module]:
        return self.blocks

    def normalised(self, latents_BTCHW: Tensor) -> Tensor:
        """Latents in standard deviations of their channel, in float32."""
        mean, std = latent_scale(self.spec, latents_BTCHW.device)
        return (latents_BTCHW.float() - mean) / std

    def observe(
        self, past_BPCHW: Tensor, actions_BTKA: Tensor, embodiment: str, kept_B: Tensor, level_B: Tensor | None = None
    ) -> Context:
        """Embed the condition.

        Args:
            past_BPCHW: normalised latents.
            kept_B: 0 where an example's condition is hidden: mean pictures and mean actions are shown instead.
            level_B: of the noise on the latents, of models that are told it; None is none.
        """
        (past, steps), per_step = (past_BPCHW.shape[1], actions_BTKA.shape[1]), actions_BTKA.shape[2]
        dtype, shown_BPCHW = self.patch_past.weight.dtype, past_BPCHW * kept_B.view(-1, 1, 1, 1, 1)
        video = self.views(self.patch_past(patches(shown_BPCHW, self.config.patch).to(dtype)).flatten(2, 3))
        tokens = self.actions(actions_BTKA, embodiment, kept_B)
        old = len(self.actions.times(past, per_step))
        x = {PAST_VIDEO: video.flatten(1, 2), FUTURE_ACTION: tokens[:, old:], PAST_ACTION: tokens[:, :old]}
        tables = self.tables(past, steps, per_step, past_BPCHW.device)
        x = {s: tokens_BLD.to(dtype) for s, tokens_BLD in x.items()}
        told = self.context_level
        level_BD = None if told is None else told(torch.zeros_like(kept_B) if level_B is None else level_B)
        if not self.config.direct:
            return Context(x, tables, level=level_BD)
        led_BHD = x[FUTURE_ACTION].unflatten(1, (steps - past, per_step)).mean(2).cumsum(1)
        return Context(x, tables, shown_BPCHW[:, -1:], led_BHD[:, :, None, None], level_BD)

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
        return {s: rope_3d(times, cells, head, device, centred=True) for s, (times, cells) in places.items()}

    def timed(self, context: Context, t_B: Tensor) -> Tensor:
        """What the streams are conditioned on at these flow times (B, D)."""
        c_BD: Tensor = self.time(t_B)
        return c_BD if context.level is None else c_BD + context.level

    def velocity(self, context: Context, noisy_BHCHW: Tensor, t_B: Tensor, step_size_B: Tensor | None = None) -> Tensor:
        """The velocity (B, H, C, H, W) of the future steps at these flow times, in float32.

        Args:
            step_size_B: of the step along the path over which it is the mean; None is at the very time. Only the
                objectives that learn step sizes heed it.
        """
        seen = noisy_BHCHW
        if context.last is not None:
            seen = torch.cat([seen, context.last.expand_as(seen)], 2)
        grid = patches(seen, self.config.patch)
        dtype = self.patch_future.weight.dtype
        future = self.patch_future(grid.to(dtype))
        future = (future if context.led is None else future + context.led).flatten(2, 3)
        future_BLD = self.views(future).flatten(1, 2).to(dtype)
        c_BD = self.timed(context, t_B)
        if self.span is not None:
            c_BD = c_BD + self.span(torch.zeros_like(t_B) if step_size_B is None else step_size_B)
        known = self.timed(context, torch.ones_like(t_B)) if self.config.clean_context else c_BD
        if context.memory is not None:
            x, times = {FUTURE_VIDEO: future_BLD}, {FUTURE_VIDEO: c_BD}
        else:
            x = {FUTURE_VIDEO: future_BLD, **context.x}
            times = {s: c_BD if s == FUTURE_VIDEO else known for s in STREAMS}
        scale, shift = self.final_modulation(c_BD)
        out_BLD = self.final(modulated(self.through(x, times, context), scale, shift, eps=1e-6))
        return unpatched(out_BLD.unflatten(1, grid.shape[1:4]), self.config.patch).float()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the velocity of a clip's last `horizon` steps, at one random flow time an example.

        Of some examples, where the objective learns step sizes, it is that of a mean velocity from its target.
        """
        self.check(batch)
        c, past = self.config, batch.latents.shape[1] - self.config.horizon
        self.check_window(past, c.horizon)
        missing = int(torch.randint(c.horizon, ())) + 1 if c.any_horizon else c.horizon
        x_BTCHW = self.normalised(batch.latents[:, : past + missing])
        data, device, size = x_BTCHW[:, past:], x_BTCHW.device, len(x_BTCHW)
        kept_B = (torch.rand(size, device=device) >= c.condition_dropout).float()
        past_BPCHW, level_B = x_BTCHW[:, :past], None
        if self.context_level is not None:
            past_BPCHW, level_B = noised(past_BPCHW, c.context_noise)
        context = self.observe(past_BPCHW, batch.actions[:, : past + missing], batch.embodiment, kept_B, level_B)
        # on average the share asked for, whatever the size
        share = c.self_consistency if self.objective else 0.0
        consistent = int(share * size + float(torch.rand(()))) if share else 0
        noise = normal(tuple(data.shape), device)
        shown = training_targets(
            self.objective,
            consistent,
            lambda p: partial(self.velocity, context.rows(p)),
            data,
            noise,
            c.logit_normal_mean,
        )
        found = self.velocity(context, shown.noisy, shown.t, shown.step_size)
        loss = (found - shown.target).square().mean()
        return loss, {"explained": 1 - loss.detach() / shown.target.square().mean()}

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

        def field(x: Tensor, t: float, step_size: float) -> Tensor:
            t_B, step_size_B = torch.full_like(kept_B, t), torch.full_like(kept_B, step_size)
            if alone:
                return self.velocity(context, x, t_B, step_size_B)
            unconditional, conditional = self.velocity(context, x.repeat(2, 1, 1, 1, 1), t_B, step_size_B).chunk(2)
            return guided(unconditional, conditional, sampler.guidance)

        shape = (size, batch.missing, *batch.latents.shape[2:])
        x_BHCHW = integrate(field, normal(shape, device, generator), sampler)
        mean, std = latent_scale(self.spec, device)
        return Prediction((x_BHCHW * std + mean).to(batch.latents.dtype))
