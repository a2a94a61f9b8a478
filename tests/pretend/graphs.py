"""CUDA graphs of a card that is not there: what is run during a capture is kept, and a replay runs it again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.pretend.tensors import Card


class Call(NamedTuple):
    """An operation, and the tensors that it made."""

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    made: list[Tensor]


class Tape:
    """The operations of one thread. What would make the host wait or copies from its memory is refused meanwhile."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.thread = threading.get_ident()

    def add(self, func: Callable[..., Any], args: Any, kwargs: Any, made: Any) -> None:
        if threading.get_ident() == self.thread and not getattr(func, "is_view", False):
            self.calls.append(Call(func, args, kwargs, [t for t in tree_leaves(made) if isinstance(t, Tensor)]))

    def spoil(self) -> None:
        """Nothing has been computed while it was recorded: a result is there after the first replay."""
        for call in self.calls:
            given = [t.data_ptr() for t in tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor)]
            for made in call.made:
                if made.is_floating_point() and made.data_ptr() not in given:
                    made.fill_(torch.nan)

    def run(self) -> None:
        for call in self.calls:
            again = [t for t in tree_leaves(call.func(*call.args, **call.kwargs)) if isinstance(t, Tensor)]
            for made, new in zip(call.made, again, strict=True):
                if made is not new:
                    made.copy_(new)


def graphs(card: Card) -> dict[str, Any]:
    """`CUDAGraph` and `graph` of `torch.cuda` for this card."""

    class CUDAGraph:
        def __init__(self, keep_graph: bool = False) -> None:
            self.tape = Tape()

        def replay(self) -> None:
            card.launch("graph")
            with torch.no_grad():
                self.tape.run()

        def reset(self) -> None:
            self.tape = Tape()

        def pool(self) -> tuple[int, int]:
            return (0, 0)

    class Graph:
        def __init__(self, cuda_graph: CUDAGraph, *_: Any, **__: Any) -> None:
            self.graph = cuda_graph

        def __enter__(self) -> None:
            card.tape = self.graph.tape = Tape()

        def __exit__(self, *_: object) -> None:
            card.tape = None
            self.graph.tape.spoil()

    return {"CUDAGraph": CUDAGraph, "graph": Graph, "graph_pool_handle": lambda: (0, 0)}
