"""Hidden states to token ids, and what a model of ids is made of at its ends: whole ids, or the digits of ids.

A vocabulary of 64,000 ids costs a table and a head of 64,000 rows each. Where ids split into digits
(`LatentSpec.levels`), an embedding may be the sum of one small table a digit, and a head one small softmax a digit:
a thousand times fewer weights and much faster learning for small models, at the price that the digits of one cell are
drawn independently.

Shape suffixes: ... any leading axes, D width, V vocabulary, L number of digits, N tokens.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.nn.tokens import DigitTable, TokenEmbedding
from hwm.objectives.cells import Cells
from hwm.objectives.maskgit import chunked_cross_entropy, digit_cross_entropy, masked_mean
from hwm.types import LatentSpec, join_digits, split_digits

ACCURACY_TOKENS = 256


def vocabulary(name: str, latent: LatentSpec, factorized: bool) -> int:
    """How many ids there are.

    Raises:
        HwmError: the model of this name reads ids, or the digits of ids, and this data has none.
    """
    if latent.vocab is None:
        raise HwmError(f"{name} needs discrete latents, and this data has {latent.channels} channels")
    if factorized and not latent.levels:
        raise HwmError("factorized=True needs token ids made of digits, and this tokenizer's spec names no levels")
    return latent.vocab


def token_embedding(latent: LatentSpec, dim: int, factorized: bool) -> TokenEmbedding:
    """An embedding of whole ids, or of their digits."""
    vocab = latent.vocab or 0
    return TokenEmbedding(DigitTable(latent.levels, dim) if factorized else nn.Embedding(vocab, dim), latent)


def token_head(latent: LatentSpec, dim: int, factorized: bool) -> TokenHead:
    """A head of whole ids, or of their digits."""
    return DigitHead(latent.levels, dim) if factorized else TokenHead(latent.vocab or 0, dim)


class TokenHead(nn.Linear):
    """Logits over the whole vocabulary; Xavier, as released."""

    levels: tuple[int, ...] = ()

    def __init__(self, vocab: int, dim: int) -> None:
        super().__init__(dim, vocab)
        self.vocab = vocab

    def init(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def loss(
        self, h_D: Tensor, ids: Tensor, cells: Cells | None = None, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over masked tokens, and the accuracy on some of them: both scalar, the second detached.

        Args:
            h_D, ids: (..., D) hidden states, (...) what to guess.
            cells: the masked ones; None is all.
        """
        h_ND, ids_N = (h_D.flatten(0, -2), ids.flatten()) if cells is None else (cells.of(h_D), cells.of(ids))
        loss = chunked_cross_entropy(h_ND, ids_N, self, self.vocab, smoothing)
        with torch.no_grad():
            every = 1 + h_ND.shape[0] // ACCURACY_TOKENS
            return loss, (self(h_ND.detach()[::every]).argmax(-1) == ids_N[::every]).float().mean()

    def draws(self, logits_V: Tensor) -> tuple[Tensor, ...]:
        """The independent distributions that make up one token, (..., number, values): those of one size together."""
        return (logits_V[..., None, :],)

    def join(self, draws: tuple[Tensor, ...]) -> Tensor:
        """A choice for each distribution of `draws`, (..., number) -> ids."""
        return draws[0][..., 0]

    def by_id(self, logits_V: Tensor) -> Tensor:
        """Logits shaped as the ids they are about, with the logits of one id last."""
        return logits_V


class DigitHead(TokenHead):
    """One small softmax a digit, side by side in (..., sum(levels))."""

    def __init__(self, levels: tuple[int, ...], dim: int) -> None:
        super().__init__(sum(levels), dim)
        self.levels = levels

    def loss(
        self, h_D: Tensor, ids: Tensor, cells: Cells | None = None, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """As `TokenHead.loss`; a token counts as right when all of its digits are.

        Where a token's logits are more than its states, they are made of masked tokens alone; see
        `digit_cross_entropy` for why otherwise of all.
        """
        if cells is not None and self.vocab > h_D.shape[-1]:
            h_D, ids, cells = cells.of(h_D), cells.of(ids), None
        parts_N = self(h_D).flatten(0, -2).split(self.levels, -1)
        digits_NL = split_digits(ids.flatten(), self.levels)
        masked_N = None if cells is None else cells.mask.flatten()
        loss = digit_cross_entropy(parts_N, digits_NL, masked_N, smoothing)
        with torch.no_grad():
            right_NL = torch.stack([part.argmax(-1) for part in parts_N], -1) == digits_NL
            return loss, masked_mean(right_NL.all(-1), masked_N)

    def init(self) -> None:
        """Small, so that each digit starts near uniform: Xavier's bound grows as the softmax shrinks."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def draws(self, logits_V: Tensor) -> tuple[Tensor, ...]:
        sizes = [(level, len(tuple(same))) for level, same in groupby(self.levels)]
        parts = logits_V.split([level * count for level, count in sizes], -1)
        return tuple(part.unflatten(-1, (count, level)) for part, (level, count) in zip(parts, sizes, strict=True))

    def join(self, draws: tuple[Tensor, ...]) -> Tensor:
        return join_digits(torch.cat(draws, -1), self.levels)
