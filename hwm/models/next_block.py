"""A spatio-temporal transformer that predicts a whole block of latent steps in one pass, as the 1X challenge's winner.

Source: the winning entry of the compression track, arXiv 2510.07092, as its abstract and figures describe it: trained
from scratch on the tokens of Cosmos DV 8x8x8, 17 frames (three grids of 32 x 32) and the robot's states in, the three
grids of the next 17 frames out, states as additive embeddings. Its sizes and its training were not to be found; what
is not in this paragraph is of our own choosing.

Shape suffixes: B batch, T latent step of the window, P past step, H missing step, S cells, K actions a step, A action
dimension, D width, V logits. Inside the blocks time comes first (TBSD).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.base import WorldModel, join
from hwm.models.heads import token_embedding, token_head, vocabulary
from hwm.nn.actions import ActionEncoder
from hwm.nn.attention import Attention
from hwm.nn.layers import constant, init_weights
from hwm.nn.rope import rope_1d, rope_2d
from hwm.nn.st import Mlps, SpaceAttention, View, attend_over_time
from hwm.nn.streams import VIDEO_ONLY
from hwm.objectives import maskgit
from hwm.objectives.maskgit import LOGITS_AT_ONCE, MaskGITSampler
from hwm.types import Batch, DataSpec, Generator, Prediction


class OnePassBlock(nn.Module):
    """Attention among the cells of each step, causal attention over the steps of each cell, and an MLP.

    Each is residual, with a LayerNorm before it; past and future share all weights.
    """

    def __init__(self, config: NextBlock.Config) -> None:
        super().__init__()
        c = config
        self.space = SpaceAttention(c.dim, c.heads, VIDEO_ONLY, c.qk_norm)
        self.norm, self.time = nn.LayerNorm(c.dim), Attention(c.dim, c.heads, c.qk_norm)
        self.mlp = Mlps(c.dim, c.mlp_ratio, c.mlp_drop, VIDEO_ONLY)

    def forward(self, x_TBSD: Tensor, view: View) -> Tensor:
        x_TBSD, _ = self.space(x_TBSD, view, None)
        q, *keys = self.time.project(self.norm(x_TBSD), view.times)
        x_TBSD = x_TBSD + self.time.proj(attend_over_time(q, keys, view.mask))
        return self.mlp(x_TBSD, view.video)


class NextBlock(WorldModel, name="next_block"):
    """Past tokens and a placeholder for every missing cell go through the blocks once; the missing cells are read off.

    The embedded actions of a step are added to all of its cells. Attention over time is causal, so a missing step sees
    the past, the actions up to its own, and the placeholders of the steps between: no token of the future has any part
    in it. All missing cells are drawn independently of one another. That is the price of one pass, and no price at all
    where only their distributions are asked for, as in the challenge.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        """
        Attributes:
            past, horizon: steps of a window; each has its learned positions, counted back from the first missing step.
            clip_steps: steps that were encoded together, apart from all others: 3 in 1X's v2.0, whose clips of 17
                frames are steps of 1, 8 and 8. The past is then whole clips, and past, horizon and window_stride are
                multiples of this. 1 where any step may begin a window.
            dim, depth, heads, mlp_ratio: width, blocks, attention heads, and how much wider the MLPs are.
            mlp_drop: dropout in the MLPs.
            qk_norm: LayerNorm on queries and keys.
            max_corrupt: in training, past tokens are replaced at random at a rate of U(0, max_corrupt): what makes
                rollouts, whose past is the model's own, bear its errors. 0 suits the compression track, whose past is
                true.
            label_smoothing: of the cross-entropy.
            factorized: embed and predict the digits that ids are made of (`LatentSpec.levels`) instead of whole ids.
            sampler: how tokens are drawn: its temperature and pick. There is one decoding step, so steps is 1, and
                order has no say.
        """

        past: int = 3
        horizon: int = 3
        clip_steps: int = 1
        dim: int = 512
        depth: int = 24
        heads: int = 8
        mlp_ratio: float = 4.0
        mlp_drop: float = 0.0
        qk_norm: bool = False
        max_corrupt: float = 0.0
        label_smoothing: float = 0.0
        factorized: bool = False
        sampler: MaskGITSampler = field(default_factory=lambda: MaskGITSampler(steps=1))
        in_validation: ClassVar[Mapping[str, Any]] = {"max_corrupt": 0.0, "label_smoothing": 0.0}

    adamw_only = ("embed", "head")
    cache_axis = 0  # it keeps none
    heeds_prompt = True

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, latent = config, spec.latent
        self.vocab = vocabulary(self.name, latent, c.factorized)
        lengths = (c.past, c.horizon, c.window_stride)
        if min(c.clip_steps, *lengths) < 1 or any(length % c.clip_steps for length in lengths):
            raise HwmError(
                f"past={c.past}, horizon={c.horizon} and window_stride={c.window_stride} must be multiples of "
                f"clip_steps={c.clip_steps}: "
                "windows begin and end where clips do"
            )
        self.group = c.clip_steps
        self.embed = token_embedding(latent, c.dim, c.factorized)
        self.head = token_head(latent, c.dim, c.factorized)
        self.position = nn.Parameter(torch.zeros(c.past + c.horizon, latent.cells, c.dim))
        self.actions = ActionEncoder(spec, c.dim, positions=1, ordered=True, deep=False)
        self.blocks = nn.ModuleList(OnePassBlock(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        init_weights(self)
        self.head.init()

    def units(self) -> Iterable[nn.Module]:
        return self.blocks

    def hidden(self, ids_BPS: Tensor, actions_BTKA: Tensor, embodiment: str) -> Tensor:
        """The last hidden states (B, H, S, D) of the steps that have actions and no ids."""
        (batch, past, cells), steps = ids_BPS.shape, actions_BTKA.shape[1]
        mask = self.embed.views(self.embed.mask_vector.expand(steps - past, batch, cells, -1))
        known = self.embed(ids_BPS.transpose(0, 1))
        start = self.config.past - past
        x_TBSD = torch.cat([known, mask.to(known.dtype)]) + self.position[start : start + steps, None]
        x_TBSD = x_TBSD + self.actions(actions_BTKA, embodiment)[:, :, None]
        view = self.view(past, steps - past, x_TBSD.device)
        for block in self.blocks:
            x_TBSD = block(x_TBSD, view)
        return self.norm(x_TBSD[past:]).transpose(0, 1)

    def view(self, past: int, missing: int, device: torch.device) -> View:
        """Every step sees itself and those before it."""
        steps, head = past + missing, self.config.dim // self.config.heads
        cells, times = rope_2d(self.spec.latent.grid, head, device), rope_1d(tuple(range(steps)), head, device)
        causal = tuple(tuple(s <= t for s in range(steps)) for t in range(steps))
        return View(
            roles=(("past", past), ("future", missing)),
            cells=(cells[0][:, None], cells[1][:, None]),
            times=(times[0][:, None, None, None], times[1][:, None, None, None]),
            mask=constant(causal, device, torch.bool),
        )

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of the last `horizon` steps of a clip in nats a token; nothing of it is missing."""
        self.check(batch)
        ids_BTS, past = batch.latents.flatten(2), batch.latents.shape[1] - self.config.horizon
        self.check_window(past, self.config.horizon)
        past_BPS, target_BHS = ids_BTS[:, :past], ids_BTS[:, past:]
        rate_B11 = maskgit.corruption_rate(len(ids_BTS), self.config.max_corrupt, ids_BTS.device)
        past_BPS = maskgit.corrupt(past_BPS, rate_B11, self.vocab)
        hidden_BHSD = self.hidden(past_BPS, batch.actions[:, : ids_BTS.shape[1]], batch.embodiment)
        loss, accuracy = self.head.loss(hidden_BHSD, target_BHS, smoothing=self.config.label_smoothing)
        return loss, {"accuracy": accuracy}

    @torch.no_grad()
    def logit_pieces(self, batch: Batch) -> Iterator[tuple[slice, Tensor]]:
        """Logits of all missing steps, a few cells at a time: which cells, and (B, H, cells, V) of them.

        Over 64,000 ids the logits of a block of 3 x 32 x 32 would fill 750 MiB; a piece fills 128 MiB.
        """
        self.check(batch)
        self.check_window(batch.latents.shape[1], batch.missing)
        hidden_BHSD = self.hidden(batch.latents.flatten(2), batch.actions, batch.embodiment)
        rows = hidden_BHSD.shape[0] * hidden_BHSD.shape[1]
        cells = max(1, LOGITS_AT_ONCE // (rows * self.head.out_features))
        for start in range(0, hidden_BHSD.shape[2], cells):
            yield slice(start, start + cells), self.head(hidden_BHSD[:, :, start : start + cells])

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        *,
        sampler: MaskGITSampler | None = None,
        logits: bool = False,
        cache: object | None = None,
        generator: Generator = None,
    ) -> Prediction:
        """One pass; every missing cell is drawn from its own distribution. There is nothing to cache."""
        sampler = sampler or self.config.sampler
        if sampler.steps != 1:
            raise HwmError(f"{self.name} predicts in one decoding step; steps={sampler.steps} is for masked models")
        if sampler.pick == "mean" and not self.head.levels:
            raise HwmError('pick="mean" is for factorised vocabularies with ordered digits; use pick="sample"')
        ids, kept = [], []
        for _, piece_BHCV in self.logit_pieces(batch):
            drawn = (maskgit.pick(part, sampler, generator)[0] for part in self.head.draws(piece_BHCV))
            ids.append(self.head.join(tuple(drawn)))
            kept += [piece_BHCV] if logits else []
        grid = self.spec.latent.grid
        shown = torch.cat(kept, 2).unflatten(2, grid) if logits else None
        return Prediction(torch.cat(ids, 2).unflatten(2, grid), shown, self.head.levels)

    def teacher_forced(self, batch: Batch, prompt: int) -> Prediction:
        """The steps from `prompt` on, a block at a time, each block from the true steps before it.

        Within a block nothing is given away: the steps and cells of a block are predicted at once, so that the logits
        of its only pass are those of every scenario.
        """
        greedy, parts, done = MaskGITSampler(steps=1), list[Any](), prompt
        while done < batch.latents.shape[1]:
            stop = min(done + self.config.horizon, batch.latents.shape[1])
            window = batch.window(self.window_start(done), done, stop)
            parts.append(self.predict(window, sampler=greedy, logits=True))
            done = stop
        return join(parts)
