"""Predictions of clips and their pictures, and the truth that they are compared with.

Shapes: B clips, T steps of prompt and horizon, F frames of them all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.devices import runtime_of, synchronize
from hwm.evaluate.camera import camera_video, decode, future
from hwm.evaluate.rollout import by_clips, rollout_clips
from hwm.evaluate.scenarios import SCENARIOS
from hwm.evaluate.views import Cut
from hwm.models.base import WorldModel
from hwm.types import Batch, Prediction, Tokenizer


@contextmanager
def judged(model: WorldModel) -> Iterator[None]:
    """The model in evaluation mode, without gradients; afterwards in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


class Truth:
    """A batch of clips with the pictures that predictions are compared with, computed once for all scenarios.

    Attributes:
        indices: (B,) which windows these are.
        batch: latents and actions of all T steps.
        camera, reconstruction: (B, F, 3, H, W) in [0, 1]; without a camera they are the same.
        future, rebuilt: the same of the steps to predict, step by step: (B, T - prompt, stride, 3, H, W).
        copies: by baseline, the last frame of the prompt, to be repeated: (B, 1, 1, 3, H, W).
    """

    def __init__(
        self, indices: np.ndarray, batch: Batch, camera: Tensor, reconstruction: Tensor, prompt: int, stride: int
    ) -> None:
        last = (prompt - 1) * stride
        self.indices, self.batch, self.camera, self.reconstruction = indices, batch, camera, reconstruction
        self.future, self.rebuilt = future(camera, prompt, stride), future(reconstruction, prompt, stride)
        self.copies = {
            "copy": camera[:, None, last : last + 1],
            "copy_reconstruction": reconstruction[:, None, last : last + 1],
        }

    def part(self, cut: Cut) -> Truth:
        """The same of a part of each picture."""
        part = copy(self)
        part.camera, part.reconstruction = cut(self.camera), cut(self.reconstruction)
        part.future, part.rebuilt = cut(self.future), cut(self.rebuilt)
        part.copies = {name: cut(pictures) for name, pictures in self.copies.items()}
        return part


class Predictor:
    """A model and a tokenizer that predict pictures of clips.

    Args:
        sampler: of the model; None is its own.
        seed: what is drawn depends on it and on the clips alone.
        draws: predictions whose pictures are averaged.
        dtype: as of `EvaluateConfig`.
    """

    def __init__(
        self,
        model: WorldModel,
        tokenizer: Tokenizer,
        clips: Clips,
        prompt: int,
        horizon: int,
        *,
        sampler: Any,
        seed: int,
        draws: int,
        dtype: str | torch.dtype,
    ) -> None:
        self.model, self.tokenizer, self.clips = model, tokenizer, clips
        self.prompt, self.steps = prompt, prompt + horizon
        self.sampler, self.seed, self.draws = sampler, seed, draws
        self.stride = tokenizer.latent.stride
        self.runtime = runtime_of(model, dtype)
        self.device = self.runtime.device
        self.apart: bool | None = None  # whether steps decode apart from those before them; found out by trying

    def batch(self, indices: np.ndarray) -> Batch:
        return self.clips.batch(indices).window(0, self.steps, self.steps)

    def truth(self, indices: np.ndarray) -> Truth:
        batch = self.batch(indices).to(self.device)
        reconstruction = decode(self.tokenizer, batch.latents).to(self.device)
        if self.apart is None:
            self.apart = self.decodes_apart(batch.latents[:1])
        camera = reconstruction
        if self.clips.store.has_video:
            camera = camera_video(self.clips, indices, self.steps, self.tokenizer.size).to(self.device)
        return Truth(indices, batch, camera, reconstruction, self.prompt, self.stride)

    def pictured(
        self, scenario: str, truth: Truth, batch: Batch, first: int, logits: bool
    ) -> tuple[Prediction, Tensor, float]:
        """The first of the predictions drawn, the mean of their pictures, and seconds a step and clip of all."""
        prediction, video, took = self.drawn(scenario, truth, batch, first, 0, logits)
        for draw in range(1, self.draws):
            _, other, more = self.drawn(scenario, truth, batch, first, draw, logits=False)
            video, took = video + other, took + more
        return prediction, video / self.draws, took

    def drawn(
        self, scenario: str, truth: Truth, batch: Batch, first: int, draw: int, logits: bool
    ) -> tuple[Prediction, Tensor, float]:
        """One prediction, its pictures, and seconds a step and clip."""
        if scenario == "autoregressive" and by_clips(self.model, self.tokenizer, self.steps):
            return self.drawn_by_clips(truth, batch, first, draw)
        prediction, took = self.predict(scenario, batch, first, draw, logits)
        return prediction, self.video(truth, prediction), took

    def drawn_by_clips(self, truth: Truth, batch: Batch, first: int, draw: int) -> tuple[Prediction, Tensor, float]:
        """As `drawn`, where latents depend on their clip and the window moves on; the time is that of decoding too."""
        start = time.perf_counter()
        known = batch.window(0, self.prompt, self.steps)
        prediction, video = rollout_clips(
            self.model, self.tokenizer, known, sampler=self.sampler, generator=self.generator(first, draw),
            autocast=self.runtime.autocast,
        )  # fmt: skip
        took = (time.perf_counter() - start) / (len(batch.latents) * (self.steps - self.prompt))
        context = truth.reconstruction[:, : self.tokenizer.latent.frames(self.prompt)]
        return prediction, torch.cat([context, video.to(self.device)], 1), took

    def predict(self, scenario: str, batch: Batch, first: int, draw: int, logits: bool) -> tuple[Prediction, float]:
        """A prediction, always with the same random numbers for the same clips, and its seconds a step and clip."""
        generator = self.generator(first, draw)
        synchronize(self.device)
        start = time.perf_counter()
        with self.runtime.autocast():
            prediction = SCENARIOS[scenario](
                self.model, batch, self.prompt, sampler=self.sampler, logits=logits, generator=generator
            )
        synchronize(self.device)
        took = (time.perf_counter() - start) / (len(batch.latents) * (self.steps - self.prompt))
        self.runtime.check(prediction.latents)
        self.runtime.check(prediction.logits)
        return prediction, took

    def generator(self, first: int, draw: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + draw * 7_919_001 + first)

    def video(self, truth: Truth, prediction: Prediction) -> Tensor:
        """Context and prediction as pictures, (B, F, 3, H, W).

        Tokenizers may be causal over a clip, so the context is decoded along, unless it makes no difference.
        """
        if self.apart:
            context = truth.reconstruction[:, : self.prompt]
            return torch.cat([context, decode(self.tokenizer, prediction.latents).to(self.device)], 1)
        latents = torch.cat([truth.batch.latents[:, : self.prompt], prediction.latents], 1)
        return decode(self.tokenizer, latents).to(self.device)

    def decodes_apart(self, latents: Tensor) -> bool:
        """Whether the tokenizer shows steps alike without context and after another context, here one upside down."""
        if self.stride > 1:
            return False
        context, rest = latents[:, : self.prompt].flip(-2), latents[:, self.prompt :]
        after = decode(self.tokenizer, torch.cat([context, rest], 1))[:, self.prompt :]
        return torch.allclose(decode(self.tokenizer, rest), after, atol=1e-4)
