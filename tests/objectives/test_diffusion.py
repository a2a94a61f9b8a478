"""Gaussian diffusion: the schedule, a loss that knows the truth, and sampling of a distribution that is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hwm.objectives.diffusion import STEPS, binned_log_likelihood, denoising_loss, draw, schedule


@pytest.mark.parametrize("steps", [1, 2, 10, 100, STEPS])
def test_the_schedule(steps: int) -> None:
    s = schedule(steps)
    assert all(len(x) == steps and x.isfinite().all() for x in s)
    assert s.asked[0] == 0
    assert steps == 1 or s.asked[-1] == STEPS - 1
    torch.testing.assert_close(s.signal**2 + s.noise**2, torch.ones(steps))
    assert (s.noise.diff() > 0).all()
    assert (s.log_posterior <= s.log_beta + 1e-5).all()
    if steps < STEPS:
        torch.testing.assert_close(s.signal, schedule().signal[s.asked])


def test_the_bins_hold_all_there_is() -> None:
    centres = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, log_std in ((0.3, -2.0), (-0.9, 0.0), (0.0, -4.0)):
        chance = binned_log_likelihood(centres, torch.tensor(mean), torch.tensor(log_std)).exp()
        assert abs(chance.sum() - 1) < 1e-3


def perfect(mean: float, std: float) -> object:
    """The best guess of the noise for vectors N(mean, std), with variances as they truly are."""

    def denoiser(x_D: Tensor, step: Tensor) -> Tensor:
        s = schedule()
        a, b = s.signal[step][..., None], s.noise[step][..., None]
        noise = b * (x_D - a * mean) / (a**2 * std**2 + b**2)
        return torch.cat([noise, torch.full_like(x_D, -1.0)], -1)

    return denoiser


def test_sampling_of_a_known_distribution() -> None:
    torch.manual_seed(0)
    made = draw(
        torch.randn(4000, 2), lambda: torch.randn(4000, 2), perfect(0.7, 0.2),  # type: ignore[arg-type]
        steps=100, temperature=1.0, clamp=math.inf,
    )  # fmt: skip
    assert abs(made.mean() - 0.7) < 0.02
    assert abs(made.std() - 0.2) < 0.03
    cold = draw(
        torch.randn(4000, 2), lambda: torch.randn(4000, 2), perfect(0.7, 0.2),  # type: ignore[arg-type]
        steps=100, temperature=0.0, clamp=math.inf,
    )  # fmt: skip
    assert cold.std() < 0.15


@pytest.mark.parametrize("steps", [1, 4])
def test_the_last_step_of_sampling_adds_no_noise(steps: int) -> None:
    def made(scales: list[float]) -> Tensor:
        more = iter(scales)
        return draw(
            torch.linspace(-1, 1, 6).view(3, 2), lambda: torch.full((3, 2), next(more)),
            perfect(0.7, 0.2), steps=steps, temperature=1.0, clamp=math.inf,  # type: ignore[arg-type]
        )  # fmt: skip

    plain = [1.0] * steps
    assert torch.equal(made([*plain[1:], 9.0]), made(plain))
    for step in range(steps - 1):
        louder = [9.0 if i == step else 1.0 for i in range(steps)]
        assert (made(louder) - made(plain)).abs().min() > 1e-4


def test_who_knows_the_vectors_pays_little_and_the_bound_teaches_the_variance_alone() -> None:
    torch.manual_seed(0)
    clean, step, noise = torch.full((500, 3), 0.7), torch.randint(1, STEPS, (500,)), torch.randn(500, 3)
    error, bound = denoising_loss(clean, step, noise, perfect(0.7, 0.0))  # type: ignore[arg-type]
    assert error.shape == bound.shape == (500,)
    assert error.max() < 1e-3
    assert bound.abs().max() < 1e-2
    ignorant, _ = denoising_loss(clean, step, noise, lambda x, t: torch.cat([0 * x, 0 * x - 1], -1))
    assert abs(ignorant.mean() - 1) < 0.1
    told = torch.zeros(500, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(denoising_loss(clean, step, noise, lambda x, t: told)[1].sum(), told)
    assert not gradient[:, :3].any()
    assert gradient[:, 3:].any()
