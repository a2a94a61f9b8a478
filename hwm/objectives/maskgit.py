"""Masked token modelling (MaskGIT, arXiv 2202.04200, as used by GENIE and Masked-HWM): pure functions.

Ids are (B, H, S), or (B, H, S, G) where a cell holds a tuple of ids that are masked and corrupted together.

Shape suffixes: B batch, H future steps, S cells, G ids a cell, ... any leading axes, V vocabulary, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hwm.errors import HwmError
from hwm.objectives.draws import gumbel, uniform_like
from hwm.types import Generator, join_digits, sent, split_digits

# Logits that the loss holds at a time, 128 MiB in float32: 524 tokens of a vocabulary of 64,000.
LOGITS_AT_ONCE = 2**25


@dataclass(frozen=True)
class MaskGITSampler:
    """How missing steps are filled in.

    Attributes:
        steps: decoding steps for a missing step; after each but the last, some cells are masked again.
        temperature: of the distribution that ids are drawn from; 0 takes the likeliest.
        order: which cells are kept after a decoding step: "random" ones, or those of highest "confidence".
        pick: "sample" draws at `temperature`; "mean" takes, for each digit of a factorised vocabulary whose digits are
            ordered (FSQ), the value nearest the mean of its distribution: least squared error, no variety.
        choice_temperature: of the Gumbel noise added to the confidence that decides which cells are kept, in
            proportion to the share of decoding steps still to come, so that the last has none. 0 is none; the code
            published with MaskGIT has 4.5.
    """

    steps: int = 2
    temperature: float = 0.0
    order: Literal["confidence", "random"] = "confidence"
    pick: Literal["sample", "mean"] = "sample"
    choice_temperature: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.choice_temperature < math.inf:
            raise HwmError(f"choice_temperature={self.choice_temperature} must be finite and at least 0")
        if self.choice_temperature and self.order == "random":
            raise HwmError(
                f"choice_temperature={self.choice_temperature} is of noise on the confidence, which order='random' "
                "does not heed: set order to 'confidence', or leave choice_temperature at 0"
            )

    def counts(self, cells: int) -> tuple[int, ...]:
        """Cells of a step that are still masked after each decoding step, the last 0: `masked_counts`."""
        return masked_counts(self.steps, cells)

    def keep_score(self, logp: Tensor, generator: Generator = None, *, to_come: float = 0.0) -> Tensor:
        """What decides which cells are kept, given their log-probabilities: confidence, noisy or not, or chance.

        Args:
            to_come: share of the decoding steps that come after this one, 0 at the last.
        """
        if self.order == "random":
            return uniform_like(logp, generator)
        scale = self.choice_temperature * to_come
        return logp + scale * gumbel(logp, generator) if scale else logp


def corrupt(ids: Tensor, rate: Tensor, vocab: int, generator: torch.Generator | None = None) -> Tensor:
    """Replace the ids of each cell, with probability `rate` (broadcast), by ones drawn uniformly from the vocabulary.

    At play the past is the model's own doing; training on wrong tokens keeps it from trusting the past too much.
    """
    hit_BHS = torch.rand(ids.shape[:3], device=ids.device, generator=generator) < rate
    return torch.where(like(hit_BHS, ids), torch.randint(vocab, ids.shape, device=ids.device, generator=generator), ids)


def move_digits(ids: Tensor, rate_B: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Move each digit of each token by itself, with a clip's probability, by one up or down; from an end, inward.

    The small errors of a model whose digits are ordered, as those of finite scalar quantisation are.
    """
    digits = split_digits(ids, levels)
    hit = torch.rand(digits.shape, device=ids.device) < rate_B.view(-1, *(1,) * ids.dim())
    up = torch.rand(digits.shape, device=ids.device) < 0.5
    up = torch.stack(
        [(up[..., i] | (digits[..., i] == 0)) & (digits[..., i] < n - 1) for i, n in enumerate(levels)], -1
    )
    return join_digits(torch.where(hit, digits + 2 * up - 1, digits), levels)


def like(cells_BHS: Tensor, ids: Tensor) -> Tensor:
    """What is said of cells, shaped to broadcast over their ids."""
    return cells_BHS.view(*cells_BHS.shape, *(1,) * (ids.ndim - cells_BHS.ndim))


def corruption_rate(batch: int, most: float, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """(B, 1, 1): most * U(0, 1), drawn for each sample (the release draws once a batch)."""
    return most * torch.rand(batch, 1, 1, device=device, generator=generator)


def cosine_mask(ratio_BH: Tensor, cells: int, generator: torch.Generator | None = None) -> Tensor:
    """(B, H, S) bool: each cell masked with probability `ratio`, and one cell at least, so that no loss is empty."""
    score = torch.rand(*ratio_BH.shape, cells, device=ratio_BH.device, generator=generator)
    return (score < ratio_BH[..., None]) | (score <= score.amin(-1, keepdim=True))


def mask_future(
    ids: Tensor,
    vocab: int,
    *,
    non_mlm: float = 0.5,
    fully_masked: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """What a model is shown of future steps, and which cells it must guess (arXiv 2506.01182, section on Masked-HWM).

    1. With probability `non_mlm` a sample is "closer to autoregressive": the first masked step f is drawn uniformly,
       the steps before it are shown whole, and every token from f on is replaced at random with probability 1 - c,
       where c starts at U(0.25, 1) and shrinks by U(0.9, 1) from step to step. Else f = 0.
    2. Each step from f on has its own ratio cos(pi/2 U(0, 1)), mean 2/pi; each of its cells is masked with that
       probability, and one at least.

    The release draws the mode once a batch; here each sample draws its own. Masks are drawn on the host (`Cells`), ids
    on their device.

    Args:
        fully_masked: share of steps masked whole, as a missing step is at the first decoding step. 0 in the paper.
        generator: of the host; for ids that are there.

    Returns:
        visible ids, and masked bool (B, H, S), on the host; ids at masked cells are not to be looked at.
    """
    batch, steps, cells = ids.shape[:3]

    def uniform(*shape: int, low: float = 0.0) -> Tensor:
        return low + (1 - low) * torch.rand(*shape, generator=generator)

    autoregressive_B1 = uniform(batch, 1) < non_mlm
    first_B1 = torch.where(autoregressive_B1, (uniform(batch, 1) * steps).long().clamp(max=steps - 1), 0)
    late_BH = torch.arange(steps) >= first_B1
    shrink_BH = torch.where(torch.arange(steps) > first_B1, uniform(batch, steps, low=0.9), 1.0)
    keep_BH = uniform(batch, 1, low=0.25) * shrink_BH.cumprod(1)
    rate_BH = torch.where(autoregressive_B1 & late_BH, 1 - keep_BH, 0.0)
    visible = corrupt(ids, sent(rate_BH, ids.device)[..., None], vocab, generator)
    ratio_BH = torch.cos(math.pi / 2 * uniform(batch, steps))
    ratio_BH = torch.where(uniform(batch, steps) < fully_masked, 1.0, ratio_BH)
    return visible, cosine_mask(ratio_BH, cells, generator) & late_BH[..., None]


def clip_rates(
    batch: int,
    steps: int,
    *,
    max_corrupt: float = 0.2,
    non_mlm: float = 0.5,
    prompt: int = 8,
    fully_masked: float = 0.0,
    least_kept: float = 0.25,
    first: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """How strongly each step of a training clip is corrupted and masked, as documented for the released training code;
    drawn on the host, as the masks are.

    1. Every digit of every token, of the first step too, is replaced with probability u, u ~ U(0, max_corrupt).
    2. With probability `non_mlm` a clip is "closer to autoregressive": the first masked step f is uniform on
       prompt..T-1, and from f on every digit is also replaced with probability 1 - c, where c starts at
       U(least_kept, 1) and is multiplied by a U(0.9, 1) at f and at every step after it. Else f = `first`.
    3. Each step from f on has its own mask ratio cos(pi/2 U(0, 1)).

    The release draws u and f once a batch; here each clip draws its own. Both replacements of a digit are uniform, so
    they are made as one, with probability 1 - (1 - u) c.

    Args:
        fully_masked: share of the masked steps that are masked whole. 0 in the release.
        first: the first step that may be masked, 1 in the release.

    Returns:
        rate (B, T): the probability that a digit is replaced. ratio (B, T): that a token is masked; 0 before f.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    step_T, prompt = torch.arange(steps), max(first, min(prompt, steps - 1))
    keep_B1 = 1 - uniform(batch, 1, high=max_corrupt)
    autoregressive_B1 = uniform(batch, 1) < non_mlm
    drawn_B1 = (prompt + (uniform(batch, 1) * (steps - prompt)).long()).clamp(max=steps - 1)
    late_BT = step_T >= torch.where(autoregressive_B1, drawn_B1, first)
    shrink_BT = torch.where(late_BT, uniform(batch, steps, low=0.9), 1.0).cumprod(1)
    drift_BT = torch.where(autoregressive_B1 & late_BT, uniform(batch, 1, low=least_kept) * shrink_BT, 1.0)
    ratio_BT = torch.cos(math.pi / 2 * uniform(batch, steps))
    ratio_BT = torch.where(uniform(batch, steps) < fully_masked, 1.0, ratio_BT)
    return 1 - keep_B1 * drift_BT, torch.where(late_BT, ratio_BT, 0.0)


def corrupt_digits(
    ids_BTS: Tensor, rate_BT: Tensor, levels: tuple[int, ...], generator: torch.Generator | None = None
) -> Tensor:
    """Replace each digit of each token by itself, with a step's probability, by a uniform one."""
    digits = split_digits(ids_BTS, levels)
    drawn = [torch.randint(n, ids_BTS.shape, device=ids_BTS.device, generator=generator) for n in levels]
    hit = torch.rand(digits.shape, device=ids_BTS.device, generator=generator) < rate_BT[..., None, None]
    return join_digits(torch.where(hit, torch.stack(drawn, -1), digits), levels)


def masked_counts(steps: int, cells: int) -> tuple[int, ...]:
    """Cells still masked after each of the decoding steps: ceil(cos(pi/2 k/K) S) for k = 1..K, the last 0.

    Every decoding step settles one cell at least and leaves one for each step to come, so that all K are used; there
    are at most S of them.
    """
    steps, counts, left = min(steps, cells), [], cells
    for k in range(1, steps):
        left = max(min(math.ceil(math.cos(math.pi / 2 * k / steps) * cells), left - 1), steps - k)
        counts.append(left)
    return (*counts, 0)


def remask(score_S: Tensor, masked_S: Tensor, count: int) -> Tensor:
    """The `count` masked cells of lowest score stay masked: bool (..., S). Settled cells stay settled."""
    score_S = score_S.masked_fill(~masked_S, math.inf)
    chosen = score_S.topk(count, -1, largest=False).indices
    return torch.zeros_like(masked_S).scatter_(-1, chosen, True)


def pick(logits_V: Tensor, sampler: MaskGITSampler, generator: Generator = None) -> tuple[Tensor, Tensor]:
    """One id for each distribution, and its log-probability (at temperature 1): (...), (...)."""
    logp_V = logits_V.float().log_softmax(-1)
    if sampler.pick == "mean":
        value_V = torch.arange(logits_V.shape[-1], device=logits_V.device, dtype=torch.float32)
        ids = (logp_V.exp() @ value_V).round().long()
    elif sampler.temperature > 0:
        ids = (logp_V / sampler.temperature + gumbel(logp_V, generator)).argmax(-1)
    else:
        ids = logp_V.argmax(-1)
    return ids, logp_V.gather(-1, ids[..., None])[..., 0]


def chunked_cross_entropy(
    h_ND: Tensor, ids_N: Tensor, head: Callable[[Tensor], Tensor], vocab: int, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of tokens, in nats; 0 of none.

    Logits are made one chunk at a time, and made again in the backward pass: those of one window of three Cosmos
    latents would fill 750 MiB. `F.linear_cross_entropy` chunks too, but not with label smoothing, not in the type of
    the autocast around it, and behind the back of a head that is sharded.

    Args:
        h_ND, ids_N: hidden states, and what to guess.
        head: hidden states -> logits; it draws nothing at random.
    """

    def part(h_MD: Tensor, ids_M: Tensor) -> Tensor:
        return F.cross_entropy(head(h_MD).float(), ids_M, reduction="sum", label_smoothing=smoothing)

    rows = max(1, LOGITS_AT_ONCE // vocab)
    if h_ND.shape[0] <= rows:
        total = part(h_ND, ids_N)
    else:
        pieces = zip(h_ND.split(rows), ids_N.split(rows), strict=True)
        total = torch.stack(
            [checkpoint(part, h, y, use_reentrant=False, preserve_rng_state=False) for h, y in pieces]
        ).sum()
    return total / max(1, h_ND.shape[0])


def digit_cross_entropy(
    parts_N: tuple[Tensor, ...], digits_NL: Tensor, masked_N: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """As `chunked_cross_entropy` for ids made of digits: the sum over digits, so that the two are in the same unit.

    The logits are few, so they may be made for every token, and those that are not masked weigh nothing: shapes stay
    fixed, which keeps memory even and `torch.compile` content.

    Args:
        parts_N: for each digit, logits (N, level).
        masked_N: the tokens that count; None is all.
    """
    nll_N = sum(
        F.cross_entropy(part.float(), digit, reduction="none", label_smoothing=smoothing)
        for part, digit in zip(parts_N, digits_NL.unbind(-1), strict=True)
    )
    return masked_mean(nll_N, masked_N)  # type: ignore[arg-type]


def masked_mean(x_N: Tensor, masked_N: Tensor | None) -> Tensor:
    """Mean of the masked ones, or of all; 0 of none."""
    if masked_N is None:
        return x_N.sum() / max(1, len(x_N))
    return (x_N * masked_N).sum() / masked_N.sum().clamp(min=1)
