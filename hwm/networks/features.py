"""Features of pictures and of videos, by networks that come as TorchScript files: Inception v3 and I3D.

The files take pixels of 0 to 255 and give features, as StyleGAN3's `inception-2015-12-05.pt` and StyleGAN-V's
`i3d_torchscript.pt` do.

Shape suffixes: N examples, F frames, C colours, H W places.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.errors import HwmError

AT_ONCE = 32
"""Pictures, or frames of videos, that go through a network together; a video is not split."""

FEWEST_FRAMES = 10
"""Of a video below which the pooling of I3D leaves nothing; shorter ones are shown with their last frame repeated."""

Features = Callable[[Tensor], Tensor]
"""Videos (N, F, 3, H, W) in [0, 1] -> features (M, D), one row for each example: of each picture, or of each video."""


def inception(path: str | Path, device: torch.device | str = "cpu") -> Features:
    """FID's features: a TorchScript of Inception v3 called as `network(uint8 pictures, return_features=True)`.

    Raises:
        HwmError: the file is missing or no such network.
    """
    network = _load(path, "FID", "inception-2015-12-05.pt of StyleGAN3", device)

    def features(video_NFCHW: Tensor) -> Tensor:
        pictures = (video_NFCHW.flatten(0, 1).clamp(0, 1) * 255).round().to(torch.uint8)
        return torch.cat([_called(network, path, p.to(device), return_features=True) for p in pictures.split(AT_ONCE)])

    return features


def i3d(path: str | Path, device: torch.device | str = "cpu") -> Features:
    """FVD's features: a TorchScript of I3D called as `network((N, 3, F, H, W) in 0..255, rescale=True, resize=True,
    return_features=True)`.

    Raises:
        HwmError: the file is missing or no such network.
    """
    network = _load(path, "FVD", "i3d_torchscript.pt of StyleGAN-V", device)

    def features(video_NFCHW: Tensor) -> Tensor:
        missing = max(0, FEWEST_FRAMES - video_NFCHW.shape[1])
        pixels = video_NFCHW.clamp(0, 1).mul(255).round().transpose(1, 2)
        pixels = F.pad(pixels, (0, 0, 0, 0, 0, missing), mode="replicate") if missing else pixels
        groups = pixels.split(max(1, AT_ONCE // pixels.shape[2]))
        flags = dict(rescale=True, resize=True, return_features=True)
        return torch.cat([_called(network, path, p.to(device), **flags) for p in groups])

    return features


def _load(path: str | Path, metric: str, known: str, device: torch.device | str) -> torch.jit.ScriptModule:
    if not Path(path).is_file():
        raise HwmError(
            f"{metric} needs the network that defines it, and {path} is not there: fetch {known} and name its file"
        )
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise HwmError(f"{path} is not a TorchScript file: {metric} takes one, such as {known}") from error


@torch.no_grad()
def _called(network: torch.jit.ScriptModule, path: str | Path, x: Tensor, **flags: bool) -> Tensor:
    try:
        out: Tensor = network(x, **flags).float().flatten(1)
    except (RuntimeError, torch.jit.Error) as error:
        raise HwmError(f"{path} does not take {tuple(x.shape)} with {', '.join(flags)}: {error}") from error
    return out
