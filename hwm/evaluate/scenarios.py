"""How a model is asked to predict: from its own earlier predictions, or from the truth.

A scenario is a function of (model, batch, prompt), where `prompt` counts context frames (latent steps). It returns the
steps prompt..T of the batch as one `Prediction`.
The batch has latents and actions of all T steps; a scenario decides which of them the model sees. It asks the model
for nothing but `predict`, `rollout` and `teacher_forced`. To add one, write the function and put it into `SCENARIOS`.
The names are those of the 1X World Model Challenge.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from hwm.models.base import WorldModel, join
from hwm.types import Batch, Prediction


class Scenario(Protocol):
    def __call__(
        self,
        model: WorldModel,
        batch: Batch,
        prompt: int,
        *,
        sampler: Any = None,
        logits: bool = False,
        generator: torch.Generator | None = None,
    ) -> Prediction: ...


def autoregressive(
    model: WorldModel,
    batch: Batch,
    prompt: int,
    *,
    sampler: Any = None,
    logits: bool = False,
    generator: torch.Generator | None = None,
) -> Prediction:
    """Roll out from `prompt` true steps, each prediction from those before it: what play and planning see."""
    start = batch.window(0, prompt, batch.actions.shape[1])
    return model.rollout(start, sampler=sampler, logits=logits, generator=generator)


def temporally_teacher_forced(
    model: WorldModel,
    batch: Batch,
    prompt: int,
    *,
    sampler: Any = None,
    logits: bool = False,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
) -> Prediction:
    """Each step from the true steps before it; within the step the model is on its own.

    The window is the one that a rollout would use, so that the first step is that of `autoregressive` for a model
    that predicts one step at a time. A model that predicts several at once is asked for as few as it can, and sees no
    action beyond them. What a model keeps of a window is of true steps, so it serves as long as windows begin at the
    same step: only the newly true step is run, and the decoding steps of the next.
    """
    parts: list[Prediction] = []
    cache, cached_start = None, -1
    with torch.inference_mode():
        for t in range(prompt, batch.latents.shape[1], model.group):
            start = model.window_start(t)
            window = batch.window(start, t, t + model.group)
            cache = cache if use_cache and start == cached_start else None
            part = model.predict(window, sampler=sampler, logits=logits, cache=cache, generator=generator)
            cache, cached_start, part.cache = part.cache, start, None  # each is as large as its window: one is kept
            parts.append(part)
    return join(parts)


def fully_teacher_forced(
    model: WorldModel,
    batch: Batch,
    prompt: int,
    *,
    sampler: Any = None,
    logits: bool = False,
    generator: torch.Generator | None = None,
) -> Prediction:
    """Each token from the true tokens before it, those of its own step too: what a next-token model is trained for.

    Nothing is sampled; the latents are the likeliest tokens. Models whose tokens have no order raise `HwmError`.
    """
    with torch.inference_mode():
        return model.teacher_forced(batch, prompt)


SCENARIOS: dict[str, Scenario] = {
    "autoregressive": autoregressive,
    "temporally_teacher_forced": temporally_teacher_forced,
    "fully_teacher_forced": fully_teacher_forced,
}
