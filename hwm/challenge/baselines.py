"""What a model of the compression track has to beat, as distributions that are scored as the model's is.

Both are made of training data alone: how often each id occurs, and how often a cell has the id that it had one block
before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwm.challenge.topk import Top
from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.progress import track

STEPS_AT_ONCE = 4096
PAIRS = 512
"""Windows of which the copying is measured, spread evenly over the training data."""
MOST_COPIED = 1 - 1e-6
"""However often ids are repeated in the windows looked at, others are never impossible."""


@dataclass(frozen=True)
class Baselines:
    """Two distributions of an id.

    Attributes:
        frequency: (V,) float64, how likely each id is wherever it stands: counted, and one more for each.
        copied: probability that a cell's id is that of the same cell and step one block before.
        k: ids that are kept.
    """

    frequency: Tensor
    copied: float
    k: int

    @classmethod
    def of(cls, clips: Clips, prompt: int, k: int) -> Baselines:
        """Count ids and repetitions in training windows of `prompt` steps and as many after them as are predicted.

        Raises:
            HwmError: the data holds no ids.
        """
        latent, latents = clips.store.header.latent, clips.store.latents
        if latent is None or latent.vocab is None or latents is None:
            raise HwmError(f"{clips.store.path} holds no token ids to count")
        counts = np.ones(latent.vocab, np.int64)
        starts = range(0, clips.store.steps, STEPS_AT_ONCE)
        for i in track(starts, len(starts), f"counting ids of {clips.store.path.name}", STEPS_AT_ONCE, "steps"):
            counts += np.bincount(np.asarray(latents[i : i + STEPS_AT_ONCE]).ravel(), minlength=latent.vocab)
        chosen = clips.spread(PAIRS)
        same = []
        for index in chosen:
            ids = clips.batch([index]).latents[0]
            same.append((copy_of(ids[:prompt], len(ids) - prompt) == ids[prompt:]).double().mean())
        copied = min(float(torch.stack(same).mean()), MOST_COPIED)
        return cls(torch.from_numpy(counts / counts.sum()), copied, k)

    def unigram(self, truth: Tensor) -> tuple[Top, Tensor]:
        """The same for every cell: the likeliest ids, and the log-probability of the truth."""
        p, ids = self.frequency.topk(self.k)
        shape = (*truth.shape, self.k)
        return Top(ids.expand(shape), p.log().float().expand(shape)), self.frequency[truth].log()

    def copy(self, before: Tensor, truth: Tensor) -> tuple[Top, Tensor]:
        """The id of one block before with probability `copied`, else any, as likely as it is wherever it stands."""
        rest_V = (1 - self.copied) * self.frequency
        p, ids = rest_V.topk(self.k)
        shape = (*truth.shape, self.k)
        ids, p = ids.expand(shape).clone(), p.expand(shape).clone()
        hit = ids == before[..., None]
        # the copied id takes the place of itself where it is among the likeliest, else that of the last of them
        place = torch.where(hit.any(-1), hit.long().argmax(-1), self.k - 1)[..., None]
        ids.scatter_(-1, place, before[..., None])
        p.scatter_(-1, place, (self.copied + rest_V[before])[..., None])
        full = rest_V[truth] + torch.where(truth == before, self.copied, 0.0)
        return Top(ids, p.log().float()), full.log()


def copy_of(past_PHW: Tensor, steps: int) -> Tensor:
    """The past as a guess of the `steps` steps after it: step j is what it was one block of `steps` before, or the
    last that is known where the past is shorter than a block."""
    past = past_PHW.shape[0]
    return past_PHW[[min(max(past - steps + j, 0), past - 1) for j in range(steps)]]
