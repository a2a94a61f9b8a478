"""Rollouts beyond the window, of a tokenizer whose latents mean nothing outside their clip."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hwm.evaluate.camera import decode
from hwm.evaluate.rollout import rollout_clips
from hwm.models.base import WorldModel
from hwm.models.flow_hwm import FlowHWM
from hwm.tokenizers.pixels import Pixels
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec, Prediction, Tokenizer


class Causal(Tokenizer):
    """Two frames a step after the first, told as differences from the clip's first frame, by a measure of its own."""

    size, id = (2, 2), "causal"
    latent = LatentSpec((2, 2), channels=6, stride=2)
    shifts = 0

    def encode(self, video_BFCHW: Tensor) -> Tensor:
        first = video_BFCHW[:, :1]
        rest = (video_BFCHW[:, 1:] - first) * (1 + first.mean((2, 3, 4), keepdim=True))
        return torch.cat([torch.cat([first, first], 2), rest.unflatten(1, (-1, 2)).flatten(2, 3)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        first = latents[:, :1, :3]
        rest = latents[:, 1:].unflatten(2, (2, 3)).flatten(1, 2) / (1 + first.mean((2, 3, 4), keepdim=True))
        return torch.cat([first, first + rest], 1)

    def shift(self, latents: Tensor, keep: int) -> Tensor:
        self.shifts += 1
        return self.encode(self.decode(latents)[:, -self.latent.frames(keep) :])


class Steady(WorldModel, name="steady-for-tests"):
    """Each frame is the one before it plus the action that leads to its step."""

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        past: int = 3

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(()), {}

    def predict(self, batch: Batch, *, sampler=None, logits=False, cache=None, generator=None) -> Prediction:
        tokenizer = Causal()
        frames = tokenizer.decode(batch.latents)
        for t in range(batch.latents.shape[1], batch.actions.shape[1]):
            for k in range(2):
                frames = torch.cat([frames, frames[:, -1:] + batch.actions[:, t, k, 0].view(-1, 1, 1, 1, 1)], 1)
        return Prediction(tokenizer.encode(frames)[:, batch.latents.shape[1] :])


@pytest.mark.parametrize(("horizon", "window_stride"), [(1, 1), (2, 1), (1, 2)])
def test_the_window_is_encoded_anew_and_decoded_with_what_was_predicted(horizon: int, window_stride: int) -> None:
    spec = DataSpec(Causal.latent, {"arm": ActionSpec(2, ("rise",), (0.0,), (1.0,))})
    model, tokenizer = Steady.Config(horizon=horizon, window_stride=window_stride).build(spec), Causal()
    g = torch.Generator().manual_seed(0)
    frames, actions = torch.rand(2, 5, 3, 2, 2, generator=g), torch.randn(2, 9, 2, 1, generator=g)
    rises = actions[:, 3:].flatten(1).cumsum(1)[:, :, None, None, None]
    want = frames[:, -1:] + rises
    batch = Batch(tokenizer.encode(frames), actions, "arm")
    prediction, pictures = rollout_clips(model, tokenizer, batch)
    torch.testing.assert_close(pictures, want, atol=1e-4, rtol=1e-4)
    assert prediction.latents.shape == (2, 6, 6, 2, 2)
    assert tokenizer.shifts > 1
    sliced = model.rollout(batch).latents
    naive = tokenizer.decode(torch.cat([batch.latents, sliced], 1))[:, 5:]
    assert (naive - want).abs().max() > 0.1, "a slice will not do"


def test_for_single_frames_it_is_the_rollout() -> None:
    tokenizer = Pixels((4, 4))
    spec = DataSpec(tokenizer.latent, {"arm": ActionSpec(1, ("rise",), (0.0,), (1.0,))})
    torch.manual_seed(0)
    model = FlowHWM.tiny().build(spec)
    batch = Batch(torch.rand(2, 2, 3, 4, 4), torch.randn(2, 6, 1, 1), "arm")
    prediction, pictures = rollout_clips(model, tokenizer, batch, generator=torch.Generator().manual_seed(0))
    want = model.rollout(batch, generator=torch.Generator().manual_seed(0)).latents
    torch.testing.assert_close(prediction.latents, want)
    torch.testing.assert_close(pictures, decode(tokenizer, want))
