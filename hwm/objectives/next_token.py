"""Drawing the next token: temperature, top-k, top-p.

Top-p (nucleus) sampling: Holtzman et al. 2020, arXiv 1904.09751.

Shape suffixes: B batch, ... any leading axes, V values of one distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from hwm.errors import HwmError
from hwm.objectives.draws import gumbel_of, uniform_like
from hwm.types import Generator


@dataclass(frozen=True)
class NextTokenSampler:
    """How a token is drawn from its distribution.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest (greedy), and the others have no say.
        top_p: only the likeliest values are drawn from, as few as hold this share of the probability; 1 is all.
        top_k: and only so many of the likeliest; 0 is all.
    """

    temperature: float = 1.0
    top_p: float = 0.8
    top_k: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise HwmError(
                f"temperature={self.temperature} must be at least 0, top_p={self.top_p} above 0 and at most 1, and "
                f"top_k={self.top_k} at least 0"
            )


GREEDY = NextTokenSampler(temperature=0.0)


def draw(logits_V: Tensor, sampler: NextTokenSampler, generator: Generator = None) -> Tensor:
    """One value of each distribution: (B, ..., V) -> (B, ...)."""
    uniform_V = uniform_like(logits_V, generator) if sampler.temperature else None
    return choose(logits_V, sampler, uniform_V)


def choose(logits_V: Tensor, sampler: NextTokenSampler, uniform_V: Tensor | None) -> Tensor:
    """The value of each distribution that uniform numbers (B, ..., V) decide on; a greedy sampler needs none."""
    if uniform_V is None:
        return logits_V.argmax(-1)
    logits_V = keep_likely(logits_V.float() / sampler.temperature, sampler.top_p, sampler.top_k)
    return (logits_V + gumbel_of(uniform_V)).argmax(-1)


def keep_likely(logits_V: Tensor, top_p: float, top_k: int) -> Tensor:
    """Logits with those of the unlikely at -inf: of all but `top_k` values, then beyond a probability of `top_p`.

    The value that crosses `top_p` is kept, so that there is always one.
    """
    if 0 < top_k < logits_V.shape[-1]:
        least = logits_V.topk(top_k, -1).values[..., -1:]
        logits_V = logits_V.masked_fill(logits_V < least, -math.inf)
    if top_p < 1:
        sorted_V, order_V = logits_V.sort(-1, descending=True)
        p_V = sorted_V.softmax(-1)
        beyond_V = p_V.cumsum(-1) - p_V > top_p
        logits_V = logits_V.masked_fill(beyond_V.scatter(-1, order_V, beyond_V), -math.inf)
    return logits_V
