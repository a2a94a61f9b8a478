"""Pictures as their own latents: what tokenizers are trained on, and what models of small pictures read."""

from __future__ import annotations

import torch
from torch import Tensor

from hwm.types import LatentSpec, Tokenizer


class Pixels(Tokenizer):
    """The identity: latents are the pictures themselves. What a tokenizer is trained on."""

    stored = "uint8"

    def __init__(self, size: tuple[int, int] = (128, 128)) -> None:
        self.size = size
        self.latent = LatentSpec(grid=size, channels=3)
        self.id = f"pixels-{size[0]}x{size[1]}"

    def encode(self, video_BFCHW: Tensor) -> Tensor:
        return video_BFCHW

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(0, 1).to(torch.float32)
