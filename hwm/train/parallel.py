"""Data parallelism: a copy of the module in each process, and gradients averaged while they come (PyTorch's DDP)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hwm.config import Trainable
from hwm.errors import HwmError
from hwm.types import Batch

DRAWS = 2
"""Times that each batch is tried, with other masks and noise."""


class Parallel(DistributedDataParallel):
    """A module whose gradients are averaged over the processes.

    To look for the parameters that a batch does not use, DDP walks through the graph of every pass, and sends what it
    found after them. That is needed where it differs from batch to batch, as with the weights of several robots. Where
    it is always the same, such as a last block that does not finish what nothing reads, DDP is told once.

    Args:
        never: names of the parameters that no batch trains; None where that depends on the batch.
    """

    def __init__(self, module: Trainable, never: set[str] | None) -> None:
        self._set_params_and_buffers_to_ignore_for_model(module, sorted(never or ()))
        super().__init__(module, find_unused_parameters=never is None, gradient_as_bucket_view=True)
        self.never = [(name, p) for name, p in module.named_parameters() if name in (never or ())]

    def check(self) -> None:
        """After a backward pass.

        Raises:
            HwmError: it trained what none was to train, which was not averaged.
        """
        for name, p in self.never:
            if p.grad is not None:
                raise HwmError(
                    f"{name} was trained by this batch and by none that was tried before: processes would differ. "
                    "Train with --train.shard 0, which does not need to know"
                )


def never_trained(
    module: Trainable, batches: Iterable[Batch], arithmetic: Callable[[], AbstractContextManager[Any]]
) -> set[str] | None:
    """Names of the parameters that get no gradient from any of these batches, or None where they do from some.

    Run in training mode, and what the module counts there is put back.
    """
    counts = [(b, b.clone()) for b in module.buffers()]
    mode, found = module.training, None
    module.train()
    try:
        for batch in batches:
            for seed in range(DRAWS):
                torch.manual_seed(seed)
                with arithmetic():
                    loss, _ = module(batch)
                loss.backward()
                names = _without_gradient(module)
                if found is not None and names != found:
                    return None
                found = names
        return found
    finally:
        module.train(mode)
        for buffer, value in counts:
            buffer.copy_(value)
        module.zero_grad(set_to_none=True)


def _without_gradient(module: nn.Module) -> set[str]:
    found = {name for name, p in module.named_parameters() if p.requires_grad and p.grad is None}
    module.zero_grad(set_to_none=True)
    return found
