"""Updates on a model's own rollouts: the context ends in steps that the model made, and what is learned from is true.

Where each step is predicted from true ones alone, none follows an error of the model's own; in play all do.
Sources: Data as Demonstrator (Venkatraman, Hebert and Bagnell, AAAI 2015), of which this is the form for clips. No
gradient goes through the rollout, as it does in Self Forcing (arXiv 2506.08009).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hwm.config import Trainable
from hwm.data.mixture import Mixture
from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.train.config import TrainConfig
from hwm.types import Batch

APART = 1
"""Tells these draws from those of clips, which are of the same seeds."""


class LongerClips:
    """The clips of a run of which some updates look back on own steps: which, and on how many.

    Both are functions of the seed and the number of the update, the same in every process. An update of n own steps
    takes windows of n steps more, which are drawn by themselves; the others see what they would see without.

    Args:
        group: own steps are multiples of it.

    Raises:
        HwmError: a store has no episode that is long enough.
    """

    def __init__(self, config: TrainConfig, data: Mixture, group: int) -> None:
        self.seed, self.share, self.accumulate = config.seed, config.own_rollouts, config.accumulate
        self.data, self.length = data, data.clips[0].length
        self.counts = range(group, config.rollout_steps + 1, group)
        try:
            self.longer = data.longer(self.counts[-1])
        except HwmError as error:
            raise HwmError(
                f"{error}. Training on own rollouts takes clips of up to {self.counts[-1]} steps more: lower "
                "--train.rollout-steps, or leave that store out"
            ) from error

    @property
    def far(self) -> bool:
        return self.data.far

    def count(self, update: int) -> int:
        """How many own steps an update looks back on; 0 of true context alone."""
        rng = np.random.default_rng((self.seed, update, APART))
        return int(rng.choice(self.counts)) if rng.random() < self.share else 0

    def batch(self, seed: int, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """As `Mixture.batch`: true clips of the step, longer by the own steps of its update."""
        count = self.count(step // self.accumulate)
        if not count:
            return self.data.batch(seed, step, size, rank, world)
        length = self.length + count
        return self.longer.batch(seed, step, size, rank, world).window(0, length, length)


class OwnRollouts:
    """What training on own rollouts adds to a run.

    Attributes:
        clips: what its updates draw from.

    Raises:
        HwmError: what is trained is no world model, or does not tell its context from what it learns from, or makes
            more steps at once than `rollout_steps`; or data that is too short, or of clips that it would not go on by.
    """

    def __init__(self, config: TrainConfig, module: Trainable, data: Mixture) -> None:
        self.model = checked(config, module, data)
        self.sampler = self.model.sampler_with(config.rollout_sampler)
        self.clips = LongerClips(config, data, self.model.group)

    def rolled_out(self, batch: Batch) -> Batch:
        """Clips as the loss takes them: longer ones with own steps in their place."""
        count = batch.latents.shape[1] - self.clips.length
        return self.model.with_own_steps(batch, count, sampler=self.sampler)

    def examples(self) -> Iterator[Batch]:
        """A clip of each embodiment as both kinds of update take it, of which nothing is rolled out."""
        for batch in self.clips.data.examples():
            yield batch
            yield replace(batch, prompt=self.clips.length - self.model.config.horizon)

    def named(self, values: dict[str, Tensor], update: int) -> dict[str, Tensor]:
        """What the loss of an update puts out, under names that tell the two kinds apart."""
        count = self.clips.count(update)
        if not count:
            return values
        return {f"own_{k}": v for k, v in values.items()} | {"own_steps": torch.tensor(float(count))}


def checked(config: TrainConfig, module: Trainable, data: Mixture) -> WorldModel:
    """The module, which can be trained on its own rollouts over this data; see `OwnRollouts`."""
    if not isinstance(module, WorldModel):
        raise HwmError(f"{module.name} is no world model and rolls nothing out: leave --train.own-rollouts at 0")
    if not module.heeds_prompt:
        raise HwmError(
            f"{module.name} cannot be trained on own rollouts: its loss has to leave `Batch.prompt` out of what it "
            "learns from, and its class to say so with heeds_prompt = True"
        )
    if module.group > config.rollout_steps:
        raise HwmError(
            f"{module.name} makes {module.group} steps at a time: --train.rollout-steps {config.rollout_steps} is too "
            "few"
        )
    for clips in data.clips:
        if module.group % clips.store.clip_steps:
            raise HwmError(
                f"{clips.store.path} was encoded in clips of {clips.store.clip_steps} steps that do not know of each "
                f"other, and {module.name} goes on by {module.group}: its rollouts would be of no clip"
            )
    return module
