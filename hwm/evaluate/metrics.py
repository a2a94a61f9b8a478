"""Figures of merit of predicted pictures and tokens. Each takes tensors and returns a tensor; none knows a model.

Pictures are floats in [0, 1], (..., C, H, W); every metric gives one value a picture. Means are taken afterwards, over
decibels and not over squared errors: a mean of dB weighs every frame alike, where the dB of a mean error would be
ruled by the few worst. (The two differ: compare figures only with figures that were averaged alike.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.plugins import Table
from hwm.types import Prediction

PSNR_CAP = 100.0
"""dB at which PSNR ends. Identical pictures, of a robot that stands still, have an infinite PSNR, and a mean over clips
would tell of nothing else."""


@dataclass(frozen=True)
class Metric:
    """A figure of pictures, and what tables must know of it.

    Attributes:
        of: pictures and truth, both (..., C, H, W) in [0, 1], to a value a picture (...).
        lower_is_better: whether the smallest value is the best.
        title: what it is called above its rows; by default its name in `METRICS`.
        places: decimals that it is quoted with.
    """

    of: Callable[[Tensor, Tensor], Tensor]
    lower_is_better: bool = False
    title: str = ""
    places: int = 3


def psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture: 10 log10(1 / MSE) in dB, (..., C, H, W) -> (...).

    The peak is 1; both sides are clamped to [0, 1]; the value is at most `PSNR_CAP`.
    """
    error = (pictures.float().clamp(0, 1) - truth.float().clamp(0, 1)).square().mean((-3, -2, -1))
    return -10 * torch.log10(error.clamp_min(10 ** (-PSNR_CAP / 10)))


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each picture, (..., C, H, W) -> (...), at most 1.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity",
    IEEE TIP 13(4), 2004: an 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, a data range of 1. As in the
    paper, only windows that lie wholly inside the picture count, and covariances are the population's. Channels are
    compared one by one and averaged. A picture smaller than 11 gets the largest odd window that fits.
    """
    lead, (height, width) = pictures.shape[:-2], pictures.shape[-2:]
    x = pictures.float().clamp(0, 1).reshape(1, -1, height, width)
    y = truth.float().clamp(0, 1).expand_as(pictures).reshape(1, -1, height, width)
    size = min(11, height - (height + 1) % 2, width - (width + 1) % 2)
    window, planes = _gaussian(size, 1.5).to(x.dtype).to(x.device), x.shape[1]  # MPS has no float64

    def blur(z: Tensor) -> Tensor:  # planes as groups: many times faster on a CPU than planes as a batch
        z = F.conv2d(z, window.view(1, 1, -1, 1).expand(planes, 1, -1, 1), groups=planes)
        return F.conv2d(z, window.view(1, 1, 1, -1).expand(planes, 1, 1, -1), groups=planes)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((-2, -1)).reshape(lead).mean(-1)


@lru_cache
def _gaussian(size: int, sigma: float) -> Tensor:
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weight = torch.exp(-(offset**2) / (2 * sigma**2))
    return weight / weight.sum()


def accuracy(predicted: Tensor, target: Tensor) -> Tensor | None:
    """Share of cells whose token id is right, (B, T, H, W) -> (B, T); None for latents that are not ids."""
    if predicted.is_floating_point():
        return None
    return (predicted == target).float().mean((-2, -1))


def cross_entropy(prediction: Prediction, target_BTHW: Tensor) -> Tensor | None:
    """Nats a token of each clip and step, (B, T); None when the prediction carries no logits.

    Clip by clip, since `Prediction.cross_entropy` averages over the clips that it is given.
    """
    if prediction.logits is None:
        return None
    rows = []
    for i in range(len(target_BTHW)):
        one = slice(i, i + 1)
        part = Prediction(prediction.latents[one], prediction.logits[one], prediction.levels)
        rows.append(part.cross_entropy(target_BTHW[one]))
    return torch.stack([row for row in rows if row is not None])


METRICS: Table[Metric] = Table(
    "metric",
    ("hwm.metrics",),
    lambda name, part: "" if isinstance(part, Metric) else "it is no hwm.evaluate.metrics.Metric",
    {"psnr": Metric(psnr, title="PSNR in dB", places=2), "ssim": Metric(ssim, title="SSIM")},
)
"""Metrics of pictures; each that is here is taken of the prediction and of every baseline. Those that packages offer
are taken where they are asked for."""
