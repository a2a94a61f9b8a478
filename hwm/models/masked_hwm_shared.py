"""The four-stream masked model with shared parameters: an independent re-implementation's reading of Masked-HWM.

Source: the public repository `skr3178/Humanoid_world_model` (described there as HWM with shared parameters), after
arXiv 2506.01182.

Shape suffixes: B batch, T latent step, P past step, H missing step, S cells, G ids a cell, K actions a step, A action
dimension, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.heads import TokenHead
from hwm.models.masked import MaskedModel
from hwm.nn.actions import ActionEncoder
from hwm.nn.layers import init_weights
from hwm.nn.rope import rope_1d, rope_2d
from hwm.nn.st import View
from hwm.nn.streams import STREAM_ROWS, Stack, StreamBlock
from hwm.nn.tokens import TokenEmbedding
from hwm.objectives.cells import Cells
from hwm.types import DataSpec


class SharedWindow(NamedTuple):
    """Past tokens as embedded (P, B, S, D), and actions of the whole window (T, B, D)."""

    past: Tensor
    actions: Tensor


class MaskedHWMShared(MaskedModel, name="masked_hwm_shared"):
    """Four streams, two MLPs a block, and attention over time that runs both ways.

    A block is: spatial attention and an MLP for each video stream (one set of weights for both from block
    `shared_from` on), joint attention over time with one set of weights, and an MLP for each of the four streams in
    every block. All four streams see one another whole: the past may read the future, so nothing of it can be kept
    from one prediction to the next, and no causality is claimed.

    Where this class departs from its source: an action has the rotary position of its own latent step (there: T steps
    further); action tokens are not copied to every cell, they read the mean over cells of the video's keys and values
    (see `hwm.nn.st.JointTime`); the complex tables are no part of the weights.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskedModel.Config):
        """
        Attributes:
            shared_from: first block in which past and future video share spatial attention and its MLP.
            stream_embedding: a learned vector for each stream, in every attention over time.
            spatial_pool: attention over time sees the mean over cells, and gives every cell the same (the source's
                first version).
            clip_factors: 3 reads the three latents of a stored clip of 17 frames as three *factors* of one step, each
                with its own table and head, masked at the same cells. That is how the source reads its data, and it is
                a mistake: the axis is time (1, 8 and 8 frames), so the model must guess three moments at once and
                cannot use the first for the second. It is here to reproduce the source. Past and horizon
                are still counted in latent steps, in multiples of it.
        """

        shared_from: int = 4
        stream_embedding: bool = False
        spatial_pool: bool = False
        clip_factors: int = 1

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(dim=32, depth=2, heads=2, shared_from=1)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, self.group = config, config.clip_factors
        if c.past % c.clip_factors or c.horizon % c.clip_factors:
            raise HwmError(
                f"with clip_factors={c.clip_factors}, past ({c.past}) and horizon ({c.horizon}) must be multiples of it"
            )
        steps = (c.past + c.horizon) // c.clip_factors
        self.position = nn.Parameter(torch.zeros(1, steps, spec.latent.cells, c.dim))
        self.action_position = nn.Parameter(torch.zeros(1, steps, c.dim))
        self.actions = ActionEncoder(spec, c.dim, positions=0, deep=False, group=c.clip_factors)
        rows = [STREAM_ROWS["four_shared" if i >= c.shared_from else "four"] for i in range(c.depth)]
        time = {"stream_embedding": c.stream_embedding, "pool": c.spatial_pool}
        self.blocks = Stack(StreamBlock(row, c.dim, c.heads, c.mlp_ratio, c.mlp_drop, **time) for row in rows)
        self.norm = nn.LayerNorm(c.dim)
        init_weights(self)
        self.init_own()

    def init_own(self) -> None:
        """Tables shrink with the number that is summed, positions are drawn, the mask vector is Xavier of (1, D)."""
        for parameter in (self.position, self.action_position):
            nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, TokenEmbedding):
                nn.init.normal_(module.table.weight, std=0.02 / self.group**0.5)
                nn.init.xavier_uniform_(module.mask_vector[None])
            if isinstance(module, TokenHead):
                module.init()

    def make_embedding(self) -> nn.Module:
        return ClipEmbedding(self) if self.config.clip_factors > 1 else super().make_embedding()

    def make_head(self) -> nn.Module:
        return ClipHead(self) if self.config.clip_factors > 1 else super().make_head()

    def single_embedding(self) -> nn.Module:
        return super().make_embedding()

    def single_head(self) -> TokenHead:
        return super().make_head()

    def tokens(self, latents_BTHW: Tensor) -> Tensor:
        ids_BTS = super().tokens(latents_BTHW)
        return ids_BTS if self.group == 1 else ids_BTS.unflatten(1, (-1, self.group)).movedim(2, 3)

    def latents(self, ids_BTS: Tensor) -> Tensor:
        return super().latents(ids_BTS if self.group == 1 else ids_BTS.movedim(3, 2).flatten(1, 2))

    def placed(self, x_TBSD: Tensor, times: range) -> Tensor:
        return x_TBSD + self.position[0, times.start : times.stop, None]

    def observe(
        self, ids_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, missing: int, cache: None = None
    ) -> SharedWindow:
        past_PBSD = self.placed(self.embed(ids_BPS.transpose(0, 1)), range(ids_BPS.shape[1]))
        actions_TBD = self.actions(actions_BTKA, embodiment)
        return SharedWindow(past_PBSD, actions_TBD + self.action_position[0, : actions_TBD.shape[0], None])

    def decoding_step(self, window: SharedWindow, ids_BHS: Tensor, masked_BHS: Tensor) -> Tensor:
        c, past = self.config, window.past.shape[0]
        times = range(past + ids_BHS.shape[1])
        future_HBSD = self.placed(self.embed(ids_BHS.transpose(0, 1), masked_BHS.transpose(0, 1)), times[past:])
        x_TBSD = torch.cat([window.past, future_HBSD])
        head, device = c.dim // c.heads, x_TBSD.device
        cells = rope_2d(self.spec.latent.grid, head, device)
        time = rope_1d(tuple(times), head, device)
        view = View(
            (("past", past), ("future", len(times) - past)),
            (cells[0][:, None], cells[1][:, None]),
            (time[0][:, None, None, None], time[1][:, None, None, None]),
        )
        x_HBSD, _ = self.blocks(x_TBSD, window.actions, view, first=past)
        return self.norm(x_HBSD).transpose(0, 1)


class ClipEmbedding(nn.Module):
    """The sum of one embedding a factor: ids (..., G) -> (..., D)."""

    def __init__(self, model: MaskedHWMShared) -> None:
        super().__init__()
        self.factors = nn.ModuleList(model.single_embedding() for _ in range(model.config.clip_factors))

    def forward(self, ids: Tensor, masked: Tensor | None = None) -> Tensor:
        return torch.stack([embed(ids[..., i], masked) for i, embed in enumerate(self.factors)]).sum(0)


class ClipHead(nn.Module):
    """One head a factor, their logits side by side; losses and accuracies are means over factors."""

    def __init__(self, model: MaskedHWMShared) -> None:
        super().__init__()
        heads = [model.single_head() for _ in range(model.config.clip_factors)]
        self.levels = heads[0].levels
        self.factors: Any = nn.ModuleList(heads)

    def forward(self, h_D: Tensor) -> Tensor:
        return torch.cat([head(h_D) for head in self.factors], -1)

    def loss(
        self, h_D: Tensor, ids: Tensor, cells: Cells | None = None, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        each = [head.loss(h_D, ids[..., i], cells, smoothing) for i, head in enumerate(self.factors)]
        return torch.stack([loss for loss, _ in each]).mean(), torch.stack([right for _, right in each]).mean()

    def draws(self, logits_V: Tensor) -> tuple[Tensor, ...]:
        each = zip(self.by_id(logits_V).unbind(-2), self.factors, strict=True)
        return tuple(part for logits, head in each for part in head.draws(logits))

    def join(self, draws: tuple[Tensor, ...]) -> Tensor:
        size = len(draws) // len(self.factors)
        return torch.stack([head.join(draws[i * size : (i + 1) * size]) for i, head in enumerate(self.factors)], -1)

    def by_id(self, logits_V: Tensor) -> Tensor:
        return logits_V.unflatten(-1, (len(self.factors), -1))
