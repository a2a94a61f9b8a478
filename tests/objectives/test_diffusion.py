"""Gaussian diffusion: the schedule, a loss that knows the truth, and sampling of a distribution that is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from hwm.objectives.diffusion import STEPS, Schedule, binned_log_likelihood, denoising_loss, draw, schedule, step_before


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


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.4, 0.1), (-0.8, 0.3)])
def test_the_likelihood_is_that_of_a_normal_distribution_in_bins(mean: float, std: float) -> None:
    x, known = torch.linspace(-1, 1, 256, dtype=torch.float64)[1:-1], Normal(mean, std)
    found = binned_log_likelihood(x, torch.tensor(mean), torch.tensor(std).log()).exp()
    wanted = known.cdf(x + 1 / 255) - known.cdf(x - 1 / 255)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0.02)
    ends = binned_log_likelihood(torch.tensor([-1.0, 1.0]), torch.tensor(mean), torch.tensor(std).log()).exp()
    outside = torch.stack([known.cdf(torch.tensor(-1 + 1 / 255)), 1 - known.cdf(torch.tensor(1 - 1 / 255))])
    torch.testing.assert_close(ends, outside, atol=1e-3, rtol=0)
    least = binned_log_likelihood(torch.tensor(0.5), torch.tensor(-90.0), torch.tensor(0.0))
    assert least.item() == pytest.approx(math.log(1e-12)), "of what cannot be"


@pytest.mark.parametrize("step", [150, 500, 800])
def test_the_bound_is_the_divergence_from_the_step_before_as_bayes_has_it(step: int) -> None:
    torch.manual_seed(0)
    clean, noise, told = (torch.randn(4, 3) for _ in range(3))
    place, t = torch.tensor([-1.0, -0.2, 1.0]).expand(4, 3), torch.full((4,), step)
    error, bound = denoising_loss(clean, t, noise, lambda x, t: torch.cat([told, place], -1))
    torch.testing.assert_close(error, (told - noise).square().mean(-1))
    signal, before = (schedule().signal[k].double() for k in (step, step - 1))
    beta = 1 - (signal / before) ** 2
    noisy = signal * clean + (1 - signal**2).sqrt() * noise

    def mean_before(start: Tensor) -> tuple[Tensor, Tensor]:
        """Of a start that is known: the product of N(before start, 1 - before^2) and of the likelihood of `noisy`."""
        prior, likelihood = 1 / (1 - before**2), (1 - beta) / beta
        precision = prior + likelihood
        mean = (prior * before * start + likelihood * noisy / (1 - beta).sqrt()) / precision
        return mean, 1 / precision

    (true_mean, variance), (mean, _) = mean_before(clean), mean_before((noisy - (1 - signal**2).sqrt() * told) / signal)
    share = (place + 1) / 2
    guessed = (share * beta.log() + (1 - share) * variance.log()).exp()
    wanted = kl_divergence(Normal(true_mean, variance.sqrt()), Normal(mean, guessed.sqrt())).mean(-1) / math.log(2)
    torch.testing.assert_close(bound.double(), wanted, rtol=0.02, atol=1e-4)


def test_the_bound_of_the_last_step_is_its_likelihood() -> None:
    clean, noise = torch.full((2, 3), 0.25), torch.randn(2, 3)
    _, bound = denoising_loss(clean, torch.tensor([0, 0]), noise, lambda x, t: torch.cat([noise + 0.5, 0 * noise], -1))
    s = schedule()
    mean, log_std = 0.25 - 0.5 * s.noise[0] / s.signal[0], (s.log_beta[0] + s.log_posterior[0]) / 4
    wanted = -binned_log_likelihood(clean, mean, log_std).mean(-1) / math.log(2)
    torch.testing.assert_close(bound, wanted, rtol=1e-3, atol=1e-3)


def test_guesses_of_the_clean_vector_are_clamped_and_variances_lie_between_their_bounds() -> None:
    s = Schedule(*(x[400] for x in schedule()))
    start, place = torch.tensor([-3.0, -0.4, 0.4, 3.0]), torch.tensor([-1.0, 0.0, 0.5, 1.0])
    noise = torch.randn(4)
    noisy = s.signal * start + s.noise * noise
    mean, log_variance = step_before(noisy, noise, place, s, 0.5)
    torch.testing.assert_close(mean, s.from_start * start.clamp(-0.5, 0.5) + s.from_noisy * noisy)
    torch.testing.assert_close(log_variance, torch.lerp(s.log_posterior, s.log_beta, torch.tensor([0, 0.5, 0.75, 1])))


def test_the_noise_of_a_step_is_as_large_as_its_temperature_and_never_overflows() -> None:
    torch.manual_seed(0)
    first, more = torch.randn(3, 2).double(), torch.randn(3, 2).double()

    def made(temperature: float, place: float, steps: int = 2) -> Tensor:
        return draw(
            first, lambda: more, lambda x, t: torch.cat([0 * x, 0 * x + place], -1),
            steps=steps, temperature=temperature, clamp=math.inf,
        )  # fmt: skip

    cold, warm, hot = (made(t, 0.0) for t in (0.0, 1.0, 2.0))
    torch.testing.assert_close(hot - cold, 2 * (warm - cold), rtol=1e-4, atol=1e-4)
    s = Schedule(*(x[1] for x in schedule(2)))
    scale = ((s.log_beta + s.log_posterior) / 4).exp() / schedule(2).signal[0]  # then a step to its clean vector
    torch.testing.assert_close(warm - cold, scale.double() * more, rtol=1e-3, atol=1e-4)
    assert max((made(1.0, place) - cold).abs().max() for place in (-1e4, 1e4)) < 1e6


def test_everything_is_computed_on_the_device_of_the_vectors() -> None:
    x = torch.zeros(4, 3, device="meta")
    made = draw(x, lambda: x, lambda x, t: torch.cat([x, x], -1), steps=2, temperature=1.0, clamp=1.0)
    assert made.device.type == "meta"
    step = torch.zeros(4, dtype=torch.long, device="meta")
    assert {y.device.type for y in denoising_loss(x, step, x, lambda x, t: torch.cat([x, x], -1))} == {"meta"}
