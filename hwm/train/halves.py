"""Weights in half precision for the passes of an update, beside those in float32 that the optimizer changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hwm.config import Trainable
from hwm.devices import Runtime


class Halves:
    """Copies in half precision of what the Linear layers and convolutions of a module's units read.

    Autocast casts each of these weights in every pass, and its gradient back, a kernel each: half of the casts of a
    block. Here all are cast at once, before the passes of an update, and gradients in one go after each. The numbers
    are the same: products saw the rounded weights before, and put out gradients in half precision. What other layers
    read, norms, embeddings and heads, stays in float32 and to autocast. (A block that casts what several products read
    to the format of their weights, once, as Cosmos's do, has the gradients of these products summed in half precision.)

    The copies take what autocast's take until the end of a pass. Where activations are computed again memory is short:
    there, as in float32, there are none. Nor are there among several processes, as the gradients that these send are
    those of the float32 weights; divided weights are put together in half precision anyway.
    """

    def __init__(self, module: Trainable, runtime: Runtime, recomputation: str, processes: int = 1) -> None:
        self.places: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        if runtime.format == "float32" or recomputation != "none" or processes > 1:
            return
        made: dict[int, nn.Parameter] = {}
        # a subclass may read its weight otherwise than by a product or a convolution
        for layer in (m for unit in module.units() for m in unit.modules() if type(m) in (nn.Linear, nn.Conv2d)):
            for name, p in layer.named_parameters(recurse=False):
                if id(p) not in made:
                    made[id(p)] = nn.Parameter(torch.empty_like(p, dtype=runtime.dtype), p.requires_grad)
                self.places.append((layer, name, p, made[id(p)]))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, layers read the copies, which are made of their weights as they are now."""
        if self.places:
            with torch.no_grad():
                torch._foreach_copy_([half for *_, half in self.places], [p for _, _, p, _ in self.places])
        try:
            for layer, name, _, half in self.places:
                layer._parameters[name] = half
            yield
        finally:
            for layer, name, p, _ in self.places:
                layer._parameters[name] = p

    @torch.no_grad()
    def collect(self) -> None:
        """Add what the copies have as gradients to those of the weights."""
        found = {p: half for _, _, p, half in self.places if half.grad is not None}
        first = [p for p in found if p.grad is None]
        further = [p for p in found if p.grad is not None]
        for p in first:
            p.grad = torch.empty_like(p)
        for parts, put in ((first, torch._foreach_copy_), (further, torch._foreach_add_)):
            if parts:
                put([p.grad for p in parts], [found[p].grad for p in parts])  # type: ignore[misc, operator]
        for half in found.values():
            half.grad = None
