"""MAGVIT2 as used by the 1X World Model Challenge: a convolutional image tokenizer without a codebook table.

Each cell has 18 channels, of which only the signs are kept: 2^18 = 262,144 ids. Lookup-free quantisation is from
MAGVIT-v2 (arXiv 2310.05737), the architecture from Open-MAGVIT2 (arXiv 2409.04410) and github.com/1x-technologies/1xgpt
(Apache-2.0), whose names of weights are kept here.

Shape suffixes: B batch, F frames, N = B*F pictures, C channels, H W picture or grid, K bits of an id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.config import Config, Trainable
from hwm.errors import HwmError
from hwm.tokenizers.checks import check_sides
from hwm.types import Batch, DataSpec, LatentSpec, Tokenizer, check_ids, join_digits, split_digits

# What goes through the network at once: four pictures of 256 x 256, which take 128 MiB a layer at full resolution.
PIXELS_AT_ONCE = 4 * 256 * 256


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    """Norm, swish and a 3x3 convolution, twice, added to the input (through a 1x1 convolution if widths differ)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(before), norm(after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Upsample(nn.Module):
    """A 3x3 convolution to four times the channels, which become 2x2 pixels: channel (dy*2 + dx) * C + c."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x_NHWyxC = self.conv1(x).permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))
        return x_NHWyxC.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def residuals(before: int, after: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(before if i == 0 else after, after) for i in range(count)))


class Down(nn.Module):
    """The blocks of one resolution, and the way to half of it (but for the last level)."""

    def __init__(self, before: int, after: int, blocks: int, last: bool) -> None:
        super().__init__()
        self.block = residuals(before, after, blocks)
        self.downsample = nn.Identity() if last else nn.Conv2d(after, after, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.block(x))


class Up(nn.Module):
    """The blocks of one resolution, and the way to twice of it (but for the first level)."""

    def __init__(self, before: int, after: int, blocks: int, first: bool) -> None:
        super().__init__()
        self.block = residuals(before, after, blocks)
        self.upsample = nn.Identity() if first else Upsample(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.block(x))


class Encoder(nn.Module):
    """(N, 3, H, W) in [-1, 1] -> (N, K, H / 2^(levels-1), W / 2^(levels-1))."""

    def __init__(self, config: MAGVIT2.Config) -> None:
        super().__init__()
        widths, count = config.widths, len(config.widths)
        pairs = enumerate(pairwise((config.base, *widths)))
        self.conv_in = nn.Conv2d(3, config.base, 3, padding=1, bias=False)
        self.down = nn.Sequential(*(Down(a, b, config.blocks, i == count - 1) for i, (a, b) in pairs))
        self.mid_block = residuals(widths[-1], widths[-1], config.blocks)
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], config.bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid_block(self.down(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """(N, K, h, w) signs -> (N, 3, h * 2^(levels-1), w * 2^(levels-1)), in about [-1, 1].

    Levels are numbered from the finest, as in the encoder, and run from the last to the first.
    """

    def __init__(self, config: MAGVIT2.Config) -> None:
        super().__init__()
        widths = config.widths
        pairs = enumerate(pairwise((*widths, widths[-1])))
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid_block = residuals(widths[-1], widths[-1], config.blocks)
        self.up = nn.ModuleList(Up(b, a, config.blocks, i == 0) for i, (a, b) in pairs)
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for level in reversed(list(self.up)):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class MAGVIT2(Trainable, Tokenizer, name="magvit2"):
    """Pictures of 256 x 256 <-> 16 x 16 ids out of 262,144, each frame by itself.

    Bit k of an id is 1 where channel k is positive: the least significant bit is channel 0. That is the order of the
    published token data. (The `encode` of the released code counts the other way round, and its viewer turns the
    channels over; ids of that encoder mean nothing to this decoder, nor to the published models.)

    Weights come from a published checkpoint (`hwm convert magvit2`); there is no loss here to train them with.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        """The defaults are those of the published checkpoint.

        Attributes:
            bits: channels of a cell.
            factors: digits that an id is read as by models: 2 of 512 values. The first has the lowest bits.
            base: channels before the first level.
            multipliers: of `base`, by level; each level after the first halves the resolution.
            blocks: residual blocks a level, and in the middle.
        """

        bits: int = 18
        factors: int = 2
        base: int = 128
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
        blocks: int = 2

        @property
        def widths(self) -> tuple[int, ...]:
            return tuple(self.base * m for m in self.multipliers)

    config: Config
    published = "magvit2"

    @classmethod
    def tiny(cls) -> Config:
        """A config for tests and dry runs."""
        return cls.Config(bits=6, base=32, multipliers=(1, 1), blocks=1)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, size = config, spec.latent.grid
        widths = (c.base, *c.widths)
        if not c.multipliers or any(width % 32 or width < 32 for width in widths) or min(c.blocks, c.bits) < 1:
            raise HwmError(f"{c}: widths must be multiples of 32, and there must be levels, blocks and bits")
        if c.bits > 62 or c.factors < 1 or c.bits % c.factors:
            raise HwmError(f"{c}: at most 62 bits fit an id, and they must divide among the factors")
        down = 2 ** (len(c.multipliers) - 1)
        check_sides(spec.latent, down)
        self.size, self.id = size, "magvit2"
        level = 2 ** (c.bits // c.factors)
        self.latent = LatentSpec((size[0] // down, size[1] // down), 2**c.bits, levels=(level,) * c.factors)
        self.encoder, self.decoder = Encoder(c), Decoder(c)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv_in.weight.dtype

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        raise HwmError(
            "MAGVIT2 is not trained here: its weights come from a published checkpoint (hwm convert magvit2)"
        )

    def quantise(self, z_NKHW: Tensor) -> Tensor:
        """Channels -> ids (N, H, W): what counts is which are positive."""
        return join_digits((z_NKHW > 0).long().movedim(1, -1), (2,) * self.config.bits)

    def codes(self, ids_NHW: Tensor) -> Tensor:
        """Ids (N, H, W) -> signs (N, K, H, W), +1 or -1, in the type of the weights."""
        return (split_digits(ids_NHW, (2,) * self.config.bits).movedim(-1, 1) * 2 - 1).to(self.dtype)

    @torch.inference_mode()
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        if video_BFCHW.ndim != 5 or tuple(video_BFCHW.shape[2:]) != (3, *self.size):
            raise HwmError(
                f"this tokenizer takes video of shape (B, F, 3, {self.size[0]}, {self.size[1]}), "
                f"got {tuple(video_BFCHW.shape)}"
            )
        return self._in_parts(lambda x: self.quantise(self.encoder(_last(x.to(self.dtype) * 2 - 1))), video_BFCHW)

    @torch.inference_mode()
    def decode(self, latents_BTHW: Tensor) -> Tensor:
        grid, vocab = self.latent.grid, self.latent.vocab or 0
        if latents_BTHW.ndim != 4 or tuple(latents_BTHW.shape[2:]) != grid or latents_BTHW.is_floating_point():
            raise HwmError(
                f"this tokenizer takes integer ids of shape (B, T, {grid[0]}, {grid[1]}), "
                f"got {latents_BTHW.dtype} {tuple(latents_BTHW.shape)}"
            )
        check_ids(latents_BTHW, vocab)
        return self._in_parts(
            lambda ids: ((self.decoder(_last(self.codes(ids.long()))).float() + 1) / 2).clamp(0, 1), latents_BTHW
        )

    def _in_parts(self, fn: Callable[[Tensor], Tensor], x_BF: Tensor) -> Tensor:
        """Apply a function of pictures (N, ...) to (B, F, ...), some at a time."""
        some = max(1, PIXELS_AT_ONCE // (self.size[0] * self.size[1]))
        return torch.cat([fn(part) for part in x_BF.flatten(0, 1).split(some)]).unflatten(0, tuple(x_BF.shape[:2]))


def _last(x: Tensor) -> Tensor:
    """Convolutions on CPUs and tensor cores want channels last; it changes no value."""
    return x.contiguous(memory_format=torch.channels_last)
