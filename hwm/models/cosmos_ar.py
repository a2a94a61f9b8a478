"""Cosmos-Predict1's autoregressive world models: a decoder that predicts video tokens one after another.

Sources: github.com/nvidia-cosmos/cosmos-predict1 (Apache-2.0), its models of 4, 12, 5 and 13 billion parameters, and
Cosmos (arXiv 2501.03575). Parameters have their published names. Actions are ours.

Shape suffixes: B batch, T latent step, L token of a pass, S cells of a step, C tokens of a text, E its width, K actions
a step, A action dimension, D width, V logits, g heads of keys and values, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.base import WorldModel, join
from hwm.models.cosmos_decoder import Decoder
from hwm.models.cosmos_step import Grid, Kept
from hwm.models.cosmos_texts import Text
from hwm.models.heads import DigitHead, TokenHead, vocabulary
from hwm.nn.actions import ActionEncoder
from hwm.nn.gqa import GroupedAttention, MarkedMemory, RMSNorm, SwiGLU, TokenMemory
from hwm.nn.rope import Table, Yarn, rope_3d, sincos_3d
from hwm.nn.tokens import DigitTable
from hwm.nn.views import ViewEmbedding
from hwm.objectives.maskgit import corrupt, corruption_rate
from hwm.objectives.next_token import GREEDY, NextTokenSampler, choose, draw
from hwm.types import Batch, DataSpec, Generator, Prediction, check_ids

ROWS_MULTIPLE = 64  # published tables with an id for the beginning are filled up to a multiple of this


class Pass(NamedTuple):
    """What the blocks know of the tokens of a pass.

    Attributes:
        table: rotary tables (L, d).
        absolute: (L, D), added before every block, or None.
        start: the place of the first of them, as `GroupedAttention` takes it.
        text: what a block with cross-attention reads, or None.
    """

    table: Table
    absolute: Tensor | None
    start: int | Tensor
    text: Text | None


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to a text where there is one, and a SwiGLU; residual, each after an RMSNorm."""

    def __init__(self, config: CosmosAR.Config, reads_text: bool) -> None:
        super().__init__()
        c, dtype = config, config.torch_dtype
        heads = (c.dim, c.heads, c.kv_heads, c.head_dim, c.norm_eps)
        self.attention_norm, self.attention = RMSNorm(c.dim, c.norm_eps, dtype), GroupedAttention(*heads, dtype=dtype)
        self.cross_attention = None
        if reads_text:
            self.cross_attention_norm = RMSNorm(c.dim, c.norm_eps, dtype)
            self.cross_attention = GroupedAttention(*heads, keys_dim=c.context_dim, dtype=dtype)
        self.ffn_norm, self.feed_forward = RMSNorm(c.dim, c.norm_eps, dtype), SwiGLU(c.dim, c.mlp_dim, dtype)

    def forward(self, x_BLD: Tensor, now: Pass, memory: TokenMemory | MarkedMemory | None = None) -> Tensor:
        if now.absolute is not None:
            x_BLD = x_BLD + now.absolute
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), now.table, memory, now.start)
        if self.cross_attention is not None and now.text is not None:
            known = memory.text if memory is not None else None
            keys = known or self.cross_attention.keys(now.text.context)
            queries = self.cross_attention.queries(self.cross_attention_norm(x_BLD))
            x_BLD = x_BLD + self.cross_attention.over(queries, keys, mask_BM=now.text.mask)
        out: Tensor = x_BLD + self.feed_forward(self.ffn_norm(x_BLD))
        return out


class Output(TokenHead):
    """Logits over the whole vocabulary, without a bias."""

    def __init__(self, vocab: int, dim: int, dtype: torch.dtype) -> None:
        nn.Linear.__init__(self, dim, vocab, bias=False, dtype=dtype)
        self.vocab = vocab

    def init(self) -> None:
        std = self.in_features**-0.5
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)


class CosmosAR(WorldModel, name="cosmos_ar"):
    """Each token is predicted from all tokens before it, those of its own step included, in raster order.

    Keys and values are kept, so that a token costs one pass of one token. Positions are computed from the place in the
    grid, so that any grid will do.

    Actions: at the place that predicts a token of step t, an embedding of the actions that lead to step t is added to
    what is read. That is one place before the token, so that the first token of a step knows its action, too, and no
    token of an earlier step does.

    Attributes:
        text: what a model of a text reads in `loss`, `predict` and `teacher_forced`: one row, for every clip. None is
            as a text of zeros.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        """The defaults are those of Cosmos-Predict1-4B, but for window_stride, which nothing published has.

        Attributes:
            dim, depth, mlp_dim: width, blocks, and width inside the SwiGLU.
            heads, kv_heads, head_dim: heads of queries, heads of keys and values, and the width of one.
            rope_theta: of the rotary frequencies.
            yarn_scale: by how much slow rotary frequencies are slowed down (2 in 12B and 13B); 1: none.
            yarn_fast, yarn_slow, yarn_grid: as `hwm.nn.rope.Yarn`: turns between which the slowing ends, over the steps
                and the side of a grid.
            absolute: also add sine and cosine positions before every block, rounded to this type (5B and 13B:
                bfloat16); "": none.
            context_dim: width of the encoded text that blocks attend to (5B and 13B: 1024); 0: no text.
            context_every: every so many blocks one attends to the text, the first of them included (5B and 13B: 1).
            begin: sequences begin with an id of their own, which is never predicted (5B and 13B).
            norm_eps: of all norms.
            factorized: embed and predict the digits that ids are made of (`LatentSpec.levels`) instead of whole ids.
            actions: add embeddings of the actions. No published model has them.
            action_deltas: embed each action's change since the one before, too.
            max_corrupt: in training, tokens are shown replaced at random, at a rate of U(0, max_corrupt) a clip, so
                that a rollout does not trust all that it has made; those to be predicted stay. Not published.
            own_past: in training, up to this share of the tokens of every other clip is shown as the model itself
                predicts them from the truth before. For a second stage: a model that knows nothing yet would learn to
                look away. Not published.
            dtype: of the weights.
            sampler: how tokens are drawn unless a call says otherwise.
        """

        past: int = 4
        window_stride: int = 2
        dim: int = 4096
        depth: int = 16
        mlp_dim: int = 14336
        heads: int = 32
        kv_heads: int = 8
        head_dim: int = 128
        rope_theta: float = 500_000.0
        yarn_scale: float = 1.0
        yarn_fast: float = 4.0
        yarn_slow: float = 1.0
        yarn_grid: tuple[int, int] = (3, 40)
        absolute: Literal["", "bfloat16", "float32"] = ""
        context_dim: int = 0
        context_every: int = 1
        begin: bool = False
        norm_eps: float = 1e-5
        factorized: bool = False
        actions: bool = False
        action_deltas: bool = False
        max_corrupt: float = 0.0
        own_past: float = 0.0
        dtype: Literal["float32", "bfloat16"] = "float32"
        sampler: NextTokenSampler = field(default_factory=NextTokenSampler)
        in_validation: ClassVar[Mapping[str, Any]] = {"max_corrupt": 0.0, "own_past": 0.0}

        @property
        def torch_dtype(self) -> torch.dtype:
            return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

        @property
        def yarn(self) -> Yarn | None:
            if self.yarn_scale == 1:
                return None
            return Yarn(self.yarn_scale, self.yarn_fast, self.yarn_slow, *self.yarn_grid)

    cache_axis = 0
    heeds_prompt = True
    adamw_only = ("tok_embeddings", "output", "actions")
    fresh = ("actions",)

    @classmethod
    def tiny(cls) -> Config:
        """A config that tests and dry runs use."""
        return cls.Config(
            dim=32, depth=2, mlp_dim=48, heads=4, kv_heads=2, head_dim=12, past=3, window_stride=1, actions=True,
            sampler=NextTokenSampler(temperature=0.0),
        )  # fmt: skip

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c, latent, dtype = config, spec.latent, config.torch_dtype
        self.vocab = vocabulary(self.name, latent, c.factorized)
        if c.factorized and c.begin:
            raise HwmError("factorized=True has no digits for the id of the beginning: it needs begin=False")
        if c.context_every < 1:
            raise HwmError(f"context_every={c.context_every}: every how many blocks one attends to the text, 1 for all")
        if c.action_deltas and not c.actions:
            raise HwmError("action_deltas=True changes how actions are read, and needs actions=True")
        if not (0 <= c.max_corrupt <= 1 and 0 <= c.own_past <= 1):
            raise HwmError(f"max_corrupt={c.max_corrupt} and own_past={c.own_past} are shares of the tokens, 0 to 1")
        rows = math.ceil((self.vocab + 1) / ROWS_MULTIPLE) * ROWS_MULTIPLE if c.begin else self.vocab
        self.tok_embeddings: nn.Embedding
        self.output: TokenHead
        self.views = ViewEmbedding(latent, c.dim).to(dtype)
        if c.factorized:
            self.tok_embeddings, self.output = DigitTable(latent.levels, c.dim, dtype), DigitHead(latent.levels, c.dim)
            self.output.to(dtype)
        else:
            self.tok_embeddings = nn.Embedding(rows, c.dim, dtype=dtype)
            self.output = Output(self.vocab, c.dim, dtype)
        self.layers = nn.ModuleList(
            DecoderBlock(c, reads_text=c.context_dim > 0 and i % c.context_every == 0) for i in range(c.depth)
        )
        self.norm = RMSNorm(c.dim, c.norm_eps, dtype)
        self.text: Text | None = None
        self.kept = Kept()
        self.actions = None
        if c.actions:
            encoder = ActionEncoder(spec, c.dim, positions=1, ordered=True, changes=c.action_deltas, deep=False)
            self.actions = encoder.to(dtype)
        self.init_weights()

    def init_weights(self) -> None:
        """As published: N(0, 1) for embeddings; truncated normals of 0.02, of less with depth where a branch ends."""
        for i, layer in enumerate(self.layers):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear):
                    late = name.endswith(("wo", "w2", "w3"))
                    nn.init.trunc_normal_(module.weight, std=0.02 / math.sqrt(2 * (i + 1)) if late else 0.02)
        self.output.init()

    def units(self) -> Iterable[nn.Module]:
        return self.layers

    # ------------------------------------------------------------------ tokens in order
    def sequence(self, latents_BTHW: Tensor) -> Tensor:
        """Ids in the order in which they are predicted (B, L), after the one for the beginning where there is one."""
        return F.pad(latents_BTHW.flatten(1), (int(self.config.begin), 0), value=self.vocab)

    def hidden(
        self,
        ids_BL: Tensor,
        grid: Grid,
        *,
        start: int | Tensor = 0,
        text: Text | None = None,
        actions_BTD: Tensor | None = None,
        memory: Sequence[TokenMemory] | Sequence[MarkedMemory] | None = None,
    ) -> Tensor:
        """Normed states (B, L, D), of which the one at a token predicts the next.

        Args:
            ids_BL: tokens start..start+L of a sequence over the grid.
            start: a tensor (1,), for a pass over one token with `MarkedMemory`; then nobody checks that the place is
                one of the grid.
            text: None is as a text of zeros.
            actions_BTD: embedded actions of its steps.
            memory: of the tokens before `start`, and with room for these; a block each.
        """
        c, device, length = self.config, ids_BL.device, ids_BL.shape[1]
        lead = int(c.begin)
        if isinstance(start, int):
            self.check_places(start, start + length, grid)
        place_L = start + torch.arange(length, device=device)
        cells = grid[1] * grid[2]
        x_BLD = self.views.at(self.tok_embeddings(ids_BL), place_L, cells, lead)
        if actions_BTD is not None:
            x_BLD = x_BLD + actions_BTD.index_select(1, (place_L + 1 - lead) // cells)
        longest = self.longest(grid)
        table = rope_3d(tuple(range(longest)), grid[1:], c.head_dim, device, theta=c.rope_theta, yarn=c.yarn, lead=lead)
        absolute = None
        if c.absolute:
            positions = sincos_3d(longest, grid[1:], c.dim, device, getattr(torch, c.absolute), lead)
            absolute = positions[place_L].to(x_BLD.dtype)
        if c.context_dim and (text is not None or memory is None):
            # of zeros, cross-attention reads nothing at all: its values are zero; but in training it is in use
            text = (text or Text(x_BLD.new_zeros(1, 1, c.context_dim))).to(len(x_BLD), x_BLD)
        turned = self.norm.weight.dtype  # of queries and keys, behind norms: the table is cast once for all blocks
        cos, sin = (x[place_L].to(turned) for x in table)
        now = Pass((cos, sin), absolute, start, text)
        for i, layer in enumerate(self.layers):
            x_BLD = layer(x_BLD, now, None if memory is None else memory[i])
        out: Tensor = self.norm(x_BLD)
        return out

    def longest(self, grid: Grid) -> int:
        """Steps of which tables are made: those of shorter grids begin alike, and so can be shared."""
        return max(grid[0], self.config.past + self.config.horizon)

    def check_places(self, start: int, stop: int, grid: Grid) -> None:
        """Raise `HwmError` where a grid does not have these tokens."""
        lead = int(self.config.begin)
        if not 0 <= start < stop <= lead + math.prod(grid):
            raise HwmError(
                f"tokens {start} to {stop} are not of a grid of {grid} (steps, rows, columns), which has "
                f"{lead + math.prod(grid)}" + (" with the one for its beginning" if lead else "")
            )

    def logits(self, ids_BL: Tensor, grid: Grid, text: Text | None = None) -> Tensor:
        """Logits (B, L, V) of one pass without actions over the first L tokens of a grid: row n predicts token n + 1.

        Args:
            grid: steps, rows and columns: any, whatever grid the model was built for.

        Raises:
            HwmError: there are more tokens than the grid has, or ids that are not of the vocabulary.
        """
        check_ids(ids_BL, self.vocab + int(self.config.begin))
        out: Tensor = self.output(self.hidden(ids_BL, grid, text=text))
        return out

    def fit(self, spec: DataSpec) -> None:
        """Take the data of a spec from here on, on another grid of the same ids: no weight depends on the grid.

        Raises:
            HwmError: its ids are not those of this model.
        """
        mine, theirs = self.spec.latent, spec.latent
        if (mine.vocab, self.output.levels or theirs.levels) != (theirs.vocab, theirs.levels):
            raise HwmError(
                f"this model knows {mine.vocab} ids{f' of digits {mine.levels}' if self.output.levels else ''}, and "
                f"the data has {theirs}"
            )
        if mine.views != theirs.views:
            self.views = ViewEmbedding(theirs, self.config.dim).to(self.tok_embeddings.weight)
        self.spec = replace(self.spec, latent=theirs, tokenizer=spec.tokenizer, fps=spec.fps)

    def read_text(self, path: Path) -> None:
        """Read a text from here on: `Text.of_file`.

        Raises:
            HwmError: the file holds no text, or this model reads none, or of another width.
        """
        if not self.config.context_dim:
            super().read_text(path)
        text, wide = Text.of_file(path), self.config.context_dim
        if text.context.shape[-1] != wide:
            raise HwmError(f"{path} holds vectors of {text.context.shape[-1]}, and this model reads those of {wide}")
        self.text = text

    def embed_actions(self, batch: Batch) -> Tensor | None:
        """(B, T, D), in a model that has actions."""
        return None if self.actions is None else self.actions(batch.actions, batch.embodiment).transpose(0, 1)

    def check_actions(self, batch: Batch) -> None:
        """A model that takes no actions takes those of any robot."""
        if self.actions is not None:
            super().check_actions(batch)

    def grid(self, steps: int) -> Grid:
        return (steps, *self.spec.latent.grid)

    # ------------------------------------------------------------------ the world model
    def clip_states(self, batch: Batch, prompt: int) -> Tensor:
        """States (B, T - prompt, S, D) that predict the tokens of a clip's steps from `prompt` on.

        One pass over all tokens but the last, which predicts nothing of the clip.
        """
        ids_BL, steps, cells = self.sequence(batch.latents), batch.latents.shape[1], self.spec.latent.cells
        states_BLD = self.hidden(
            ids_BL[:, :-1], self.grid(steps), text=self.text, actions_BTD=self.embed_actions(batch)
        )
        return states_BLD[:, -(steps - prompt) * cells :].unflatten(1, (-1, cells))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of every token of the steps after the first, or after the prompt, in nats; nothing of the
        clip is missing."""
        self.check(batch)
        steps, first = batch.latents.shape[1], max(1, batch.prompt)
        self.check_clip(steps)
        shown, target_BHS = batch.window(0, steps, steps), batch.latents[:, first:].flatten(2)
        if most := self.config.max_corrupt:
            ids_BTS = shown.latents.flatten(2)
            corrupted_BTS = corrupt(ids_BTS, corruption_rate(len(ids_BTS), most, ids_BTS.device), self.vocab)
            shown = replace(shown, latents=corrupted_BTS.view_as(shown.latents))
        if self.config.own_past:
            shown = replace(shown, latents=self.with_own_guesses(shown))
        states_BHSD = self.clip_states(shown, first)
        loss, accuracy = self.output.loss(states_BHSD, target_BHS)
        return loss, {"accuracy": accuracy}

    @torch.no_grad()
    def with_own_guesses(self, shown: Batch) -> Tensor:
        """The latents of a clip with some tokens as the model predicts them (Mihaylova and Martins, arXiv 1906.07651).

        One pass over half of the clips, from what is shown of them, tells all guesses.
        """
        half = (len(shown.latents) + 1) // 2
        clips = Batch(shown.latents[:half], shown.actions[:half], shown.embodiment)
        guesses_BL = self.pick(self.output(self.clip_states(clips, 1)), self.config.sampler).flatten(1)
        true_BL = clips.latents[:, 1:].flatten(1)
        rate_B1 = corruption_rate(half, self.config.own_past, true_BL.device)[..., 0]
        mixed_BL = torch.where(torch.rand(true_BL.shape, device=true_BL.device) < rate_B1, guesses_BL, true_BL)
        own = torch.cat([clips.latents[:, :1], self.by_cell(mixed_BL)], 1)
        return torch.cat([own, shown.latents[half:]])

    def pick(self, logits_V: Tensor, sampler: NextTokenSampler, generator: Generator = None) -> Tensor:
        """A token of each distribution: (..., V) -> (...)."""
        return self.output.join(tuple(draw(part, sampler, generator) for part in self.output.draws(logits_V)))

    def pick_by(self, logits_V: Tensor, sampler: NextTokenSampler, uniform: Sequence[Tensor] | None) -> Tensor:
        """The same by uniform numbers of the shapes of `TokenHead.draws`; a greedy sampler needs none."""
        parts = self.output.draws(logits_V)
        by: Sequence[Tensor | None] = uniform or [None] * len(parts)
        return self.output.join(tuple(choose(part, sampler, u) for part, u in zip(parts, by, strict=True)))

    def train(self, mode: bool = True) -> CosmosAR:
        """As of any module; who trains does not decode for a while, and gives back what decoding keeps."""
        if mode:
            self.kept.forget()
        return super().train(mode)

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        *,
        sampler: NextTokenSampler | None = None,
        logits: bool = False,
        cache: Any = None,
        generator: Generator = None,
    ) -> Prediction:
        """Token by token. Logits are those from which the tokens were drawn, each given the model's own tokens before.

        The cache holds all given tokens but the last, to which the actions of the first missing step are added.
        """
        self.check(batch)
        c, known = self.config, batch.latents.shape[1]
        self.check_window(known, batch.missing)
        check_ids(batch.latents, self.vocab)
        ids_BL, grid = self.sequence(batch.latents), self.grid(known + batch.missing)
        decoder = Decoder(self, grid, len(ids_BL), self.embed_actions(batch), text=self.text, cache=cache)
        made_BL, logits_BLV = decoder.go_on(
            ids_BL, batch.missing * self.spec.latent.cells, sampler or c.sampler, generator, keep_logits=logits
        )
        shown = None if logits_BLV is None else self.by_cell(logits_BLV)
        return Prediction(self.by_cell(made_BL), shown, self.output.levels, decoder.cache(ids_BL.shape[1] - 1))

    @torch.no_grad()
    def teacher_forced(self, batch: Batch, prompt: int) -> Prediction:
        """One pass for all steps whose window in a rollout begins at the same step."""
        self.check(batch)
        check_ids(batch.latents, self.vocab)
        if not 1 <= prompt < batch.latents.shape[1]:
            raise HwmError(
                f"a prompt of {prompt} steps of {batch.latents.shape[1]} leaves nothing to tell, or to tell from"
            )
        parts, done, total = list[Any](), prompt, batch.latents.shape[1]
        while done < total:
            start, stop = self.window_start(done), done + 1
            while stop < total and self.window_start(stop) == start:
                stop += 1
            states_BHSD = self.clip_states(batch.window(start, stop, stop), done - start)
            logits_BHSV = self.output(states_BHSD)
            ids_BHS = self.pick(logits_BHSV, GREEDY)
            likeliest, logits = self.by_cell(ids_BHS.flatten(1)), self.by_cell(logits_BHSV.flatten(1, 2))
            parts.append(Prediction(likeliest, logits, self.output.levels))
            done = stop
        return join(parts)

    def by_cell(self, x_BL: Tensor) -> Tensor:
        """What is said of tokens, (B, H*S, ...), as (B, H, rows, columns, ...)."""
        return x_BL.unflatten(1, (-1, *self.spec.latent.grid))
