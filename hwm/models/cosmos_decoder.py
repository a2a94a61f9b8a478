"""Decoding with a `CosmosAR`: keys and values that stay in place, and a pass over one token that a GPU can replay.

Shape suffixes: B batch, T latent step, L token of a pass, C tokens of a text, E its width, D width, V logits, g heads
of keys and values, d head width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.models.heads import TokenHead
from hwm.nn.gqa import TokenMemory
from hwm.objectives.next_token import NextTokenSampler
from hwm.types import Generator
from hwm.weights import load_tensors

Grid = tuple[int, int, int]  # steps, rows, columns


class Text(NamedTuple):
    """An encoded text: its vectors (B, C, E), and bool (B, C) which of them are read; None: all."""

    context: Tensor
    mask: Tensor | None = None

    @classmethod
    def of_file(cls, path: Path) -> Text:
        """The text of a safetensors file: `context` (C, E) and, where some of it is padding, `mask` (C,), not 0 where
        it is read. Both may have an axis of length 1 before.

        Raises:
            HwmError: the file cannot be read, or holds something else.
        """
        found = load_tensors(path)
        if not {"context"} <= found.keys() <= {"context", "mask"}:
            raise HwmError(f"{path} holds {sorted(found)}; an encoded text is `context` (C, E) and perhaps `mask` (C,)")
        context, mask = found["context"], found.get("mask")
        context = context[None] if context.ndim == 2 else context
        mask = mask if mask is None else mask.reshape(1, -1).bool()
        if context.ndim != 3 or len(context) != 1 or not context.numel() or not context.is_floating_point():
            raise HwmError(f"{path}: `context` is {found['context'].dtype} {tuple(found['context'].shape)}, not (C, E)")
        if not context.isfinite().all():
            raise HwmError(f"{path}: `context` has values that are not finite")
        if mask is not None and (mask.shape != context.shape[:2] or not mask.any()):
            raise HwmError(
                f"{path}: `mask` is {tuple(found['mask'].shape)} with {int(mask.sum())} places to be read, for a text "
                f"of {context.shape[1]}"
            )
        return cls(context, mask)

    def to(self, batch: int, like: Tensor) -> Text:
        """The same for every row of a batch, where and of the type that a tensor is."""
        context = self.context.to(like.device, like.dtype).expand(batch, -1, -1)
        return Text(context, None if self.mask is None else self.mask.to(like.device).expand(batch, -1))


class TokenCache(NamedTuple):
    """Keys and values (B, g, length, d) of the first `length` tokens of a window, a pair for each block."""

    memory: tuple[tuple[Tensor, Tensor], ...]
    length: int


class Decodable(Protocol):
    """What is asked of a model to decode with it: the part of `CosmosAR` that this file knows."""

    config: Any
    tok_embeddings: nn.Embedding
    output: TokenHead
    layers: nn.ModuleList

    def hidden(
        self,
        ids_BL: Tensor,
        grid: Grid,
        *,
        start: int | Tensor = 0,
        text: Text | None = None,
        actions_BTD: Tensor | None = None,
        memory: list[TokenMemory] | None = None,
    ) -> Tensor: ...

    def check_places(self, start: int, stop: int, grid: Grid) -> None: ...

    def pick(self, logits_V: Tensor, sampler: NextTokenSampler, generator: Generator = None) -> Tensor: ...


class Decoder:
    """Feeds a model the tokens of a sequence pass after pass, with room for the keys and values of all its tokens.

    Args:
        grid: steps, rows and columns of the whole sequence.
        actions_BTD: embedded actions of its steps.
        text: of one row, or of every row of the batch.
        cache: of its first tokens; it is copied, so that it may serve again.
        fixed: passes over one token all have the same shapes (`FixedStep`); None: on a GPU, where they are captured
            once and replayed. Not under autocast, whose copies of weights a capture would not keep.
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
        self.model, self.grid, self.batch, self.actions_BTD = model, grid, batch, actions_BTD
        self.capacity = int(model.config.begin) + math.prod(grid)
        self.length, self.before = (cache.length, cache.memory) if cache else (0, ())
        self.device = model.tok_embeddings.weight.device
        self.text = text.to(batch, model.tok_embeddings.weight) if text else None
        self.memory = self._room()
        if fixed is None:
            fixed = self.device.type == "cuda" and not torch.is_autocast_enabled("cuda")
        self.step = FixedStep(self) if fixed else None

    def feed(self, ids_BL: Tensor) -> Tensor:
        """States (B, L, D) of the next tokens of the sequence."""
        states_BLD = self.model.hidden(
            ids_BL, self.grid, start=self.length, text=self.text, actions_BTD=self.actions_BTD, memory=self.memory
        )
        self.length += ids_BL.shape[1]
        return states_BLD

    def next_logits(self, ids_BL: Tensor) -> Tensor:
        """Logits (B, V) of the token after these next ones."""
        if self.step is None or ids_BL.shape[1] > 1:
            return self.model.output(self.feed(ids_BL)[:, -1])
        self.model.check_places(self.length, self.length + 1, self.grid)
        logits_BV = self.step(ids_BL, self.length)
        self.length += 1
        return logits_BV

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
            logits_BV = self.next_logits(latest_BL)
            ids.append(self.model.pick(logits_BV, sampler, generator))
            kept += [logits_BV] if keep_logits else []
            latest_BL = ids[-1][:, None]
        return torch.stack(ids, 1), torch.stack(kept, 1) if keep_logits else None

    def cache(self, length: int) -> TokenCache:
        """What is remembered of the first `length` tokens."""
        return TokenCache(tuple((m.keys[:, :, :length], m.values[:, :, :length]) for m in self.memory), length)

    def _room(self) -> list[TokenMemory]:
        """Keys and values for every token, zero but for what the cache knows, and those of the text."""
        c, memory = self.model.config, []
        dtype = self.model.tok_embeddings.weight.dtype
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        shape = (self.batch, c.kv_heads, self.capacity, c.head_dim)
        for i, layer in enumerate(self.model.layers):
            # zero: what is not seen has no weight, and none of what lay there before would still not be a number
            keys, values = (torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
            if self.before:
                keys[:, :, : self.length], values[:, :, : self.length] = self.before[i]
            cross = layer.cross_attention
            text = cross.keys(self.text.context) if cross is not None and self.text is not None else None  # type: ignore[operator,union-attr]
            memory.append(TokenMemory(keys, values, text))
        return memory


class FixedStep:
    """The pass over one token, always of the same shapes and at the same addresses; on a GPU captured and replayed.

    Such a pass is hundreds of small kernels, which a GPU is done with sooner than Python has asked for them. The price
    is that it attends over all of the room, under a mask.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.ids_B1 = torch.zeros(decoder.batch, 1, dtype=torch.long, device=decoder.device)
        self.start_1 = torch.zeros(1, dtype=torch.long, device=decoder.device)
        self.logits_BV: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, ids_B1: Tensor, start: int) -> Tensor:
        """Logits (B, V) of the token after token `start`, which is `ids_B1`."""
        self.ids_B1.copy_(ids_B1)
        self.start_1.fill_(start)
        if self.decoder.device.type != "cuda":
            return self.run()
        if self.graph is None:
            self.capture()
        assert self.graph is not None
        assert self.logits_BV is not None
        self.graph.replay()
        return self.logits_BV.clone()

    def run(self) -> Tensor:
        d = self.decoder
        states_B1D = d.model.hidden(
            self.ids_B1, d.grid, start=self.start_1, text=d.text, actions_BTD=d.actions_BTD, memory=d.memory
        )
        return d.model.output(states_B1D[:, -1])

    def capture(self) -> None:
        """Run it beside the main stream until all that it makes once is made, then record it."""
        aside = torch.cuda.Stream(self.decoder.device)
        aside.wait_stream(torch.cuda.current_stream(self.decoder.device))
        with torch.cuda.stream(aside):
            for _ in range(3):  # writes the same keys and values each time
                self.run()
        torch.cuda.current_stream(self.decoder.device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # others may decode pictures meanwhile
            self.logits_BV = self.run()
