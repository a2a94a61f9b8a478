"""Preconditioning and samplers of EDM, on Gaussian data, whose best denoiser is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hwm.errors import HwmError
from hwm.objectives.edm import EDMSampler, draw_sigmas, preconditioning, solve

MEAN, STD = 1.5, 0.5  # of the data


def best(x: Tensor, sigma: float) -> Tensor:
    """The mean of what x may have come from, where data are normal."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def normals(n: int = 2000) -> Tensor:
    """Numbers of which as many lie in each range as of a normal distribution."""
    share = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return math.sqrt(2) * (2 * share - 1).erfinv()


@given(sigma=st.floats(0.002, 80))
def test_inputs_and_targets_of_the_network_have_a_variance_of_one_at_every_level(sigma: float) -> None:
    g = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(1, 20_000, generator=g, dtype=torch.float64) for _ in range(2))
    noisy = data + sigma * noise
    p = preconditioning(torch.tensor([sigma], dtype=torch.float64), noisy)
    assert (p.scale * noisy).std().item() == pytest.approx(1, abs=0.02)
    assert p.target(data, noisy).std().item() == pytest.approx(1, abs=0.02)


def test_a_network_that_meets_its_target_denoises_and_errors_are_weighted_as_in_the_paper() -> None:
    data, noise = torch.randn(3, 5), torch.randn(3, 5)
    sigma_B = torch.tensor([0.05, 1.0, 20.0])
    noisy = data + sigma_B[:, None] * noise
    p = preconditioning(sigma_B, noisy)
    target = p.target(data, noisy)
    torch.testing.assert_close(p.denoised(noisy, target), data, rtol=1e-3, atol=1e-4)
    made = target + 0.1
    weight = (sigma_B.square() + 1) / sigma_B.square()
    error = (p.denoised(noisy, made) - data).square().mean(1)
    torch.testing.assert_close(weight * error, (made - target).square().mean(1), rtol=1e-2, atol=0)


def test_levels_of_training_are_log_normal_in_every_batch() -> None:
    torch.manual_seed(0)
    logs = draw_sigmas(2000, torch.device("cpu"), -0.4, 1.2).log()
    assert logs.mean().item() == pytest.approx(-0.4, abs=0.02)
    assert logs.std().item() == pytest.approx(1.2, abs=0.02)
    few = torch.stack([draw_sigmas(4, torch.device("cpu"), 0.0, 1.0).log() for _ in range(50)])
    assert few.mean(1).std() < 0.3, "independent draws would have 0.5"
    assert draw_sigmas(3, torch.device("cpu"), 0.5, 0.0).tolist() == pytest.approx([math.exp(0.5)] * 3)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_one_step_is_the_denoisers_answer(solver: Any) -> None:
    noise = torch.randn(4, 3)
    out = solve(best, noise, EDMSampler(steps=1, solver=solver, sigma_max=7.0))
    torch.testing.assert_close(out, best(7.0 * noise, 7.0))


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_many_steps_give_samples_with_the_mean_and_the_deviation_of_the_data(solver: Any) -> None:
    """From level S on, the path of the best denoiser scales distances from the mean by STD / sqrt(STD^2 + S^2)."""
    noise, top = normals(), 40.0
    out = solve(best, noise, EDMSampler(steps=400, solver=solver, sigma_max=top, sigma_min=1e-3))
    want = MEAN + (top * noise - MEAN) * STD / math.hypot(STD, top)
    torch.testing.assert_close(out, want, rtol=0, atol=0.02)
    assert out.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert out.std().item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_have_their_order(solver: Any, order: int) -> None:
    x, top, errors = torch.ones(1, dtype=torch.float64), 5.0, []
    want = MEAN + (top - MEAN) * STD / math.hypot(STD, top)
    for steps in (100, 200):
        sampler = EDMSampler(steps=steps, solver=solver, sigma_max=top, sigma_min=1e-9, rho=2.0)
        errors.append(abs(solve(best, x, sampler).item() - want))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_levels_are_evenly_spaced_in_their_root() -> None:
    sigmas = EDMSampler(steps=5, sigma_max=32.0, sigma_min=1.0, rho=5.0).sigmas()
    assert sigmas == pytest.approx([32, 1.75**5, 1.5**5, 1.25**5, 1, 0])
    assert EDMSampler(steps=1, sigma_max=3.0).sigmas() == pytest.approx([3, 0])


@pytest.mark.parametrize(("solver", "asked"), [("euler", [4, 1]), ("heun", [4, 1, 1])])
def test_the_denoiser_is_asked_once_a_step_or_twice_but_for_the_last(solver: Any, asked: list[float]) -> None:
    levels: list[float] = []

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        levels.append(sigma)
        return x * 0

    solve(denoiser, torch.ones(1), EDMSampler(steps=2, solver=solver, sigma_max=4.0, sigma_min=1.0))
    assert levels == pytest.approx(asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"solver": "dopri5"}, {"sigma_min": 0.0}, {"sigma_min": 9.0}, {"rho": 0.0},
        {"context_noise": -0.1}, {"guidance": math.nan},
    ],
)  # fmt: skip
def test_samplers_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HwmError, match=next(iter(wrong))):
        EDMSampler(**wrong)
