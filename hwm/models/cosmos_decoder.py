"""Decoding with a `CosmosAR`: keys and values that stay in place.

Shape suffixes: B batch, T latent step, L token of a pass, C tokens of a text, E its width, D width, V logits, g heads
of keys and values, d head width.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hwm.models.cosmos_step import Decodable, Grid, last_logits, room_type
from hwm.models.cosmos_texts import Text
from hwm.nn.gqa import KeysValues, TokenMemory
from hwm.objectives.next_token import GREEDY, NextTokenSampler
from hwm.types import Generator


class TokenCache(NamedTuple):
    """Keys and values (B, g, length, d) of the first `length` tokens of a window, a pair for each block."""

    memory: tuple[tuple[Tensor, Tensor], ...]
    length: int


class Decoder:
    """Feeds a model the tokens of a sequence pass after pass, with room for the keys and values of all its tokens.

    Under autocast it computes with weights that are cast once, with the same results (`CastProducts`). Weights that are
    divided among processes stay where they are: blocks put them together when they are called, and are only called.

    Args:
        grid: steps, rows and columns of the whole sequence.
        actions_BTD: embedded actions of its steps.
        text: of one row, or of every row of the batch.
        cache: of its first tokens; it is copied, so that it may serve again.
        fixed: passes over one token all have the same shapes (`FixedStep`); None: on a GPU, where they are captured
            once and replayed.
    """

    def __init__(
        self,
        model: Decodable,
        grid: Grid,
        batch: int,
        actions_BTD: Tensor | None = None,
        *,
        text: Text | None = None,
        cache: TokenCache | None = None,
        fixed: bool | None = None,
    ) -> None:
        self.grid, self.batch, self.actions_BTD = grid, batch, actions_BTD
        self.device = model.tok_embeddings.weight.device
        kind = self.device.type
        divided = any(hasattr(p, "full_tensor") for p in model.layers.parameters())
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and not divided else None
        self.model: Decodable = model.kept.network(model, dtype)
        self.arithmetic: AbstractContextManager[Any] = nullcontext() if divided else torch.autocast(kind, enabled=False)
        self.text = text.to(batch, model.tok_embeddings.weight) if text else None
        self.length = cache.length if cache else 0
        with self.arithmetic:
            told = [None if divided else self._text_keys(layer) for layer in self.model.layers]
        self.step = None
        if (kind == "cuda" and not divided) if fixed is None else fixed:
            self.step = model.kept.step(self, self.model, grid, batch, self.text, told, actions_BTD)
            self.memory = self.step.plain
        else:
            self.memory = [TokenMemory(*self._room(), text) for text in told]
        for memory, before in zip(self.memory, cache.memory if cache else (), strict=cache is not None):
            memory.keys[:, :, : self.length], memory.values[:, :, : self.length] = before
        self.rewind(self.length)

    def feed(self, ids_BL: Tensor) -> Tensor:
        """States (B, L, D) of the next tokens of the sequence."""
        with self.arithmetic:
            states_BLD = self.model.hidden(
                ids_BL, self.grid, start=self.length, text=self.text, actions_BTD=self.actions_BTD, memory=self.memory
            )
        self.rewind(self.length + ids_BL.shape[1])
        return states_BLD

    def rewind(self, length: int) -> None:
        """Go on after the first tokens, as if those after them had not been."""
        self.length = length
        if self.step is not None:
            self.step.known(length)

    def next_logits(self, ids_BL: Tensor) -> Tensor:
        """Logits (B, V) of the token after these next ones."""
        return self.next(ids_BL, GREEDY)[0].clone()

    def next(self, ids_BL: Tensor, sampler: NextTokenSampler, generator: Generator = None) -> tuple[Tensor, Tensor]:
        """Logits (B, V) of the token after these next ones, and that token (B,); they are good until the next call."""
        if self.step is None or ids_BL.shape[1] > 1:
            states_BLD = self.feed(ids_BL)
            with self.arithmetic:
                logits_BV = last_logits(self.model, states_BLD)
                return logits_BV, self.model.pick(logits_BV, sampler, generator)
        self.model.check_places(self.length, self.length + 1, self.grid)
        with self.arithmetic:
            found = self.step(ids_BL, self.length, sampler, generator)
        self.length += 1
        return found

    def go_on(
        self,
        ids_BL: Tensor,
        count: int,
        sampler: NextTokenSampler,
        generator: Generator = None,
        *,
        keep_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The `count` tokens after those of a sequence (B, count), and if asked for their logits (B, count, V)."""
        ids, kept = list[Tensor](), list[Tensor]()
        latest_BL = ids_BL[:, self.length :]
        for _ in range(count):
            logits_BV, id_B = self.next(latest_BL, sampler, generator)
            ids.append(id_B.clone())
            kept += [logits_BV.clone()] if keep_logits else []
            latest_BL = id_B[:, None]
        return torch.stack(ids, 1), torch.stack(kept, 1) if keep_logits else None

    def cache(self, length: int) -> TokenCache:
        """What is remembered of the first `length` tokens."""
        parts = (tuple(x[:, :, :length] for x in (m.keys, m.values)) for m in self.memory)
        own = torch.clone if self.step is not None else lambda x: x  # the next decoder takes over the room of a step
        return TokenCache(tuple((own(keys), own(values)) for keys, values in parts), length)

    def _room(self) -> tuple[Tensor, Tensor]:
        """For keys and values of all tokens in a block."""
        c, dtype = self.model.config, room_type(self.model)
        shape = (self.batch, c.kv_heads, int(c.begin) + math.prod(self.grid), c.head_dim)
        keys, values = (torch.empty(shape, dtype=dtype, device=self.device) for _ in range(2))
        return keys, values

    def _text_keys(self, layer: nn.Module) -> KeysValues | None:
        """Keys and values of the text in a block that reads one."""
        cross = layer.cross_attention
        return cross.keys(self.text.context) if cross is not None and self.text is not None else None  # type: ignore[operator,union-attr]
