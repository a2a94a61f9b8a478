"""The image VAEs of Stable Diffusion and Stable Video Diffusion, run by the package `diffusers` (extra `vae`).

Pictures eight times smaller a side, four channels (Rombach et al., "High-resolution image synthesis with latent
diffusion models", CVPR 2022, arXiv 2112.10752). HMA's continuous models take such latents (arXiv 2502.04296). A folder
has the layout of diffusers: `config.json` and `diffusion_pytorch_model.safetensors`.

Shape suffixes: B batch, F frames, N = B*F pictures, C channels, H W picture or grid.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwm.errors import CheckpointError, HwmError
from hwm.tokenizers.checks import check_latents, check_sides, check_video
from hwm.types import LatentSpec, Tokenizer
from hwm.weights import aligned, read_weights

PUBLISHED = {"AutoencoderKL": "sd-vae", "AutoencoderKLTemporalDecoder": "svd-vae"}
"""diffusers' class -> the name by which data sets know latents of its published weights."""
SCALE = 0.18215
"""By which those latents are multiplied: their standard deviation becomes about 1."""
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PIXELS_AT_ONCE = 8 * 256 * 256
# attention as it was called before diffusers 0.15, by which the widely used files still go
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class DiffusersVAE(nn.Module, Tokenizer):
    """Pictures <-> latents, each frame of a video by itself.

    Latents are the mean of the encoder's distribution: nothing is drawn. They are scaled as diffusion models take them.

    Args:
        vae: diffusers' module.
        kind: its class.
        size: (height, width) of the pictures, multiples of a cell.
    """

    def __init__(self, vae: Any, kind: str, size: tuple[int, int] = (256, 256)) -> None:
        super().__init__()
        self.vae, self.kind = vae.eval().requires_grad_(False), kind
        self.scale = float(vae.config.scaling_factor)
        self.shift_by = float(vae.config.get("shift_factor") or 0.0)
        self.cell = 2 ** (len(vae.config.block_out_channels) - 1)
        check_sides(LatentSpec(size, channels=3), self.cell)
        self.size = size
        self.latent = LatentSpec((size[0] // self.cell, size[1] // self.cell), channels=int(vae.config.latent_channels))
        self.published = PUBLISHED[kind] if self.scale == SCALE else ""
        self.id = self.published or kind

    def of_size(self, size: tuple[int, int]) -> DiffusersVAE:
        other = DiffusersVAE(self.vae, self.kind, size)
        other.id = self.id
        return other

    @torch.inference_mode()
    def encode(self, video_BFCHW: Tensor) -> Tensor:
        """Latents (B, F, C, h, w) of a video in [0, 1].

        Raises:
            HwmError: pictures of another size.
        """
        check_video(self, video_BFCHW)
        parts = video_BFCHW.flatten(0, 1).split(self._at_once)
        z = [self.vae.encode(part.to(self._home) * 2 - 1).latent_dist.mode() for part in parts]
        return ((torch.cat(z).float() - self.shift_by) * self.scale).unflatten(0, tuple(video_BFCHW.shape[:2]))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Video in [0, 1] of latents (B, F, C, h, w).

        Raises:
            HwmError: latents of another shape.
        """
        check_latents(self, latents)
        # the decoder of Stable Video Diffusion mixes neighbouring frames; given one at a time, it has none to mix
        alone = {"num_frames": 1} if self.kind == "AutoencoderKLTemporalDecoder" else {}
        parts = (latents.flatten(0, 1) / self.scale + self.shift_by).split(self._at_once)
        x = torch.cat([self.vae.decode(part.to(self._home), **alone).sample.float() for part in parts])
        return ((x + 1) / 2).clamp(0, 1).unflatten(0, tuple(latents.shape[:2]))

    @property
    def _home(self) -> Tensor:
        return next(self.vae.parameters())

    @property
    def _at_once(self) -> int:
        return max(1, PIXELS_AT_ONCE // (self.size[0] * self.size[1]))


def is_diffusers(folder: Path) -> bool:
    """Whether a folder has the layout of a diffusers module."""
    return not (folder / "hwm.json").is_file() and "_class_name" in _fields(folder)


def load_vae(folder: Path, size: tuple[int, int] = (256, 256), device: torch.device | str = "cpu") -> DiffusersVAE:
    """The VAE of a folder.

    Raises:
        HwmError: the extra is missing; the folder is of another class; weights are missing, damaged or do not fit.
    """
    try:
        import diffusers
    except ImportError as error:
        raise HwmError(
            f"{folder} is a VAE of diffusers, which runs it: pip install 'humanoid-world-models[vae]'"
        ) from error
    fields = _fields(folder)
    kind = fields.get("_class_name", "")
    if kind not in PUBLISHED:
        raise CheckpointError(f"{folder} holds a {kind!r} of diffusers; tokenizers are {' and '.join(PUBLISHED)}")
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise CheckpointError(f"{folder} has no {WEIGHTS[0]}: fetch it from where its config.json came from")
    weights = {_new_name(name): tensor for name, tensor in read_weights(files[0]).items()}
    try:
        with torch.device("meta"):
            vae = getattr(diffusers, kind).from_config({k: v for k, v in fields.items() if k != "_class_name"})
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{folder / 'config.json'} describes no VAE: {error}") from error
    wanted = vae.state_dict()
    # attention over cells was once written as 1x1 convolutions
    fitting = {k: w.reshape(wanted[k].shape) for k, w in weights.items() if k in wanted and _alike(w, wanted[k])}
    if wrong := sorted(wanted.keys() - fitting.keys()) + sorted(weights.keys() - wanted.keys()):
        raise CheckpointError(
            f"the weights in {files[0]} do not fit its config.json: {', '.join(wrong[:3])} missing, unknown or of "
            f"another shape ({len(wrong)} in all)"
        )
    vae.load_state_dict({k: aligned(w.to(wanted[k].dtype)) for k, w in fitting.items()}, assign=True)
    return DiffusersVAE(vae, kind, size).to(device).eval()


def _alike(there: Tensor, here: Tensor) -> bool:
    """Whether a weight has a shape, but for a kernel of 1x1."""
    shape = there.shape[:-2] if there.ndim == 4 and here.ndim == 2 and there.shape[2:] == (1, 1) else there.shape
    return tuple(shape) == tuple(here.shape)


def _new_name(name: str) -> str:
    """A weight's name in diffusers today."""
    before, dot, last = name.rpartition(".")
    module, inner, part = before.rpartition(".")
    return f"{module}{inner}{OLD_NAMES[part]}{dot}{last}" if part in OLD_NAMES else name


def _fields(folder: Path) -> dict[str, Any]:
    try:
        fields = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
