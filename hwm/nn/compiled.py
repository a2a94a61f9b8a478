"""Small functions compiled by themselves, in code that is run as it stands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Compiled:
    """A function that torch.compile turns into a kernel of its own the first time that it is called.

    Args:
        function: of tensors, to one, without a graph break.
        key: what a kernel is compiled for, by the function's arguments.
    """

    def __init__(self, function: Callable[..., Tensor], key: Callable[..., Hashable]) -> None:
        self.function, self.key = function, key
        self.compiled: Callable[..., Tensor] | None = None
        self.refused = set[Hashable]()

    def __call__(self, *given: Any) -> Tensor | None:
        """What the function gives; None where it cannot be compiled, because there is no compiler (Triton, or the C
        compiler that it needs), or because kernels for too many shapes have been compiled already."""
        key = self.key(*given)
        if key in self.refused:
            return None
        if self.compiled is None:  # only now: it imports the compiler, which takes seconds
            self.compiled = torch.compile(self.function, fullgraph=True)
        try:
            return self.compiled(*given)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            log.warning("%s runs without its compiled kernel: %s", self.function.__name__, reason)
            self.refused.add(key)
            return None
