"""The Cosmos tokenizers: video and pictures as ids (D) or continuous latents (C), 8 or 16 times smaller a side.

Sources: as of `hwm.tokenizers.cosmos_video`, which holds the networks for video; those for pictures are in
`hwm.tokenizers.cosmos_image`.

Shape suffixes: B batch, F frames, T latent step, N = B*T pictures, C channels, H W picture or grid.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hwm.config import Config, Trainable
from hwm.errors import HwmError
from hwm.objectives.reconstruction import Adversary, LossWeights, reconstruction_loss
from hwm.tokenizers import cosmos_image, cosmos_video
from hwm.tokenizers.checks import check_latents, check_sides, check_video
from hwm.tokenizers.cosmos_video import Past
from hwm.tokenizers.fsq import FSQ
from hwm.types import Batch, DataSpec, LatentSpec, Tokenizer

# What goes through the network at once: 33 frames of 256 x 256, whose finest layers take 36 MiB each in float32.
PIXELS_AT_ONCE = 33 * 256 * 256


class Unquantised(nn.Module):
    """In the place of an `FSQ`: the codes are the latents, but for the order of time and channels."""

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        return z_BCTHW

    def ids(self, codes_BCTHW: Tensor) -> Tensor:
        return codes_BCTHW.transpose(1, 2)

    def codes(self, latents_BTCHW: Tensor) -> Tensor:
        return latents_BTCHW.transpose(1, 2)


class Cosmos(Trainable, Tokenizer):
    """What the tokenizers of video and of pictures have in common.

    A subclass gives a network: `encoder`, `quant_conv`, `post_quant_conv`, `decoder`.
    """

    fresh = ("adversary",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        """
        Attributes:
            space: pixels that a cell holds, a side.
            patch: pixels (and frames, of video) that wavelets join before the network, a side.
            levels: FSQ levels of a cell; empty for continuous latents.
            channels: of continuous latents.
            z: channels between encoder and quantiser.
            base: channels before the first level.
            multipliers: of `base`, by level.
            decoder_multipliers: the same of the decoder's levels, where they are others (2, 4 in the published
                CV4x8x8); empty: those of the encoder.
            blocks: residual blocks of a level of the encoder; the decoder has one more.
            loss_weights: what the training loss of reconstructions is made of.
        """

        space: int = 8
        patch: int = 4
        levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
        channels: int = 16
        z: int = 16
        base: int = 128
        multipliers: tuple[int, ...] = (2, 4, 4)
        decoder_multipliers: tuple[int, ...] = ()
        blocks: int = 2
        loss_weights: LossWeights = field(default_factory=LossWeights)
        renamed: ClassVar[Mapping[str, str]] = {"judges": "loss_weights"}

        @property
        def codes(self) -> int:
            """Channels of a cell."""
            return len(self.levels) or self.channels

        @property
        def widths(self) -> tuple[int, ...]:
            """Channels before the encoder's first level, and of each level."""
            return (self.base, *(self.base * m for m in self.multipliers))

        @property
        def decoder_widths(self) -> tuple[int, ...]:
            """The same of the decoder, finest level first."""
            return (self.base, *(self.base * m for m in self.decoder_multipliers or self.multipliers))

        @property
        def frames(self) -> int:
            """Frames that a latent step holds after the first."""
            return 1

        @property
        def variant(self) -> str:
            """As published: D or C, V or I, and how much smaller a video becomes in time, height and width."""
            kind, sides = ("D" if self.levels else "C"), f"{self.space}x{self.space}"
            return f"{kind}V{self.frames}x{sides}" if self.frames > 1 else f"{kind}I{sides}"

    config: Config
    encoder: nn.Module
    decoder: nn.Module
    quant_conv: nn.Module
    post_quant_conv: nn.Module

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, size = config, spec.latent.grid
        for name, ratio in (("space", c.space / c.patch), ("frames a step", c.frames / min(c.patch, c.frames))):
            if ratio < 1 or math.log2(ratio) % 1 or c.patch & (c.patch - 1) or c.patch < 1:
                raise HwmError(f"{c}: {name} must be a power of two times the patch, and the patch a power of two")
        if (
            not c.multipliers
            or min(*c.widths, *c.decoder_widths, c.blocks, c.z, c.codes) < 1
            or min(c.levels, default=2) < 2
        ):
            raise HwmError(f"{c}: there must be levels, blocks and channels, and at least 2 values of an FSQ level")
        check_sides(spec.latent, c.space)
        self.size, self.id = size, f"cosmos-{c.variant.lower()}"
        self.published = self.id
        grid = (size[0] // c.space, size[1] // c.space)
        self.quantizer: FSQ | Unquantised = FSQ(c.levels) if c.levels else Unquantised()
        self.latent = (
            LatentSpec(grid, math.prod(c.levels), stride=c.frames, levels=c.levels)
            if c.levels
            else LatentSpec(grid, channels=c.channels, stride=c.frames)
        )
        self.adversary = Adversary(c.loss_weights) if c.loss_weights.adversarial else None

    @property
    def home(self) -> Tensor:
        """A weight, for its device and type."""
        return next(self.quant_conv.parameters())

    @property
    def steps_at_once(self) -> int:
        """Latent steps whose frames go through the network at once."""
        return max(1, PIXELS_AT_ONCE // (self.size[0] * self.size[1] * self.latent.stride))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What the config's `loss_weights` ask for, of pictures in [0, 1]; each clip goes through in one piece.

        Raises:
            HwmError: pictures of another size, or windows that do not fill whole latent steps.
        """
        check_video(self, batch.latents)
        x_BFCHW = batch.latents.to(self.home) * 2 - 1
        codes_BCTHW = self.quantizer(self.analyse(x_BFCHW, None))
        made_BFCHW = self.synthesise(codes_BCTHW.to(self.home.dtype), None).float()
        return reconstruction_loss(self.config.loss_weights, self.adversary, made_BFCHW, x_BFCHW.float())

    @abstractmethod
    def analyse(self, x_BFCHW: Tensor, past: Past | None) -> Tensor:
        """A piece of video in [-1, 1] -> what is quantised, (B, C, T, H, W)."""

    @abstractmethod
    def synthesise(self, codes_BCTHW: Tensor, past: Past | None) -> Tensor:
        """A piece of quantised codes -> frames (B, F, 3, H, W) in about [-1, 1]."""

    @torch.inference_mode()
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        """Latents of a video in [0, 1], which goes through in pieces where it is long.

        Raises:
            HwmError: another size of pictures, or a number of frames that does not fill whole latent steps.
        """
        check_video(self, video_BFCHW)
        head = self.latent.frames(self.steps_at_once)
        if video_BFCHW.shape[1] <= head:
            return self._encoded(video_BFCHW, None)
        rest = video_BFCHW[:, head:].split(self.steps_at_once * self.latent.stride, 1)
        return torch.cat(list(self.encode_pieces((video_BFCHW[:, :head], *rest))), 1)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Video in [0, 1] of latents, or of the first of them.

        Raises:
            HwmError: latents of another shape, or ids that are not in the vocabulary.
        """
        check_latents(self, latents)
        if latents.shape[1] <= self.steps_at_once:
            return self._decoded(latents, None)
        return torch.cat(list(self.decode_pieces(latents.split(self.steps_at_once, 1))), 1)

    def encode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        past: Past = {}
        for i, video_BFCHW in enumerate(pieces):
            check_video(self, video_BFCHW, first=i == 0)
            yield self._encoded(video_BFCHW, past)

    def decode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        past: Past = {}
        for latents in pieces:
            check_latents(self, latents)
            yield self._decoded(latents, past)

    @torch.inference_mode()
    def _encoded(self, video_BFCHW: Tensor, past: Past | None) -> Tensor:
        return self.quantizer.ids(self.quantizer(self.analyse(video_BFCHW.to(self.home) * 2 - 1, past)))

    @torch.inference_mode()
    def _decoded(self, latents: Tensor, past: Past | None) -> Tensor:
        codes_BCTHW = self.quantizer.codes(latents.to(self.home.device)).to(self.home.dtype)
        return ((self.synthesise(codes_BCTHW, past).float() + 1) / 2).clamp(0, 1)

    def shift(self, latents: Tensor, keep: int) -> Tensor:
        """The last steps decoded, and their last frames encoded again as a clip: its first step holds one frame."""
        if keep >= latents.shape[1] or self.latent.stride == 1:
            return super().shift(latents, keep)
        return self.encode(self.decode(latents)[:, -self.latent.frames(keep) :])


class CosmosVideo(Cosmos, name="cosmos-video"):
    """Video <-> latents that are causal over a clip: the first step holds one frame, each later one `time` frames.

    Latents of a clip's first frames are the first latents of the clip, and latents of its first steps show its first
    frames. Nothing of a later frame is in an earlier step. A clip may be of any length; it goes through in pieces, in
    memory that does not grow with it.

    Weights come from published files (`hwm convert cosmos-tokenizer`), or from training.
    """

    # layers see each other's past, back to the clip's first step
    lookback = sys.maxsize

    @dataclass(frozen=True, kw_only=True)
    class Config(Cosmos.Config):
        """The defaults are those of DV8x8x8.

        Attributes:
            time: frames that a latent step holds after the first.
            legacy: resolution doubles in time at the decoder's first levels, where otherwise at those after it. Which
                it is, names of weights tell, or their file must.
            reach: latent steps that attention over time sees, its own included. In the published networks it sees all;
                their longest clips, of 121 frames, have 16.
        """

        time: int = 8
        legacy: bool = False
        reach: int = 32

        @property
        def frames(self) -> int:
            return self.time

        @property
        def halvings(self) -> tuple[int, int]:
            """How often the network halves the resolution, in space and in time."""
            return (self.space // self.patch).bit_length() - 1, (self.time // self.patch).bit_length() - 1

        @property
        def down(self) -> tuple[tuple[bool, bool], ...]:
            """(space, time) of each level of the encoder: whether its resolution is halved."""
            space, time = self.halvings
            return tuple((i < space, i < time) for i in range(len(self.multipliers)))

        @property
        def up(self) -> tuple[tuple[bool, bool], ...]:
            """(space, time) of each level of the decoder, finest first: whether its resolution is doubled."""
            space, time = self.halvings
            rows = []
            for i in reversed(range(len(self.decoder_widths) - 1)):
                in_time = i < time if self.legacy else 0 < i < time + 1
                rows.append((in_time or (i < space and space > time), in_time))
            return tuple(rows)

        @property
        def doubles_as_it_halves(self) -> bool:
            """Whether there are levels enough to halve the resolution as often as asked, and to double it again."""
            counts = tuple(sum(column) for rows in (self.down, self.up) for column in zip(*rows, strict=True))
            return counts == 2 * self.halvings

    config: Config

    @classmethod
    def tiny(cls) -> Config:
        """A config for tests and dry runs."""
        return cls.Config(base=4, blocks=1, z=8)

    def __init__(self, config: Config, spec: DataSpec) -> None:
        if config.time % config.patch:
            raise HwmError(f"{config}: frames a step ({config.time}) must be a multiple of the patch")
        super().__init__(config, spec)
        c, (space, time) = config, config.halvings
        if config.reach < 1:
            raise HwmError(f"{c}: attention over time must see at least its own step")
        if not c.doubles_as_it_halves:
            raise HwmError(
                f"{c}: {len(c.down)} levels of the encoder and {len(c.up)} of the decoder cannot halve the resolution "
                f"{space} times in space and {time} times in time and double it again"
            )
        self.encoder = cosmos_video.Encoder(c.z, c.patch, c.widths, c.blocks, c.down, c.reach)
        self.decoder = cosmos_video.Decoder(c.z, c.patch, c.decoder_widths, c.blocks, c.up, c.reach)
        self.quant_conv, self.post_quant_conv = cosmos_video.Conv(c.z, c.codes), cosmos_video.Conv(c.codes, c.z)
        # as activations lie; else each convolution would turn its weights over first
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def units(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, cosmos_video.Residual)]

    def analyse(self, x_BFCHW: Tensor, past: Past | None) -> Tensor:
        z_BTHWC: Tensor = self.quant_conv(self.encoder(x_BFCHW, past), past)
        return z_BTHWC.movedim(-1, 1)

    def synthesise(self, codes_BCTHW: Tensor, past: Past | None) -> Tensor:
        x_BFCHW: Tensor = self.decoder(self.post_quant_conv(codes_BCTHW.movedim(1, -1), past), past)
        return x_BFCHW


class CosmosImage(Cosmos, name="cosmos-image"):
    """Pictures <-> latents; each frame of a video by itself.

    Weights come from published files (`hwm convert cosmos-tokenizer`), or from training.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Cosmos.Config):
        """The defaults are those of DI8x8."""

        patch: int = 2
        z: int = 256

    config: Config

    @classmethod
    def tiny(cls) -> Config:
        """A config for tests and dry runs."""
        return cls.Config(base=32, blocks=1, z=8, multipliers=(1, 2))

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, halvings = config, (config.space // config.patch).bit_length() - 1
        if halvings >= min(len(c.widths), len(c.decoder_widths)) or c.base % 32:
            raise HwmError(f"{c}: more halvings than levels, or channels that are no multiples of 32")
        self.encoder = cosmos_image.Encoder(c.z, c.patch, c.widths, c.blocks, halvings)
        self.decoder = cosmos_image.Decoder(c.z, c.patch, c.decoder_widths, c.blocks, halvings)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(c.z, c.codes, 1), nn.Conv2d(c.codes, c.z, 1)

    def units(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, cosmos_image.Residual)]

    def analyse(self, x_BFCHW: Tensor, past: Past | None) -> Tensor:
        z_NCHW: Tensor = self.quant_conv(self.encoder(x_BFCHW.flatten(0, 1)))
        return z_NCHW.unflatten(0, x_BFCHW.shape[:2]).transpose(1, 2)

    def synthesise(self, codes_BCTHW: Tensor, past: Past | None) -> Tensor:
        codes_BTCHW = codes_BCTHW.transpose(1, 2)
        x_NCHW: Tensor = self.decoder(self.post_quant_conv(codes_BTCHW.flatten(0, 1)))
        return x_NCHW.unflatten(0, codes_BTCHW.shape[:2])
