"""Small image tokenizers of our own, trained on pictures in minutes on a CPU: `tiny` (ids) and `tiny_continuous`.

The quantiser of `tiny` (`hwm.tokenizers.fsq`) and its levels 8, 8, 8, 5, 5, 5 (64,000 ids) are those of the Cosmos
tokenizers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.config import Config, Trainable
from hwm.errors import HwmError
from hwm.nn.moving import camera_flow, moved, random_camera
from hwm.objectives.reconstruction import lite_distance
from hwm.tokenizers.checks import check_sides
from hwm.tokenizers.fsq import FSQ as FSQ
from hwm.types import Batch, DataSpec, LatentSpec, Tokenizer, check_ids


class Residual(nn.Module):
    """Two 3x3 convolutions with group norms, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Autoencoder(Trainable, Tokenizer):
    """Pictures (3, size, size) <-> (size/down, size/down) cells, frame by frame; what a cell is, subclasses say."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        """
        Attributes:
            width: channels at a quarter of the resolution; doubled at each halving after it.
            down: side of a cell in pixels, a power of two of at least 4.
            squared: weight of the squared error beside the absolute error.
            decoder_width: the same as `width` of the decoder alone; 0 makes it as wide as the encoder.
            perceptual: weight of the perceptual distance by EfficientNet-Lite0 (`hwm.networks.efficientnet`; its
                weights come with the extra `eval`, and are needed in training alone); 0 leaves it out.
            scales: of that distance, 1 to 7, fine to coarse.
            perceptual_share: of the pictures of a batch that it is taken of.
            encoder_of: train the decoder alone, on the latents of the tokenizer that stores record as this
                (NAME@FINGERPRINT), which has to be begun from (`--init`). The result answers to that name.
        """

        in_validation: ClassVar[Mapping[str, Any]] = {"perceptual_share": 1.0}

        width: int = 48
        down: int = 16
        squared: float = 4.0
        decoder_width: int = 0
        perceptual: float = 0.0
        scales: int = 4
        perceptual_share: float = 0.5
        encoder_of: str = ""

        def __post_init__(self) -> None:
            if min(self.perceptual, self.squared) < 0 or not 0 < self.perceptual_share <= 1:
                raise HwmError(
                    f"the weights squared={self.squared} and perceptual={self.perceptual} are not negative, and "
                    f"perceptual_share={self.perceptual_share} is more than 0 and at most 1"
                )
            if self.encoder_of and "@" not in self.encoder_of:
                raise HwmError(f"encoder_of={self.encoder_of!r} is no identity: write NAME@FINGERPRINT, as stores do")

    config: Any

    def __init__(self, config: Any, spec: DataSpec, codes: int) -> None:
        super().__init__(config, spec)
        size, down = spec.latent.grid, config.down
        if down < 4 or down & (down - 1) or config.width % 8 or config.decoder_width % 8:
            raise HwmError(
                f"down={down} must be a power of two of at least 4, and width={config.width} and "
                f"decoder_width={config.decoder_width} multiples of 8"
            )
        check_sides(spec.latent, down)
        self.size, self.grid = size, (size[0] // down, size[1] // down)
        self.id, self.keeps = config.encoder_of or self.name, config.encoder_of
        halvings = int(math.log2(down // 4)) + 1
        widths = [config.width * 2**i for i in range(halvings)]
        first, last = widths[0], widths[-1]
        encoder: list[nn.Module] = [nn.PixelUnshuffle(4), nn.Conv2d(48, first, 3, padding=1), Residual(first)]
        for a, b in pairwise(widths):
            encoder += [nn.Conv2d(a, b, 4, 2, 1), Residual(b)]
        encoder += [Residual(last), nn.GroupNorm(8, last), nn.SiLU(), nn.Conv2d(last, codes, 1)]
        widths = [(config.decoder_width or config.width) * 2**i for i in range(halvings)]
        first, last = widths[0], widths[-1]
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
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        # weights of another number of codes to begin from: what makes codes and what reads them begins at random
        self.fresh = (  # type: ignore[misc]
            *(() if config.encoder_of else (f"encoder.{len(encoder) - 1}.",)),
            "decoder." if config.decoder_width else "decoder.0.",
        )
        # convolutions on CPUs and tensor cores want channels last; it changes no value
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @abstractmethod
    def codes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder put out (N, codes, H, W) -> what the decoder sees in training, and a loss of its own."""

    def seen_moved(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder put out, and the pictures that shall be made of it."""
        return z, x

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Absolute and squared error and perceptual distance of reconstructed pictures in [0, 1], and what codes cost.

        Raises:
            HwmError: there is a perceptual distance, and its weights are not installed.
        """
        c, x = self.config, _flat(batch.latents) * 2 - 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and not c.encoder_of):
            z = self.encoder(x)
        z, x = self.seen_moved(z, x)
        codes, cost = self.codes(z)
        y = self.decoder(codes).float()
        squared = (y - x).square()
        loss = (y - x).abs().mean() + c.squared * squared.mean() + cost
        values = {"psnr": -10 * torch.log10((squared / 4).mean((1, 2, 3)).clamp_min(1e-8)).mean()}
        if c.perceptual:
            some = math.ceil(c.perceptual_share * len(x))
            values["perceptual"] = lite_distance(y[:some], x[:some], c.scales)
            loss = loss + c.perceptual * values["perceptual"]
        return loss, {k: v.detach() for k, v in values.items()}

    def encoded(self, video_BFCHW: Tensor) -> Tensor:
        """What the encoder puts out for each frame, (B * F, codes, H, W)."""
        if video_BFCHW.ndim != 5 or tuple(video_BFCHW.shape[2:]) != (3, *self.size):
            raise HwmError(
                f"this tokenizer takes video of shape (B, F, 3, {self.size[0]}, {self.size[1]}), "
                f"got {tuple(video_BFCHW.shape)}"
            )
        z: Tensor = self.encoder(_flat(video_BFCHW).to(next(self.parameters()).dtype) * 2 - 1)
        return z

    def decoded(self, codes_NCHW: Tensor) -> Tensor:
        """Pictures in [0, 1] (N, 3, height, width)."""
        codes = codes_NCHW.contiguous(memory_format=torch.channels_last)
        y: Tensor = self.decoder(codes.to(next(self.parameters()).dtype)).float()
        return ((y + 1) / 2).clamp(0, 1)


class TinyTokenizer(Autoencoder, name="tiny"):
    """Pictures <-> token ids of a mixed-radix code (FSQ)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Autoencoder.Config):
        """
        Attributes:
            levels: FSQ levels of a cell.
        """

        levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)

    @classmethod
    def tiny(cls) -> Config:
        """A config for tests and dry runs."""
        return cls.Config(levels=(5, 5), width=8, down=8)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        if min(config.levels, default=0) < 2:
            raise HwmError(f"each of levels={config.levels} must be at least 2")
        super().__init__(config, spec, len(config.levels))
        self.fsq = FSQ(config.levels)
        self.latent = LatentSpec(self.grid, math.prod(config.levels), levels=config.levels)

    def codes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.fsq(z), z.new_zeros(())

    @torch.inference_mode()
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        ids = self.fsq.ids(self.fsq(self.encoded(video_BFCHW)))
        return ids.unflatten(0, tuple(video_BFCHW.shape[:2]))

    @torch.inference_mode()
    def decode(self, latents_BTHW: Tensor) -> Tensor:
        if latents_BTHW.ndim != 4 or tuple(latents_BTHW.shape[2:]) != self.grid or latents_BTHW.is_floating_point():
            raise HwmError(
                f"this tokenizer takes integer ids of shape (B, T, {self.grid[0]}, {self.grid[1]}), "
                f"got {latents_BTHW.dtype} {tuple(latents_BTHW.shape)}"
            )
        check_ids(latents_BTHW, self.fsq.vocab)
        return self.decoded(self.fsq.codes(latents_BTHW.flatten(0, 1))).unflatten(0, tuple(latents_BTHW.shape[:2]))


class TinyContinuous(Autoencoder, name="tiny_continuous"):
    """Pictures <-> a few numbers a cell, of about unit size, that bear some noise: what a flow makes is never exact."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Autoencoder.Config):
        """
        Attributes:
            channels: numbers a cell.
            noise: standard deviation of what is added to them in training.
            shrink: weight of their mean square in the loss, which keeps them from outgrowing the noise.
            moving: share of the pictures of a batch whose numbers are moved by up to a cell, and zoomed by up to a
                fifth, and have to show the picture moved alike. The latents of a picture that moves as the camera turns
                are then nearly those of before, moved, which a world model learns sooner (EQ-VAE, Kouzelis et al.
                2025, arXiv 2502.09509, has other movements).
        """

        in_validation: ClassVar[Mapping[str, Any]] = {"perceptual_share": 1.0, "moving": 0.0}

        channels: int = 8
        noise: float = 0.1
        shrink: float = 1e-3
        moving: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.moving <= 1:
                raise HwmError(f"moving={self.moving} is a share, from 0 to 1")

    @classmethod
    def tiny(cls) -> Config:
        """A config for tests and dry runs."""
        return cls.Config(channels=2, width=8, down=8)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec, config.channels)
        self.latent = LatentSpec(self.grid, channels=config.channels)

    def seen_moved(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        count = math.ceil(self.config.moving * len(x))
        if not count:
            return z, x
        camera = random_camera(count, 1 / max(self.grid), 1.2, x.device)
        both = (
            torch.cat([moved(t[:count], camera_flow(*camera, (t.shape[2], t.shape[3]))).to(t.dtype), t[count:]])
            for t in (z, x)
        )
        z, x = (t.contiguous(memory_format=torch.channels_last) for t in both)
        return z, x

    def codes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        noise = self.config.noise if self.training else 0.0
        return z + noise * torch.randn_like(z), self.config.shrink * z.float().square().mean()

    @torch.inference_mode()
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        return self.encoded(video_BFCHW).float().contiguous().unflatten(0, tuple(video_BFCHW.shape[:2]))

    @torch.inference_mode()
    def decode(self, latents_BTCHW: Tensor) -> Tensor:
        want = (self.config.channels, *self.grid)
        if latents_BTCHW.ndim != 5 or tuple(latents_BTCHW.shape[2:]) != want or not latents_BTCHW.is_floating_point():
            raise HwmError(
                f"this tokenizer takes values of shape (B, T, {', '.join(map(str, want))}), "
                f"got {latents_BTCHW.dtype} {tuple(latents_BTCHW.shape)}"
            )
        return self.decoded(latents_BTCHW.flatten(0, 1)).unflatten(0, tuple(latents_BTCHW.shape[:2]))


def _flat(video_BFCHW: Tensor) -> Tensor:
    return video_BFCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
