"""The published graphs of the Cosmos tokenizers, run as they are: a fallback, and what ours can be compared with.

A graph has the type that it was traced with written into it, and perhaps its device. Ours has neither: prefer it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.tokenizers.checks import check_latents, check_video
from hwm.tokenizers.cosmos import Cosmos
from hwm.types import DataSpec, LatentSpec, Tokenizer


class TorchScriptCosmos(Tokenizer):
    """A tokenizer of two TorchScript modules; a video goes through in one piece.

    Args:
        encoder: frames (B, 3, F, H, W) in [-1, 1] -> (ids or latents, ...); pictures (N, 3, H, W) likewise.
        decoder: the first of these -> frames in about [-1, 1].
        config: which tokenizer it is.
        size: (height, width) of the pictures.
    """

    def __init__(
        self, encoder: torch.jit.ScriptModule, decoder: torch.jit.ScriptModule, config: Cosmos.Config,
        size: tuple[int, int],
    ) -> None:  # fmt: skip
        self.encoder, self.decoder = encoder.eval(), decoder.eval()
        weight = next(encoder.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        with torch.device("meta"):  # what it takes and gives is what ours does
            self.twin: Cosmos = config.build(DataSpec(LatentSpec(size, channels=3), {}))
        self.size, self.latent, self.published = size, self.twin.latent, self.twin.published
        self.id, self.lookback = f"{self.published}-torchscript", self.twin.lookback
        self.video = config.frames > 1

    @torch.inference_mode()
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        check_video(self, video_BFCHW)
        x = video_BFCHW.to(self.device, self.dtype) * 2 - 1
        with torch.jit.optimized_execution(False):  # fused kernels change results from call to call
            if self.video:
                found = self._first(self.encoder(x.transpose(1, 2)))
                return found.long() if self.latent.vocab else found.transpose(1, 2)
            found = self._first(self.encoder(x.flatten(0, 1))).unflatten(0, tuple(x.shape[:2]))
            return found.long() if self.latent.vocab else found

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        check_latents(self, latents)
        x = latents.to(self.device) if self.latent.vocab else latents.to(self.device, self.dtype)
        with torch.jit.optimized_execution(False):
            if self.video:
                ids_or_BCTHW = x.int() if self.latent.vocab else x.transpose(1, 2)
                shown = self._first(self.decoder(ids_or_BCTHW)).transpose(1, 2)
            else:
                flat = x.flatten(0, 1)
                shown = self._first(self.decoder(flat.int() if self.latent.vocab else flat))
                shown = shown.unflatten(0, tuple(x.shape[:2]))
        return ((shown.float() + 1) / 2).clamp(0, 1)

    def encode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        yield self.encode(torch.cat(list(pieces), 1))

    def decode_pieces(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        yield self.decode(torch.cat(list(pieces), 1))

    def shift(self, latents: Tensor, keep: int) -> Tensor:
        if keep >= latents.shape[1] or self.latent.stride == 1:
            return super().shift(latents, keep)
        return self.encode(self.decode(latents)[:, -self.latent.frames(keep) :])

    def _first(self, result: Tensor | tuple[Tensor, ...]) -> Tensor:
        found = result if isinstance(result, Tensor) else result[0]
        if not isinstance(found, Tensor):
            raise HwmError(f"these graphs are not those of a {self.published}: they give {type(found).__name__}")
        return found
