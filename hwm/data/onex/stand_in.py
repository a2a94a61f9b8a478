"""Stand-ins for the tokenizers of 1X's data, for the small folders that `make` writes: those hold ids of `tiny`."""

from __future__ import annotations

import torch
from torch import Tensor

from hwm.data.onex.specs import onex_v1, onex_v2
from hwm.errors import HwmError, unknown
from hwm.types import Tokenizer

SPECS = {"1.1": onex_v1, "2.0": onex_v2}


class StandIn(Tokenizer):
    """A small tokenizer whose ids are repeated until they fill the grid of 1X's data.

    A step of several frames has the ids of the last of them, and shows that one for as long as the step lasts. Of real
    data from 1X it makes nothing.
    """

    def __init__(self, version: str, small: Tokenizer) -> None:
        """
        Args:
            version: 1.1 or 2.0.
            small: it makes ids of single frames.

        Raises:
            HwmError: no such version, or a grid that does not divide.
        """
        if version not in SPECS:
            raise unknown("stand-in", f"stand-in-{version}", [f"stand-in-{v}" for v in SPECS])
        spec = SPECS[version]()
        self.latent, self.published, self.size = spec.latent, spec.tokenizer, small.size
        self.small, self.id = small, f"stand-in-{version}"
        self.repeat = self.latent.grid[0] // small.latent.grid[0]
        if tuple(n * self.repeat for n in small.latent.grid) != self.latent.grid or small.latent.stride != 1:
            raise HwmError(f"{small.id!r} does not fill a grid of {self.latent.grid}")

    @torch.inference_mode()
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        ids = self.small.encode(video_BFCHW[:, :: self.latent.stride])
        return ids.repeat_interleave(self.repeat, -2).repeat_interleave(self.repeat, -1)

    @torch.inference_mode()
    def decode(self, latents_BTHW: Tensor) -> Tensor:
        if latents_BTHW.ndim != 4 or tuple(latents_BTHW.shape[2:]) != self.latent.grid:
            raise HwmError(f"{self.id} takes ids of a grid of {self.latent.grid}, got {tuple(latents_BTHW.shape)}")
        vocab = self.small.latent.vocab
        assert vocab is not None
        # a model of 1X's larger vocabulary may make ids that the small one lacks: the last stands for them
        shown = self.small.decode(latents_BTHW[..., :: self.repeat, :: self.repeat].clamp(max=vocab - 1))
        return torch.cat([shown[:, :1], shown[:, 1:].repeat_interleave(self.latent.stride, 1)], 1)
