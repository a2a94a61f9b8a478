"""Features of pictures and of videos: Inception v3 and I3D, which come as TorchScript files, and EfficientNet-Lite0.

The files take pixels of 0 to 255 and give features, as StyleGAN3's `inception-2015-12-05.pt` and StyleGAN-V's
`i3d_torchscript.pt` do. EfficientNet-Lite0 comes as a wheel (`hwm.networks.efficientnet`).

Shape suffixes: N examples, F frames, C colours or channels, H W places.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.errors import HwmError
from hwm.networks.efficientnet import STAGES, load_efficientnet

AT_ONCE = 32
"""Pictures, or frames of videos, that go through a network together; a video is not split."""

FEWEST_FRAMES = 10
"""Of a video below which the pooling of I3D leaves nothing; shorter ones are shown with their last frame repeated."""

WINDOW = 8
"""Frames of a video that are described together by `lite_windows`."""

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


def lite_pictures(device: torch.device | str = "cpu") -> Features:
    """Features of each picture as FID's: the last stage of EfficientNet-Lite0, averaged over places; 320 numbers.

    Fewer than the 1280 of the layer before the classifier (Inception v3: 2048), so that the covariances of some
    hundreds of pictures are of full rank.

    Raises:
        HwmError: the network's wheel is not installed, or pictures are too small for it.
    """
    network = load_efficientnet(device)

    @torch.no_grad()
    def features(video_NFCHW: Tensor) -> Tensor:
        groups = video_NFCHW.flatten(0, 1).clamp(0, 1).split(AT_ONCE)
        return torch.cat([network.features(p.to(device), len(STAGES))[-1].mean((2, 3)) for p in groups])

    return features


def lite_windows(device: torch.device | str = "cpu") -> Features:
    """Features of each window of eight frames as FVD's: what is seen, and how it changes from frame to frame.

    The first 320 numbers are those of `lite_pictures`, averaged over the window. The other 112 are how far, on the mean
    over places and pairs of neighbouring frames, each channel of the fifth stage (16 pixels a place) changes: near zero
    for a picture that stands still, and too large for one that flickers. A network that knows single pictures says
    nothing of motion but by such differences.

    Windows follow one another without overlap, and frames beyond the last whole one are left out; a video of fewer is
    one window. A single frame counts as one that stands still.

    Raises:
        HwmError: the network's wheel is not installed, or pictures are too small for it.
    """
    network = load_efficientnet(device)

    def window(video_FCHW: Tensor) -> Tensor:
        stages = network.features(video_FCHW.to(device), len(STAGES))
        seen, fine = stages[-1].mean((0, 2, 3)), stages[4]
        changes = (fine[1:] - fine[:-1]).abs().sum((0, 2, 3)) / (max(1, len(fine) - 1) * fine.shape[2] * fine.shape[3])
        return torch.cat([seen, changes])

    @torch.no_grad()
    def features(video_NFCHW: Tensor) -> Tensor:
        whole = video_NFCHW.shape[1] // WINDOW * WINDOW or video_NFCHW.shape[1]
        videos = video_NFCHW[:, :whole].clamp(0, 1)
        return torch.stack([window(part) for video in videos for part in video.split(WINDOW)])

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
