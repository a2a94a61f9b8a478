"""Gaussian diffusion with a learned variance, for heads that draw vectors: the schedule, the loss, and sampling.

Sources: DDPM (arXiv 2006.11239), the cosine schedule and the learned variance of improved DDPM (arXiv 2102.09672), as
used by MAR (arXiv 2406.11838) and HMA (arXiv 2502.04296).

Shape suffixes: ... any leading axes, D numbers of a vector, K diffusion steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 1000  # of training
BIN = 1 / 255  # half the width of the bins in which the last step's likelihood is counted: 256 levels in [-1, 1]
MOST_LOG_VARIANCE = 20.0  # no head that was trained comes near it
# (..., D) noisy vectors and their steps, long, one for each vector or one for all, without axes -> (..., 2 D): the
# noise, and where between its bounds the variance is
Denoiser = Callable[[Tensor, Tensor], Tensor]


class Schedule(NamedTuple):
    """Of K steps, in order of growing noise; each (K,) float32, but for `asked`.

    Attributes:
        asked: the step of training that each stands for.
        signal, noise: shares of the vector and of the noise in a noisy vector.
        log_beta, log_posterior: bounds of the log variance.
        from_start, from_noisy: shares of the clean and of the noisy vector in the mean of the step before.
    """

    asked: Tensor
    signal: Tensor
    noise: Tensor
    log_beta: Tensor
    log_posterior: Tensor
    from_start: Tensor
    from_noisy: Tensor


@lru_cache(maxsize=16)
def schedule(steps: int = STEPS, device: torch.device | str = "cpu") -> Schedule:
    """The cosine schedule of training, or as many of its steps, evenly spaced from the first to the last."""
    with torch.inference_mode(False):
        share = torch.cos((torch.arange(STEPS + 1, dtype=torch.float64) / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
        alpha = torch.cumprod(1 - (1 - share[1:] / share[:-1]).clamp(max=0.999), 0)
        asked = (torch.arange(steps, dtype=torch.float64) * ((STEPS - 1) / max(1, steps - 1))).round().long()
        alpha = alpha[asked]
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])
        beta = 1 - alpha / before
        posterior = beta * (1 - before) / (1 - alpha)
        posterior[0] = posterior[min(1, steps - 1)]  # the first is zero, and has no logarithm
        parts = (
            alpha.sqrt(), (1 - alpha).sqrt(), beta.log(), posterior.clamp(min=1e-20).log(),
            beta * before.sqrt() / (1 - alpha), (1 - before) * (1 - beta).sqrt() / (1 - alpha),
        )  # fmt: skip
        return Schedule(asked.to(device), *(x.float().to(device) for x in parts))


def denoising_loss(clean_D: Tensor, step: Tensor, noise_D: Tensor, denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    """Squared error of the noise, and the bound on the likelihood of this step in bits, a vector each: (...), (...).

    The second teaches the variance alone. Both are means over the numbers of a vector.

    Args:
        clean_D, noise_D: (..., D) vectors and standard normal noise.
        step: (...) long, of the steps of training.
    """
    s = Schedule(*(x[step][..., None] for x in schedule(STEPS, clean_D.device)))
    noisy_D = s.signal * clean_D + s.noise * noise_D
    guess_D, place_D = denoiser(noisy_D, step).float().chunk(2, -1)
    error = (noise_D - guess_D).square().mean(-1)
    true_mean_D = s.from_start * clean_D + s.from_noisy * noisy_D
    mean_D, log_variance_D = step_before(noisy_D, guess_D.detach(), place_D, s, math.inf)
    likelihood_D = binned_log_likelihood(clean_D, mean_D, 0.5 * log_variance_D)
    gap_D = 0.5 * (
        log_variance_D - s.log_posterior - 1 + (s.log_posterior - log_variance_D).exp()
        + (true_mean_D - mean_D).square() * (-log_variance_D).exp()
    )  # fmt: skip
    bound = torch.where(step[..., None] == 0, -likelihood_D, gap_D).mean(-1) / math.log(2)
    return error, bound


def step_before(noisy_D: Tensor, noise_D: Tensor, place_D: Tensor, s: Schedule, clamp: float) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the vectors one step before, by the noise and the place that were predicted."""
    start_D = ((noisy_D - s.noise * noise_D) / s.signal).clamp(-clamp, clamp)
    share_D = (place_D + 1) / 2
    log_variance_D = share_D * s.log_beta + (1 - share_D) * s.log_posterior
    return s.from_start * start_D + s.from_noisy * noisy_D, log_variance_D


def binned_log_likelihood(x_D: Tensor, mean_D: Tensor, log_std_D: Tensor) -> Tensor:
    """Log-probability of the bin around x under a normal distribution; the outermost bins go on for ever."""

    def below(x_D: Tensor) -> Tensor:
        """The normal distribution function, in its tanh approximation: what published heads were trained with."""
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x_D + 0.044715 * x_D**3)))

    scale_D = (-log_std_D).exp()
    low_D, high_D = below((x_D - BIN - mean_D) * scale_D), below((x_D + BIN - mean_D) * scale_D)
    chance_D = torch.where(x_D < -0.999, high_D, torch.where(x_D > 0.999, 1 - low_D, high_D - low_D))
    return chance_D.clamp(min=1e-12).log()


def draw(
    first_D: Tensor, noise: Callable[[], Tensor], denoiser: Denoiser, *, steps: int, temperature: float, clamp: float
) -> Tensor:
    """Ancestral sampling: vectors (..., D) out of noise.

    Args:
        first_D: standard normal noise.
        noise: more of it, of the same shape; asked once a step.
        temperature: of the noise that is added at each step; 0 adds none.
        clamp: bound of the clean vectors that are guessed on the way; infinity for none.
    """
    all_steps, x_D = schedule(steps, first_D.device), first_D
    for k in reversed(range(steps)):
        s = Schedule(*(x[k] for x in all_steps))
        guess_D, place_D = denoiser(x_D, s.asked).float().chunk(2, -1)
        mean_D, log_variance_D = step_before(x_D, guess_D, place_D, s, clamp)
        more_D = noise()  # of the last step, too, in which none is added: the draws are the same for any temperature
        # a head that was not trained yet may name any variance, and is not to overflow
        scale_D = (0.5 * log_variance_D.clamp(max=MOST_LOG_VARIANCE)).exp()
        x_D = mean_D + temperature * scale_D * more_D if k else mean_D
    return x_D
