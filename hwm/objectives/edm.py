"""Denoising as preconditioned by EDM, and solvers of its path from noise to data.

Source: Karras et al. 2022, arXiv 2206.00364. Data have a standard deviation of 1 here. A noisy sample is data + sigma
noise; a denoiser gives the mean of the data that it may have come from.

Shape suffixes: B batch, ... any further axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.objectives.flow import column

# a noisy sample (B, ...) and its noise level -> the mean of the data that it may have come from
Denoiser = Callable[[Tensor, float], Tensor]


class Preconditioning(NamedTuple):
    """What makes a denoiser of a network whose input and target have a variance of 1 at every level of noise, each in a
    shape that multiplies samples.

    The denoiser is skip x noisy + out x network(scale x noisy).
    """

    skip: Tensor
    out: Tensor
    scale: Tensor

    def denoised(self, noisy: Tensor, made: Tensor) -> Tensor:
        """The denoiser's answer, of what the network made."""
        return self.skip * noisy + self.out * made

    def target(self, data: Tensor, noisy: Tensor) -> Tensor:
        """What the network should make. Its mean squared error is the denoiser's, weighted by 1 / out^2 as in EDM."""
        return (data - self.skip * noisy) / self.out


def preconditioning(sigma_B: Tensor, like: Tensor) -> Preconditioning:
    """Of samples (B, ...) with these levels of noise, all above 0."""
    sigma = column(sigma_B, like)
    variance = sigma.square() + 1
    return Preconditioning(1 / variance, sigma * variance.rsqrt(), variance.rsqrt())


def draw_sigmas(batch: int, device: torch.device, mean: float, std: float) -> Tensor:
    """Levels of noise (B,) for training, log-normal: exp(mean + std n) of standard normal numbers n.

    They are drawn one from each of B equally likely ranges, so that every batch has its share of all levels.
    """
    share_B = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    normal_B = math.sqrt(2) * (2 * share_B.clamp(1e-6, 1 - 1e-6) - 1).erfinv()
    return (mean + std * normal_B).exp()


@dataclass(frozen=True)
class EDMSampler:
    """How a sample is drawn: from noise of level `sigma_max` through ever smaller ones to 0, without adding any.

    Attributes:
        steps: of the solver.
        solver: "euler" asks the denoiser once a step, "heun" twice but for the last, whose end is known.
        sigma_max, sigma_min: levels of noise of the first and of the last step.
        rho: how closely the levels lie together where they are small.
        context_noise: standard deviations of noise that are added to the frames known, and told to the model. A little
            hides errors of the model's own earlier frames.
        guidance: how far the answer is moved from the one without actions towards the one with them and beyond: 1 is
            the answer with actions and costs one evaluation, all others cost two, of a model that was trained with
            `dropped_actions`.
    """

    steps: int = 3
    solver: Literal["euler", "heun"] = "euler"
    sigma_max: float = 5.0
    sigma_min: float = 0.02
    rho: float = 7.0
    context_noise: float = 0.02
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.solver not in ("euler", "heun") or not 0 < self.sigma_min < self.sigma_max:
            raise HwmError(
                f"steps={self.steps} must be at least 1, solver={self.solver!r} euler or heun, and "
                f"sigma_min={self.sigma_min} above 0 and below sigma_max={self.sigma_max}"
            )
        if self.rho <= 0 or self.context_noise < 0 or not math.isfinite(self.guidance):
            raise HwmError(
                f"rho={self.rho} must be above 0, context_noise={self.context_noise} at least 0, and "
                f"guidance={self.guidance} finite"
            )

    def sigmas(self) -> list[float]:
        """Levels of noise where steps begin, and the 0 where the last ends."""
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        share = [i / max(1, self.steps - 1) for i in range(self.steps)]
        return [*((first + s * (last - first)) ** self.rho for s in share), 0.0]


def solve(denoiser: Denoiser, noise: Tensor, sampler: EDMSampler) -> Tensor:
    """Samples (B, ...) out of standard normal noise. One step gives the denoiser's mean at the first level."""
    sigmas = sampler.sigmas()
    x = noise * sigmas[0]
    for now, then in pairwise(sigmas):
        slope = (x - denoiser(x, now)) / now
        end = x + (then - now) * slope
        if sampler.solver == "heun" and then > 0:
            slope = (slope + (end - denoiser(end, then)) / then) / 2
            end = x + (then - now) * slope
        x = end
    return x
