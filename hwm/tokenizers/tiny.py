"""`tiny`: a small FSQ image tokenizer of our own, trained on pictures in minutes on a CPU.

Its quantiser (`hwm.tokenizers.fsq`) and its levels 8, 8, 8, 5, 5, 5 (64,000 ids) are those of the Cosmos tokenizers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.config import Config, Trainable
from hwm.tokenizers.base import Tokenizer
from hwm.tokenizers.fsq import FSQ as FSQ
from hwm.types import Batch, DataSpec, HwmError, LatentSpec


class Residual(nn.Module):
    """Two 3x3 convolutions with group norms, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class TinyTokenizer(Trainable, Tokenizer, name="tiny"):
    """Pictures (3, size, size) <-> (size/down, size/down) token ids, each frame by itself."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        """
        Attributes:
            levels: FSQ levels of a cell.
            width: channels at a quarter of the resolution; doubled at each halving after it.
            down: side of a cell in pixels, a power of two of at least 8.
            squared: weight of the squared error beside the absolute error.
        """

        levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
        width: int = 48
        down: int = 16
        squared: float = 4.0

    config: Config

    @classmethod
    def tiny(cls) -> Config:
        """A config for tests and dry runs."""
        return cls.Config(levels=(5, 5), width=8, down=8)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        size, down = spec.latent.grid, config.down
        if down < 8 or down & (down - 1) or config.width % 8 or min(config.levels, default=0) < 2:
            raise HwmError(
                f"down={down} must be a power of two of at least 8, width={config.width} a multiple of 8, and each of "
                f"levels={config.levels} at least 2"
            )
        if spec.latent.channels != 3 or size[0] % down or size[1] % down:
            raise HwmError(
                f"the tiny tokenizer is trained on pictures whose sides are multiples of {down}, got {spec.latent}"
            )
        self.size, self.id = size, "tiny"
        self.latent = LatentSpec(
            (size[0] // down, size[1] // down), math.prod(config.levels), levels=tuple(config.levels)
        )
        widths = [config.width * 2**i for i in range(int(math.log2(down // 4)) + 1)]
        first, last, codes = widths[0], widths[-1], len(config.levels)
        encoder: list[nn.Module] = [nn.PixelUnshuffle(4), nn.Conv2d(48, first, 3, padding=1), Residual(first)]
        for a, b in pairwise(widths):
            encoder += [nn.Conv2d(a, b, 4, 2, 1), Residual(b)]
        encoder += [Residual(last), nn.GroupNorm(8, last), nn.SiLU(), nn.Conv2d(last, codes, 1)]
        decoder: list[nn.Module] = [nn.Conv2d(codes, last, 3, padding=1), Residual(last), Residual(last)]
        for b, a in pairwise(widths[::-1]):
            decoder += [nn.Conv2d(b, 4 * a, 1), nn.PixelShuffle(2), Residual(a)]
        decoder += [
            Residual(first),
            nn.GroupNorm(8, first),
            nn.SiLU(),
            nn.Conv2d(first, 48, 3, padding=1),
            nn.PixelShuffle(4),
        ]
        self.encoder, self.decoder, self.fsq = (
            nn.Sequential(*encoder),
            nn.Sequential(*decoder),
            FSQ(tuple(config.levels)),
        )
        # convolutions on CPUs and tensor cores want channels last; it changes no value
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Absolute plus squared error of the reconstruction, on pictures in [0, 1]."""
        x = _flat(batch.latents) * 2 - 1
        codes = self.fsq(self.encoder(x))
        y = self.decoder(codes).float()
        squared = (y - x).square()
        loss = (y - x).abs().mean() + self.config.squared * squared.mean()
        with torch.no_grad():
            psnr = -10 * torch.log10((squared / 4).mean((1, 2, 3)).clamp_min(1e-8)).mean()
        return loss, {"psnr": psnr}

    @torch.inference_mode()
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        if video_BFCHW.ndim != 5 or tuple(video_BFCHW.shape[2:]) != (3, *self.size):
            raise HwmError(
                f"this tokenizer takes video of shape (B, F, 3, {self.size[0]}, {self.size[1]}), "
                f"got {tuple(video_BFCHW.shape)}"
            )
        x = _flat(video_BFCHW).to(next(self.parameters()).dtype) * 2 - 1
        ids = self.fsq.ids(self.fsq(self.encoder(x)))
        return ids.unflatten(0, tuple(video_BFCHW.shape[:2]))

    @torch.inference_mode()
    def decode(self, latents_BTHW: Tensor) -> Tensor:
        if (
            latents_BTHW.ndim != 4
            or tuple(latents_BTHW.shape[2:]) != self.latent.grid
            or latents_BTHW.is_floating_point()
        ):
            raise HwmError(
                f"this tokenizer takes integer ids of shape (B, T, {self.latent.grid[0]}, {self.latent.grid[1]}), "
                f"got {latents_BTHW.dtype} {tuple(latents_BTHW.shape)}"
            )
        vocab = math.prod(self.config.levels)
        if latents_BTHW.numel() and (int(latents_BTHW.min()) < 0 or int(latents_BTHW.max()) >= vocab):
            raise HwmError(f"token ids must be in 0..{vocab - 1}")
        codes = self.fsq.codes(latents_BTHW.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        y = self.decoder(codes.to(next(self.parameters()).dtype)).float()
        return ((y + 1) / 2).clamp(0, 1).unflatten(0, tuple(latents_BTHW.shape[:2]))


def _flat(video_BFCHW: Tensor) -> Tensor:
    return video_BFCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
