"""How a model is asked to predict: from its own earlier predictions, or from the truth.

A scenario is a function of (model, batch, prompt) that returns the steps prompt..T of the batch as one `Prediction`.
The batch has latents and actions of all T steps; a scenario decides which of them the model sees. It asks the model
for nothing but `predict` and `rollout`. To add one, write the function and put it into `SCENARIOS`.
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
    generator: torch.Generator | None = None,
) -> Prediction:
    """Each step from the true steps before it; within the step the model is on its own.

    The window is the one that a rollout would use, so that the first step is that of `autoregressive` for a model
    that predicts one step at a time. A model that predicts several at once is asked for one, and sees no action
    beyond it.
    """
    parts = []
    with torch.inference_mode():
        for t in range(prompt, batch.latents.shape[1]):
            window = batch.window(model.window_start(t), t, t + 1)
            parts.append(model.predict(window, sampler=sampler, logits=logits, generator=generator))
    return join(parts)


SCENARIOS: dict[str, Scenario] = {
    "autoregressive": autoregressive,
    "temporally_teacher_forced": temporally_teacher_forced,
}
