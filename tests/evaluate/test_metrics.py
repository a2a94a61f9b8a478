from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwm.evaluate import metrics
from hwm.types import Prediction


def waves(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two similar pictures by formula, (3, H, W) float64."""
    y, x = np.mgrid[0:height, 0:width]
    c = np.arange(3)[:, None, None]
    a = 0.5 + 0.45 * np.sin(0.37 * x + 0.21 * y + c)
    b = 0.5 + 0.40 * np.sin(0.37 * x + 0.21 * y + c + 0.3) + 0.05 * np.cos(1.7 * x * (c + 1))
    return a, b.clip(0, 1)


# from skimage 0.25: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)
# and peak_signal_noise_ratio(data_range=1)
KNOWN = [
    (32, 48, 0.8807768499600614, 19.77540109384291),
    (11, 11, 0.8556563973148825, 20.03481295629584),
    (64, 40, 0.8813538849355588, 19.75595392350032),
]


@pytest.mark.parametrize(("height", "width", "similarity", "ratio"), KNOWN)
def test_known_values(height: int, width: int, similarity: float, ratio: float) -> None:
    a, b = (torch.from_numpy(p) for p in waves(height, width))
    assert metrics.ssim(a, b).item() == pytest.approx(similarity, abs=1e-5)
    assert metrics.psnr(a, b).item() == pytest.approx(ratio, abs=1e-4)


def test_against_skimage() -> None:
    reference = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    a = rng.random((3, 24, 31))
    b = (a + rng.normal(0, 0.1, a.shape)).clip(0, 1)
    want = reference.structural_similarity(
        a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.ssim(torch.from_numpy(a), torch.from_numpy(b)).item() == pytest.approx(want, abs=1e-5)


def test_ssim_is_the_formula_of_the_paper() -> None:
    """One 11 x 11 window, written out."""
    a, b = (p[0] for p in waves(11, 11))
    offset = np.arange(11) - 5
    g = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    g /= g.sum()
    mean_a, mean_b = (g * a).sum(), (g * b).sum()
    var_a, var_b = (g * (a - mean_a) ** 2).sum(), (g * (b - mean_b) ** 2).sum()
    covariance = (g * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 0.01**2, 0.03**2
    want = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    want /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    got = metrics.ssim(torch.from_numpy(a)[None], torch.from_numpy(b)[None]).item()
    assert got == pytest.approx(want, abs=1e-5)


def test_psnr_closed_form_and_cap() -> None:
    black = torch.zeros(2, 3, 4, 4)
    assert torch.allclose(metrics.psnr(black + 0.1, black), torch.full((2,), 20.0), atol=1e-4)
    assert metrics.psnr(black, black).tolist() == [100.0] * 2
    for a, b in ((7, 1), (1, 7), (-7, 0), (0, -7)):
        assert metrics.psnr(black + a, black + b).tolist() == [100.0] * 2, "both sides are clamped to [0, 1]"
        assert metrics.ssim(black + a, black + b).tolist() == pytest.approx([1.0] * 2)
    assert metrics.psnr(black[:1] + 1, black[:1]).item() == pytest.approx(0, abs=1e-4)


def test_shapes_broadcast_and_identity() -> None:
    x = torch.rand(2, 3, 1, 3, 16, 16)
    assert metrics.ssim(x, x).shape == (2, 3, 1)
    assert torch.allclose(metrics.ssim(x, x), torch.ones(2, 3, 1), atol=1e-5)
    assert metrics.ssim(x, x.mean((0, 1, 2), keepdim=True)).shape == (2, 3, 1)
    tiny = torch.rand(1, 3, 4, 8)  # smaller than the window
    assert metrics.ssim(tiny, tiny).item() == pytest.approx(1, abs=1e-5)


def test_accuracy_is_na_for_values_that_are_not_ids() -> None:
    ids = torch.arange(12).view(1, 3, 2, 2)
    wrong = ids.clone()
    wrong[0, 1, 0] = -1
    assert metrics.accuracy(wrong, ids).tolist() == [[1.0, 0.5, 1.0]]
    assert metrics.accuracy(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)) is None


def test_cross_entropy_clip_by_clip() -> None:
    target = torch.randint(5, (3, 2, 4, 4))
    assert metrics.cross_entropy(Prediction(target), target) is None
    uniform = Prediction(target, torch.zeros(3, 2, 4, 4, 5))
    assert torch.allclose(metrics.cross_entropy(uniform, target), torch.full((3, 2), math.log(5)), atol=1e-6)
    logits = torch.randn(3, 2, 4, 4, 5)
    got = metrics.cross_entropy(Prediction(target, logits), target)
    want = F.cross_entropy(logits.movedim(-1, 1), target, reduction="none").mean((2, 3))
    assert torch.allclose(got, want, atol=1e-5)
    digits = Prediction(target, torch.zeros(3, 2, 4, 4, 6), levels=(2, 4))
    assert torch.allclose(metrics.cross_entropy(digits, target), torch.full((3, 2), math.log(8)), atol=1e-6)
