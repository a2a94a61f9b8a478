"""The pass over one token in fixed shapes, and what decoding keeps from call to call.

Shape suffixes: B batch, T latent step, L token of a pass, C tokens of a text, D width, V logits, g heads of keys and
values, d head width.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hwm.models.cosmos_texts import Text
from hwm.models.heads import TokenHead
from hwm.nn.captured import Captures
from hwm.nn.gqa import ABSENT, MARKS, KeysValues, MarkedMemory, TokenMemory
from hwm.nn.products import CastProducts, addresses
from hwm.objectives.draws import refill
from hwm.objectives.next_token import NextTokenSampler
from hwm.types import Generator

Grid = tuple[int, int, int]  # steps, rows, columns

BUCKET = 512
"""Places that a pass of fixed shapes attends over are rounded up to a multiple of this: so many captures a window, and
half of it too many on average, of keys and values that all together are a fortieth of what a token reads."""
KEPT_STEPS = 2
"""Rooms that are kept: those of the window that is played, and of one of another batch."""


class Decodable(Protocol):
    """What is asked of a model to decode with it: the part of `CosmosAR` that decoding knows."""

    config: Any
    tok_embeddings: nn.Embedding
    output: TokenHead
    layers: nn.ModuleList
    kept: Kept

    def hidden(
        self,
        ids_BL: Tensor,
        grid: Grid,
        *,
        start: int | Tensor = 0,
        text: Text | None = None,
        actions_BTD: Tensor | None = None,
        memory: Sequence[TokenMemory] | Sequence[MarkedMemory] | None = None,
    ) -> Tensor: ...

    def longest(self, grid: Grid) -> int: ...

    def check_places(self, start: int, stop: int, grid: Grid) -> None: ...

    def pick(self, logits_V: Tensor, sampler: NextTokenSampler, generator: Generator = None) -> Tensor: ...

    def pick_by(self, logits_V: Tensor, sampler: NextTokenSampler, uniform: Sequence[Tensor] | None) -> Tensor: ...


def last_logits(model: Decodable, states_BLD: Tensor) -> Tensor:
    """Logits (B, V) of the token after the last of these."""
    out: Tensor = model.output(states_BLD[:, -1].to(model.output.weight.dtype))
    return out


def room_type(model: Decodable) -> torch.dtype:
    """Of keys and values."""
    found: torch.dtype = model.layers[0].attention.wk.weight.dtype  # type: ignore[union-attr,assignment]
    return found


def tensors_of(text: Text | None, told: Sequence[KeysValues | None]) -> list[Tensor]:
    """All that is kept of a text."""
    return [x for part in (text, *told) for x in part or () if x is not None]


class FixedStep:
    """The pass over one token and the choice of the next, always of the same shapes and at the same addresses.

    On a GPU it is captured and replayed (`Captures`), one capture for each number of places that are attended over.
    All windows of a model up to its longest fit, and it serves one decoder after another.

    Args:
        model: its weights stay where they are.
        grid: of the sequence, or a shorter one.
        text, told: what is read of a text and its keys and values in each block; of any values.
        actions_BTD: embedded actions, of any values.
    """

    def __init__(
        self,
        model: Decodable,
        grid: Grid,
        batch: int,
        text: Text | None,
        told: Sequence[KeysValues | None],
        actions_BTD: Tensor | None,
    ) -> None:
        c, device = model.config, model.tok_embeddings.weight.device
        self.model, self.grid = model, (model.longest(grid), *grid[1:])
        self.width, self.places = c.head_dim, int(c.begin) + self.grid[0] * grid[1] * grid[2]
        shape = (len(told), batch, c.kv_heads, self.places, c.head_dim + MARKS)
        with torch.inference_mode(False), torch.no_grad():
            self.keys, self.values = (torch.zeros(shape, dtype=room_type(model), device=device) for _ in range(2))
            self.text = text and Text(text.context.clone(), None if text.mask is None else text.mask.clone())
            self.told = [one and (one[0].clone(), one[1].clone()) for one in told]
            self.actions_BTD = None
            if actions_BTD is not None:
                self.actions_BTD = actions_BTD.new_zeros(batch, self.grid[0], actions_BTD.shape[2])
            self.ids_B1 = torch.zeros(batch, 1, dtype=torch.long, device=device)
            self.start_1 = torch.zeros(1, dtype=torch.long, device=device)
            self.id_B = torch.zeros(batch, dtype=torch.long, device=device)
            self.logits_BV = torch.zeros(
                batch, model.output.out_features, dtype=model.output.weight.dtype, device=device
            )
            self.uniform = [torch.zeros(x.shape, device=device) for x in model.output.draws(self.logits_BV)]
        both = list(zip(self.keys, self.values, self.told, strict=True))
        self.marked = [MarkedMemory(*one) for one in both]
        self.plain = [TokenMemory(k[..., : self.width], v[..., : self.width], one) for k, v, one in both]
        self.captures = Captures(device)

    def begin(self, text: Text | None, told: Sequence[KeysValues | None], actions_BTD: Tensor | None) -> None:
        """Serve a sequence of which no token is known."""
        for mine, one in zip(tensors_of(self.text, self.told), tensors_of(text, told), strict=True):
            mine.copy_(one)
        if self.actions_BTD is not None and actions_BTD is not None:
            self.actions_BTD[:, : actions_BTD.shape[1]] = actions_BTD
        for x in (self.keys, self.values):  # what is absent weighs nothing, but nothing of what is no number is none
            x.zero_()
        self.known(0)

    def known(self, length: int) -> None:
        """The first places hold tokens, whose keys and values passes of other shapes may have put in `plain`, and the
        others none."""
        self.keys[..., :length, self.width :] = 0
        self.keys[..., length:, self.width :] = ABSENT

    def __call__(
        self, ids_B1: Tensor, start: int, sampler: NextTokenSampler, generator: Generator = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, V) of the token after token `start`, which is `ids_B1`, and that token (B,), until the next call.

        Random numbers are drawn outside of what is captured, from whatever generator is given.
        """
        self.ids_B1.copy_(ids_B1)
        self.start_1.fill_(start)
        if sampler.temperature:
            for uniform in self.uniform:
                refill(uniform, generator)
        stop = min(self.places, start // BUCKET * BUCKET + BUCKET)
        self.captures.run((stop, sampler), lambda: self.run(stop, sampler))
        return self.logits_BV, self.id_B

    def run(self, stop: int, sampler: NextTokenSampler) -> None:
        """What is captured: attention is over the first `stop` places, in which the token is."""
        states_B1D = self.model.hidden(
            self.ids_B1,
            self.grid,
            start=self.start_1,
            text=self.text,
            actions_BTD=self.actions_BTD,
            memory=[one.upto(stop) for one in self.marked],
        )
        self.logits_BV.copy_(last_logits(self.model, states_B1D))
        uniform = self.uniform if sampler.temperature else None
        self.id_B.copy_(self.model.pick_by(self.logits_BV, sampler, uniform))


class Kept:
    """What a model's decoders leave to the next ones: cast weights, and rooms with the captures that were made in them.

    A room belongs to one decoder until that is gone. A copy of a model begins with nothing.
    """

    def __init__(self) -> None:
        self.forget()
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return Kept, ()

    def forget(self) -> None:
        """Give all memory back."""
        self.products: CastProducts[Any] | None = None
        self.steps: list[tuple[Hashable, FixedStep, weakref.ref[object]]] = []

    def network(self, model: Any, dtype: torch.dtype | None) -> Any:
        """The model with the weights of its products in a type, as they are now; None leaves them as they are."""
        if dtype is None:
            return model
        with self.lock:
            if self.products is None or not self.products.serves(model, dtype):
                self.products = CastProducts(model, dtype)
            else:
                self.products.refresh()
            return self.products.network

    def step(
        self,
        owner: object,
        model: Decodable,
        grid: Grid,
        batch: int,
        text: Text | None,
        told: Sequence[KeysValues | None],
        actions_BTD: Tensor | None,
    ) -> FixedStep:
        """A pass in fixed shapes, for as long as its owner lives: one that was kept, where there is one for the same
        weights and shapes; what else it is of, as `FixedStep` takes it."""
        whole: Any = model
        actions = None if actions_BTD is None else (actions_BTD.dtype, actions_BTD.shape[2])
        shapes = tuple(x.shape for x in tensors_of(text, told))
        key = (model.longest(grid), *grid[1:], batch, shapes, actions, addresses(whole))
        with self.lock:
            free = [one for one in self.steps if one[0] == key and one[2]() is None]
            step = free[0][1] if free else FixedStep(model, grid, batch, text, told, actions_BTD)
            others = [one for one in self.steps if one[1] is not step]
            self.steps = [*others[-(KEPT_STEPS - 1) :], (key, step, weakref.ref(owner))]
        step.begin(text, told, actions_BTD)
        return step
