"""What all masked-token world models share: embedding, head, the loss, and MaskGIT sampling.

Shape suffixes: B batch, T latent step, P past step, H missing (target) step, S = H*W cells, D width, V logits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.models.heads import token_embedding, token_head, vocabulary
from hwm.objectives import maskgit
from hwm.objectives.cells import Cells
from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import Batch, DataSpec, Generator, Prediction


class MaskedModel(WorldModel):
    """Guesses masked tokens of future steps from the past, the actions, and the tokens that are not masked.

    A backbone says what is kept of the past (`observe`), and what one decoding step makes of the missing steps
    (`decoding_step`). The loss is one decoding step on partly masked future steps; sampling is a few of them, each
    with fewer masked cells.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        """
        Attributes:
            dim, depth, heads, mlp_ratio: width, blocks, attention heads, and how much wider the MLPs are.
            mlp_drop: dropout in the MLPs (0.4 in the released configs, of which the paper does not speak).
            max_corrupt: past and visible tokens are replaced at random at a rate of U(0, max_corrupt).
            digit_moves: digits of ids shown in training are moved by one, up or down, at a rate of U(0, digit_moves),
                drawn for each clip.
            non_mlm: probability of the training mode that is closer to autoregressive; see `maskgit.mask_future`.
            fully_masked: share of the future steps that are masked whole in training, as at the first decoding step.
            label_smoothing: of the cross-entropy.
            factorized: embed and predict the digits that ids are made of (`LatentSpec.levels`) instead of whole ids.
            sampler: how missing steps are filled in unless a call says otherwise.
        """

        dim: int = 512
        depth: int = 24
        heads: int = 8
        mlp_ratio: float = 4.0
        mlp_drop: float = 0.0
        max_corrupt: float = 0.2
        digit_moves: float = 0.0
        non_mlm: float = 0.5
        fully_masked: float = 0.0
        label_smoothing: float = 0.0
        factorized: bool = False
        sampler: MaskGITSampler = field(default_factory=MaskGITSampler)
        in_validation: ClassVar[Mapping[str, Any]] = {
            "max_corrupt": 0.0, "digit_moves": 0.0, "non_mlm": 0.0, "fully_masked": 0.0, "label_smoothing": 0.0,
        }  # fmt: skip
        retired: ClassVar[Mapping[str, Any]] = {"own_past": 0.0}

    blocks: nn.ModuleList
    parallel = False
    cache_axis = 1
    heeds_prompt = True
    adamw_only = ("embed", "head")

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.vocab = vocabulary(self.name, spec.latent, config.factorized)
        if config.digit_moves and not spec.latent.levels:
            raise HwmError(
                f"digit_moves={config.digit_moves}: ids of {spec.latent.vocab} without levels have no digits"
            )
        self.embed, self.head = self.make_embedding(), self.make_head()

    def make_embedding(self) -> nn.Module:
        return token_embedding(self.spec.latent, self.config.dim, self.config.factorized)

    def make_head(self) -> Any:
        return token_head(self.spec.latent, self.config.dim, self.config.factorized)

    def units(self) -> Iterable[nn.Module]:
        return self.blocks

    @abstractmethod
    def observe(self, ids_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, missing: int, cache: Any = None) -> Any:
        """All that decoding the last `missing` steps needs of the past, and of the actions up to theirs."""

    @abstractmethod
    def decoding_step(self, window: Any, ids_BHS: Tensor, masked_BHS: Tensor) -> Tensor:
        """Hidden states (B, H, S, D) of the missing steps, of which some tokens are known and others masked."""

    def prefill(
        self,
        ids_BPS: Tensor,
        actions_BTKA: Tensor,
        embodiment: str,
        ids_BHS: Tensor,
        masked_BHS: Tensor,
        cache: Any = None,
    ) -> tuple[Any, Tensor]:
        """`observe` and the first `decoding_step` in one: the window, and the hidden states."""
        window = self.observe(ids_BPS, actions_BTKA, embodiment, ids_BHS.shape[1], cache)
        return window, self.decoding_step(window, ids_BHS, masked_BHS)

    def states_of_clip(
        self, past_BPS: Tensor, actions_BTKA: Tensor, embodiment: str, shown_BHS: Tensor, masked_BHS: Tensor
    ) -> Tensor:
        """Hidden states (B, H, S, D) of the steps that a training clip asks for: one decoding step, nothing kept."""
        window = self.observe(past_BPS, actions_BTKA, embodiment, shown_BHS.shape[1])
        return self.decoding_step(window, shown_BHS, masked_BHS)

    def cache_of(self, window: Any) -> object | None:
        """What of an observed window the next prediction may reuse."""
        return None

    def actions_of(self, batch: Batch) -> Tensor:
        """The actions of a batch that the model is conditioned on: (B, T', K, A), or one step more."""
        return batch.actions

    def tokens(self, latents_BTHW: Tensor) -> Tensor:
        """Latents as the model's steps of ids: (B, T, S), or (B, T/G, S, G) where a cell holds G ids."""
        return latents_BTHW.flatten(2)

    def latents(self, ids_BTS: Tensor) -> Tensor:
        """The inverse of `tokens`; also of logits (..., V)."""
        return ids_BTS.unflatten(2, self.spec.latent.grid)

    def split(self, ids_BTS: Tensor, prompt: int = 0) -> tuple[Tensor, Tensor]:
        """A training clip as the past it shows and the steps it asks for, none of which is of the `prompt`."""
        c = self.config
        past = ids_BTS.shape[1] - c.horizon // self.group
        if past < 1:
            raise HwmError(
                f"a clip of {ids_BTS.shape[1] * self.group} steps has no past before its horizon of {c.horizon}: "
                f"train on clips of past + horizon = {c.past + c.horizon} steps"
            )
        return ids_BTS[:, :past], ids_BTS[:, past:]

    def corrupt_and_mask(self, ids_BTS: Tensor, prompt: int = 0) -> tuple[Tensor, Tensor, Cells]:
        """The past shown (B, P, S), the future shown (B, H, S), and where it is masked, of (B, H, S)."""
        c, batch = self.config, ids_BTS.shape[0]
        past_BPS, future_BHS = self.split(ids_BTS, prompt)
        # In the parallel layout each target is the only missing step of a window of its own.
        windows = future_BHS.flatten(0, 1)[:, None] if self.parallel else future_BHS
        shown, masked = maskgit.mask_future(windows, self.vocab, non_mlm=c.non_mlm, fully_masked=c.fully_masked)
        rate_B11 = maskgit.corruption_rate(batch, c.max_corrupt, ids_BTS.device)
        past_BPS = self.moved(maskgit.corrupt(past_BPS, rate_B11, self.vocab))
        shown_BHS = maskgit.corrupt(shown.view_as(future_BHS), rate_B11, self.vocab)
        return past_BPS, shown_BHS, Cells(masked.view(future_BHS.shape[:3]), ids_BTS.device)

    def moved(self, ids_BPS: Tensor) -> Tensor:
        """Ids that are shown, some of whose digits are moved by one."""
        most = self.config.digit_moves
        if not most:
            return ids_BPS
        rate_B = most * torch.rand(len(ids_BPS), device=ids_BPS.device)
        return maskgit.move_digits(ids_BPS, rate_B, self.spec.latent.levels)

    def as_learned_from(self, past_BPS: Tensor, actions_BTKA: Tensor, embodiment: str) -> Tensor:
        """The past of a training clip, corrupted as it is, as the loss shows it."""
        return past_BPS

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of masked tokens in nats; the batch is a whole clip, and nothing of it is missing."""
        self.check(batch)
        ids_BTS, steps, prompt = self.tokens(batch.latents), batch.latents.shape[1], batch.prompt // self.group
        actions = self.actions_of(batch.window(0, steps, steps))
        past_BPS, shown_BHS, cells = self.corrupt_and_mask(ids_BTS, prompt)
        past_BPS = self.as_learned_from(past_BPS, actions, batch.embodiment)
        hidden_BHSD = self.states_of_clip(past_BPS, actions, batch.embodiment, shown_BHS, cells.mask)
        loss, accuracy = self.head.loss(hidden_BHSD, self.split(ids_BTS, prompt)[1], cells, self.config.label_smoothing)
        return loss, {"accuracy": accuracy, "masked": cells.mask.float().mean()}

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        *,
        sampler: MaskGITSampler | None = None,
        logits: bool = False,
        cache: object | None = None,
        generator: Generator = None,
    ) -> Prediction:
        """MaskGIT: all missing steps start masked; each decoding step draws every masked token and keeps some.

        Missing steps are filled in together, each on the same schedule, and see one another as the backbone allows.
        """
        self.check(batch)
        sampler, missing = sampler or self.config.sampler, batch.missing
        self.check_window(batch.latents.shape[1], missing)
        if missing % self.group:
            raise HwmError(f"{self.name} predicts steps in multiples of {self.group}, and {missing} are missing")
        if sampler.pick == "mean" and not self.head.levels:
            raise HwmError('pick="mean" is for factorised vocabularies with ordered digits; use pick="sample"')
        ids_BHS, first, window = self.fill_in(
            self.tokens(batch.latents),
            self.actions_of(batch),
            batch.embodiment,
            missing // self.group,
            sampler,
            cache,
            generator,
        )
        shown = self.latents(self.head.by_id(first)) if logits else None
        return Prediction(self.latents(ids_BHS), shown, self.head.levels, self.cache_of(window))

    def fill_in(
        self,
        ids_BPS: Tensor,
        actions_BTKA: Tensor,
        embodiment: str,
        missing: int,
        sampler: MaskGITSampler,
        cache: Any = None,
        generator: Generator = None,
    ) -> tuple[Tensor, Tensor, Any]:
        """Ids (B, H, S) of the `missing` steps, logits of the first decoding step, and the window."""
        ids_BHS = torch.zeros_like(ids_BPS[:, :1]).repeat_interleave(missing, 1)
        masked_BHS = torch.ones(ids_BHS.shape[:3], dtype=torch.bool, device=ids_BHS.device)
        window, hidden_BHSD = self.prefill(ids_BPS, actions_BTKA, embodiment, ids_BHS, masked_BHS, cache)
        first: Tensor | None = None
        counts = sampler.counts(masked_BHS.shape[2])
        for done, count in enumerate(counts, 1):
            if first is not None:
                hidden_BHSD = self.decoding_step(window, ids_BHS, masked_BHS)
            logits_BHSV = self.head(hidden_BHSD)
            first = logits_BHSV if first is None else first
            drawn = [maskgit.pick(part, sampler, generator) for part in self.head.draws(logits_BHSV)]
            ids_new = self.head.join(tuple(ids for ids, _ in drawn))
            ids_BHS = torch.where(maskgit.like(masked_BHS, ids_new), ids_new, ids_BHS)
            if count:
                logp_BHS = torch.cat([logp for _, logp in drawn], -1).sum(-1)
                score_BHS = sampler.keep_score(logp_BHS, generator, to_come=1 - done / len(counts))
                masked_BHS = maskgit.remask(score_BHS, masked_BHS, count)
        assert first is not None  # a sampler has one decoding step at least
        return ids_BHS, first, window
