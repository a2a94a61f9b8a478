"""What replays of several families share: sampling and masks of released code, and pictures that are not clamped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hwm.models.masked import MaskedModel
from hwm.objectives.cells import Cells
from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import Batch, Generator


@dataclass(frozen=True)
class ReleasedSampler(MaskGITSampler):
    """The schedule of 1X's code and of what was built on it, and random orders as they were recorded.

    Attributes:
        draws: for each decoding step but the last, of each step, what was drawn in place of confidences: (B, S).
    """

    draws: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    def counts(self, cells: int) -> tuple[int, ...]:
        """ceil(cos(pi/2 k/K) S), where ours sees to it that every step settles a cell: here the first of 4 on 9 cells
        settles none."""
        return (*(math.ceil(math.cos(math.pi / 2 * k / self.steps) * cells) for k in range(1, self.steps)), 0)

    def keep_score(self, logp_BHS: Tensor, generator: Generator = None, *, to_come: float = 0.0) -> Tensor:
        return next(self.draws)[:, None] if self.order == "random" else logp_BHS


def training(model: MaskedModel, clip: Batch, masked_ids_BTS: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of a clip, corrupted and masked as recorded instead of by chance.

    Args:
        clip: what is to be guessed.
        masked_ids_BTS: what is shown; masks are ids out of the vocabulary.
    """
    masked_BTS = masked_ids_BTS == model.vocab
    drawn = (*model.split(masked_ids_BTS.masked_fill(masked_BTS, 0)), Cells(model.split(masked_BTS)[1]))
    vars(model)["corrupt_and_mask"] = lambda ids_BTS, prompt: drawn  # what the loss would draw
    try:
        loss, metrics = model.loss(clip)
    finally:
        del vars(model)["corrupt_and_mask"]
    return loss, metrics["accuracy"]


def unclamped(shown: Tensor, made: Tensor) -> Tensor:
    """Pictures in [-1, 1], as `decode` shows them and, beyond black and white, as the decoder made them.

    Args:
        shown: what `decode` gave, in [0, 1].
        made: what the decoder gave, before that was clamped. Where `shown` is black or white and this is neither, the
            difference stays visible.
    """
    beyond = torch.where(shown <= 0, made.clamp(max=-1), made.clamp(min=1))
    return torch.where((shown > 0) & (shown < 1), shown * 2 - 1, beyond)
