"""A world in which everything tells its time: frame i is a picture of grey level i, and its action says i.

A model that reads nothing but actions shows the frame asked for only if every step has the actions of its own frames.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.challenge.recordings import Sample
from hwm.models.base import WorldModel
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec, Prediction, Tokenizer

SIDE = 4


class ClockTokenizer(Tokenizer):
    """A step of s frames is s cells, each the grey level of its frame; a step of one frame has it in all of them."""

    size, id = (SIDE, SIDE), "clock"

    def __init__(self, stride: int, lookback: int = 0) -> None:
        self.latent = LatentSpec((1, stride), 256, stride=stride)
        self.lookback = lookback

    def encode(self, video_BFCHW: Tensor) -> Tensor:
        level_BF = (video_BFCHW.mean((-3, -2, -1)) * 255).round().long()
        first, rest = level_BF[:, :1].expand(-1, self.latent.stride), level_BF[:, 1:]
        return torch.cat([first, rest], 1).unflatten(1, (-1, 1, self.latent.stride))

    def decode(self, latents: Tensor) -> Tensor:
        level_BF = torch.cat([latents[:, 0, 0, -1:], latents[:, 1:, 0].flatten(1)], 1)
        return (level_BF.float() / 255)[..., None, None, None].expand(-1, -1, 3, SIDE, SIDE)


class Clock(WorldModel):
    """Shows the times that the actions tell: of K actions a step, those of its frames.

    Args:
        per_frame: rows of actions from one frame that the model sees to the next.
        noise: levels that a random generator adds.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        """
        Attributes:
            clip_steps: steps of a clip.
        """

        clip_steps: int = 1

    name = "clock"

    def __init__(self, config: Any, stride: int, per_frame: int, noise: int = 0) -> None:
        action = ActionSpec(stride * per_frame, ("time",), (0.0,), (1.0,))
        super().__init__(config, DataSpec(LatentSpec((1, stride), 256, stride=stride), {"clock": action}, "clock"))
        self.per_frame, self.noise, self.group = per_frame, noise, config.clip_steps
        self.seen: list[Batch] = []

    def predict(
        self,
        batch: Batch,
        *,
        sampler: Any = None,
        logits: bool = False,
        cache: object | None = None,
        generator: Any = None,
    ) -> Prediction:
        self.check(batch)
        self.seen.append(batch)
        missing = batch.actions[:, batch.latents.shape[1] :, :, 0]
        level = missing[:, :, self.per_frame - 1 :: self.per_frame].round().long()[:, :, None]
        if self.noise:
            extra = [torch.randint(-self.noise, self.noise + 1, level.shape[1:], generator=g) for g in generator]
            level = (level + torch.stack(extra)).clamp(0, 255)
        return Prediction(level)


@dataclass
class ClockRecordings:
    """One sample whose frame i has the level of its number, and whose last action before it says so."""

    known: int
    target: int
    rate: int = 1
    scored: bool = True
    embodiment: str = "clock"
    path: Path = Path("clock")

    @property
    def names(self) -> list[str]:
        return ["a", "b"]

    @property
    def episodes(self) -> list[str]:
        return self.names

    def sample(self, number: int, wanted: Collection[int]) -> Sample:
        end = self.target + 1 if self.scored else self.known
        frames = {i: np.full((SIDE, SIDE, 3), i, np.uint8) for i in wanted if i < end}
        rows = (np.arange((self.target + 1) * self.rate) // self.rate)[:, None]
        return Sample(self.names[number], self.target, frames, rows.astype(np.float32))
