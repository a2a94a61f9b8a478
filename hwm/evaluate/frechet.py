"""FID and FVD: how far apart two sets of pictures, or of videos, are by the features of a network trained elsewhere.

Features of each set are taken for draws of a normal distribution, and the distance is that of Frechet (Dowson and
Landau 1982) between the two: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With pictures and Inception v3 it is FID
(Heusel et al. 2017, arXiv 1706.08500), with videos and I3D FVD (Unterthiner et al. 2018, arXiv 1812.01717).

Nothing is needed but the network, as one TorchScript file that takes pixels of 0 to 255 and gives features, as
StyleGAN3's `inception-2015-12-05.pt` and StyleGAN-V's `i3d_torchscript.pt` do. A distance says nothing without the
number of its examples: of fewer than the features have dimensions, covariances are of deficient rank, and distances
too large.

Shape suffixes: N examples, F frames, C colours, H W places, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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


def frechet(one_ND: Tensor, other_ND: Tensor) -> float:
    """Squared Frechet distance between normal distributions with the means and covariances of two sets of features.

    Raises:
        HwmError: a set of fewer than two examples, or values that are not finite.
    """
    means, roots, total = [], [], 0.0
    for x_ND in (one_ND.double(), other_ND.double()):
        if len(x_ND) < 2 or not x_ND.isfinite().all():
            raise HwmError(
                f"a Frechet distance needs two examples or more and finite features, got {len(x_ND)} examples"
            )
        means.append(x_ND.mean(0))
        # C = A^T A; the trace of (C1 C2)^(1/2) is the sum of the singular values of A1 A2^T
        roots.append((x_ND - means[-1]) / (len(x_ND) - 1) ** 0.5)
        total += float(roots[-1].square().sum())
    a, b = (_square(root) for root in roots)
    return float((means[0] - means[1]).square().sum()) + total - 2 * float(torch.linalg.svdvals(a @ b.T).sum())


def _square(root_ND: Tensor) -> Tensor:
    """A root of the same covariance with no more rows than columns."""
    return torch.linalg.qr(root_ND, mode="r").R if root_ND.shape[0] > root_ND.shape[1] else root_ND


@dataclass
class FrechetDistance:
    """Features of sets of videos by name, gathered batch by batch, and the distances between sets.

    Attributes:
        features: what gives them.
    """

    features: Features
    sets: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, video_NFCHW: Tensor) -> None:
        """Videos in [0, 1] that belong to a set."""
        self.sets.setdefault(name, []).append(self.features(video_NFCHW).cpu())

    def count(self, name: str) -> int:
        """How many examples a set has."""
        return sum(map(len, self.sets[name]))

    def between(self, one: str, other: str) -> float:
        """The distance between two sets."""
        return frechet(torch.cat(self.sets[one]), torch.cat(self.sets[other]))


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


SETS = {
    "": ("prediction", "camera"),
    "_reconstruction_reference": ("prediction", "reconstruction"),
    "_copy": ("copy", "camera"),
    "_copy_reconstruction": ("copy_reconstruction", "camera"),
    "_reconstruction": ("reconstruction", "camera"),
}
"""Ending of a figure's name -> the sets that it is the distance between."""


class Distances:
    """Distances of a scenario's predictions, of copies of the last frame, and of the tokenizer alone from the truth.

    Args:
        features: what the figures are called -> their features.
    """

    def __init__(self, features: dict[str, Features]) -> None:
        self.metrics = {name: FrechetDistance(f) for name, f in features.items()}

    def add(self, name: str, video_BTFCHW: Tensor) -> None:
        """Predicted or true frames of some clips, step by step, to a set."""
        for metric in self.metrics.values():
            metric.add(name, video_BTFCHW.flatten(1, 2))

    def figures(self) -> dict[str, float]:
        """The distances by name, and of how many examples each kind is."""
        out: dict[str, float] = {}
        for name, metric in self.metrics.items():
            out |= {f"{name}{ending}": metric.between(*pair) for ending, pair in SETS.items()}
            out[f"{name}_examples"] = float(metric.count("camera"))
        return out
