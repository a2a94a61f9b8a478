"""A network whose matrix products are computed in another number format, with weights that are cast once."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

N = TypeVar("N", bound=nn.Module)


class Updates:
    """Counts what optimizers do in this process: their fused kernels change weights without counting a version."""

    made = 0

    @classmethod
    def count(cls, *_: Any) -> None:
        cls.made += 1


register_optimizer_step_post_hook(Updates.count)


class CastProducts(Generic[N]):
    """A copy of a network whose Linears have their weights in another number format; it shares all its other tensors.

    Autocast casts weights wherever they are used, and forgets them at its end: nothing that is captured can keep them.
    Here they stay where they are. What is given to a Linear must have the type of its weights.

    Args:
        network: it may go on learning: see `refresh`.

    Attributes:
        network: the copy.
    """

    def __init__(self, network: N, dtype: torch.dtype) -> None:
        self.dtype, self.made_of = dtype, addresses(network)
        linear = [p for m in network.modules() if isinstance(m, nn.Linear) for p in m.parameters(recurse=False)]
        with torch.inference_mode(False):
            pairs = [(p, p.detach().to(dtype)) for p in linear if p.dtype != dtype]
        pairs = [pair for pair in pairs if pair[1].dtype == dtype]  # weights of 8 bits keep theirs
        self.sources, cast = [p for p, _ in pairs], [nn.Parameter(x, requires_grad=False) for _, x in pairs]
        kept = {id(x): x for x in chain(network.parameters(), network.buffers())}
        kept |= {id(p): new for p, new in zip(self.sources, cast, strict=True)}
        self.network: N = copy.deepcopy(network, kept) if pairs else network
        self.cast, self.versions, self.updates = cast, [_version(p) for p in self.sources], Updates.made

    def serves(self, network: N, dtype: torch.dtype) -> bool:
        """Whether this is of the network's tensors as they lie now, and of a type."""
        return self.dtype == dtype and self.made_of == addresses(network)

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the weights that may have changed since they were cast, to where they were cast before."""
        updates, versions = Updates.made, [_version(p) for p in self.sources]
        for new, p, before, now in zip(self.cast, self.sources, self.versions, versions, strict=True):
            if updates != self.updates or now is None or now != before:
                new.copy_(p)
        self.updates, self.versions = updates, versions


def addresses(network: nn.Module) -> tuple[int, ...]:
    """Where the tensors of a network lie."""
    return tuple(_address(x) for x in chain(network.parameters(), network.buffers()))


def _address(x: Tensor) -> int:
    return x.data_ptr() if type(x.data) is Tensor else id(x)


def _version(x: Tensor) -> int | None:
    """How often a tensor was changed in place, by a function that counts it; None: nobody counts."""
    return None if x.is_inference() else x._version
