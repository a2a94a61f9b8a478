"""Rollouts beyond a model's window where latents depend on the clip that they are in.

A tokenizer that is causal over a clip gives the first step one frame and tells each later step from those before it.
A window that moves on begins with neither: its frames are encoded anew (`Tokenizer.shift`), and what is predicted of it
is decoded with it.

Shape suffixes: B batch, F frames, C colours, H W places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hwm.evaluate.camera import decode
from hwm.models.base import WorldModel, join
from hwm.types import Batch, Generator, Prediction, Tokenizer


def by_clips(model: WorldModel, tokenizer: Tokenizer, steps: int) -> bool:
    """Whether rollouts of so many steps, context and all, must go clip by clip."""
    latent, c = tokenizer.latent, model.config
    return latent.stride > 1 and latent.channels is not None and steps > c.past + c.horizon


@torch.inference_mode()
def rollout_clips(
    model: WorldModel,
    tokenizer: Tokenizer,
    batch: Batch,
    *,
    sampler: Any = None,
    generator: Generator = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Prediction, Tensor]:
    """Predict every missing step, each window from the model's own earlier predictions, as a clip of its own.

    For a tokenizer of single frames these are the latents of `WorldModel.rollout`, and their pictures.

    Args:
        autocast: what the model predicts in (`Runtime.autocast`); the tokenizer does not.

    Returns:
        the missing steps, each as a step of its window's clip, and their pictures (B, F, C, H, W).
    """
    parts, pictures = list[Prediction](), list[Tensor]()
    for part, clip in clip_windows(model, tokenizer, batch, sampler=sampler, generator=generator, autocast=autocast):
        parts.append(part)
        pictures.append(decode(tokenizer, clip, last=part.latents.shape[1] * tokenizer.latent.stride))
    return join(parts), torch.cat(pictures, 1)


def clip_windows(
    model: WorldModel,
    tokenizer: Tokenizer,
    batch: Batch,
    *,
    sampler: Any = None,
    generator: Generator = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[tuple[Prediction, Tensor]]:
    """The windows of `rollout_clips`: what was predicted in each, and the latents of its clip with that at the end."""
    done, total = batch.latents.shape[1], batch.actions.shape[1]
    clip, begins = batch.latents, 0
    while done < total:
        start, stop = model.window_start(done), min(done + model.config.horizon, total)
        if start > begins:
            clip, begins = tokenizer.shift(clip, done - start).to(clip), start
        window = replace(batch.window(start, done, stop), latents=clip)
        with autocast():
            part = model.predict(window, sampler=sampler, generator=generator)
        part.cache = None
        clip, done = torch.cat([clip, part.latents], 1), stop
        yield part, clip
