"""What a tokenizer is: it turns video into latents and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hwm.types import HwmError, LatentSpec


class Tokenizer(ABC):
    """Video in [0, 1], (B, F, 3, height, width) <-> latents (B, T, ...) as `latent` describes them.

    Attributes:
        latent: the spec of what `encode` returns.
        id: name and fingerprint of the weights; stores and checkpoints record it.
        size: (height, width) of the pictures.
        published: the name by which published data sets know their tokenizer, if this is one of those: they record no
            fingerprint.
        lookback: how many earlier steps `decode` needs to see to show a step as it shows it within a whole clip.
    """

    lookback = 0
    published = ""
    latent: LatentSpec
    id: str
    size: tuple[int, int]

    @abstractmethod
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        """Latents of a video in [0, 1] of this tokenizer's `size`; F frames give `latent.steps(F)` steps."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Video in [0, 1], `latent.frames(T)` frames."""

    def encode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents of a video that comes piece by piece: the first of 1 + n * stride frames, others of n * stride.

        Joined, they are what `encode` gives of the whole; so tokenizers that join frames in time override this.
        """
        return map(self.encode, pieces)

    def decode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Video of latents that come piece by piece, any number of steps each; joined, what `decode` gives."""
        return map(self.decode, pieces)

    def answers_to(self, name: str) -> bool:
        """Whether latents whose tokenizer is recorded as `name` are this one's."""
        return bool(name) and name in (self.id, self.published)

    def of_size(self, size: tuple[int, int]) -> Tokenizer:
        """The same weights for pictures of another (height, width).

        Raises:
            HwmError: this tokenizer cannot take that size.
        """
        raise HwmError(
            f"{self.id} takes pictures of {self.size[0]} x {self.size[1]} only, not of {size[0]} x {size[1]}"
        )

    def shift(self, latents: Tensor, keep: int) -> Tensor:
        """The last `keep` steps as the beginning of a new clip.

        A slice where steps do not depend on earlier ones; tokenizers that are causal over a clip decode the last
        frames and encode them again.
        """
        return latents[:, max(0, latents.shape[1] - keep) :]


class Pixels(Tokenizer):
    """The identity: latents are the pictures themselves. What a tokenizer is trained on."""

    def __init__(self, size: tuple[int, int] = (128, 128)) -> None:
        self.size = size
        self.latent = LatentSpec(grid=size, channels=3)
        self.id = f"pixels-{size[0]}x{size[1]}"

    def encode(self, video_BFCHW: Tensor) -> Tensor:
        return video_BFCHW

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(0, 1).to(torch.float32)
