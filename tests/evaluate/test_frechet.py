"""The Frechet distance against its closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwm.errors import HwmError
from hwm.evaluate.frechet import Distances, FrechetDistance, frechet


def whitened(rows: int, dims: int, seed: int) -> Tensor:
    """Examples whose mean is exactly zero and whose covariance is exactly the identity."""
    x = torch.randn(rows, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, _ = torch.linalg.qr(x - x.mean(0))
    return q * (rows - 1) ** 0.5


@given(dims=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_it_is_the_closed_form_for_covariances_that_commute(dims: int, seed: int) -> None:
    """For scales s1 and s2 along common axes it is |m1 - m2|^2 + |s1 - s2|^2."""
    g = torch.Generator().manual_seed(seed)
    s1, s2 = torch.rand(2, dims, dtype=torch.float64, generator=g) + 0.1
    m1, m2 = torch.randn(2, dims, dtype=torch.float64, generator=g)
    turn, _ = torch.linalg.qr(torch.randn(dims, dims, dtype=torch.float64, generator=g))
    a, b = (whitened(40, dims, seed + i) * s @ turn + m for i, (s, m) in enumerate([(s1, m1), (s2, m2)]))
    want = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    assert frechet(a, b) == pytest.approx(want.item(), abs=1e-8)


@given(seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_it_is_the_formula_for_any_covariances_and_few_examples(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(30, 5, dtype=torch.float64, generator=g), torch.randn(4, 5, dtype=torch.float64, generator=g) + 1
    c1, c2 = a.T.cov(), b.T.cov()
    eigenvalues = torch.linalg.eigvals(c1 @ c2).real.clamp_min(0)
    want = (a.mean(0) - b.mean(0)).square().sum() + c1.trace() + c2.trace() - 2 * eigenvalues.sqrt().sum()
    assert frechet(a, b) == pytest.approx(want.item(), rel=1e-5)
    assert frechet(b, a) == pytest.approx(frechet(a, b))
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(3 * a, 3 * b) == pytest.approx(9 * frechet(a, b))


def test_one_example_has_no_covariance() -> None:
    with pytest.raises(HwmError, match="two examples"):
        frechet(torch.zeros(1, 3), torch.zeros(4, 3))


def test_batches_make_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = FrechetDistance(lambda video: video.flatten(0, 1).mean((-2, -1)))
    one, other = torch.rand(6, 2, 3, 4, 4), torch.rand(5, 2, 3, 4, 4)
    for part in one.split(4):
        metric.add("one", part)
    metric.add("other", other)
    assert (metric.count("one"), metric.count("other")) == (12, 10)
    want = frechet(one.flatten(0, 1).mean((-2, -1)), other.flatten(0, 1).mean((-2, -1)))
    assert metric.between("one", "other") == pytest.approx(want)


def test_figures_compare_with_the_camera_and_with_reconstructions() -> None:
    distances = Distances({"fid": lambda video: video.flatten(0, 1).mean((-2, -1))})
    sets = {name: torch.rand(4, 2, 1, 3, 4, 4) for name in ("prediction", "camera", "reconstruction", "copy")}
    sets["copy_reconstruction"] = sets["camera"]
    for name, video in sets.items():
        distances.add(name, video)
    found = distances.figures()
    assert found["fid_examples"] == 8
    assert found["fid_copy_reconstruction"] == pytest.approx(0, abs=1e-6)
    between = distances.metrics["fid"].between
    assert found["fid"] == between("prediction", "camera")
    assert found["fid_reconstruction_reference"] == between("prediction", "reconstruction")
