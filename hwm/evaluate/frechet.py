"""FID and FVD: how far apart two sets of pictures, or of videos, are by the features of a network trained elsewhere.

Features of each set are taken for draws of a normal distribution, and the distance is that of Frechet (Dowson and
Landau 1982) between the two: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With pictures and Inception v3 it is FID
(Heusel et al. 2017, arXiv 1706.08500), with videos and I3D FVD (Unterthiner et al. 2018, arXiv 1812.01717).

The networks are those of `hwm.networks.features`. A distance says nothing without the number of its examples: of fewer
than the features have dimensions, covariances are of deficient rank, and distances too large.

Shape suffixes: N examples, F frames, C colours, H W places, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.networks.features import Features


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
