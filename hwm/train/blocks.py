"""What training does to a model's repeated parts (`Trainable.units`): compute their activations again, compile them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hwm.config import Trainable
from hwm.devices import Runtime
from hwm.nn.layers import FORGETTING, sparing

Forward = Callable[..., Any]

aten = torch.ops.aten
DEAR = {
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default),
    *(aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_flash_attention_for_cpu.default),
    *(aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_cudnn_attention.default),
}
"""Operations that selective recomputation does not do twice."""

LARGE = 10_000_000
"""Weights of a model that is worth compiling. Those that train on a CPU in minutes have fewer, papers' have more."""


@contextmanager
def arithmetic(runtime: Runtime, recomputation: str) -> Iterator[None]:
    """The number format of a forward pass, whose activations are computed again as `recompute` has it."""
    # a cache would keep every weight in half precision until the end of a pass, though blocks forget theirs; and
    # what is computed again must find the weights as it found them first: cast, or not cast yet
    with runtime.autocast(cache=recomputation == "none"), sparing(recomputation != "none"):
        yield


def recompute(module: Trainable, mode: str) -> None:
    """Let the module's units forget activations, all (`full`) or all but those of `DEAR` operations (`selective`) or
    none, and compute them again for the backward pass."""
    if mode == "none":
        return
    again = partial(checkpoint, use_reentrant=False)
    if mode == "selective":  # torch.compile takes no other context, not even the one that does nothing
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    for unit in module.units():
        unit.forward = partial(again, unit.forward)  # type: ignore[method-assign]


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # what a unit forgets by itself would otherwise be kept, and what it keeps instead too
    keep = operation in DEAR and not FORGETTING.get()
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def worth_compiling(module: Trainable, device: torch.device) -> bool:
    """Whether compiling saves more than it takes, minutes at most: models of the size of papers', on an NVIDIA card.

    It needs Triton, which PyTorch for CUDA comes with, and the C compiler that it calls.
    """
    if device.type != "cuda" or not any(True for _ in module.units()):
        return False
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("gcc") or shutil.which("clang")
    able = compiler is not None and find_spec("triton") is not None
    return able and sum(p.numel() for p in module.parameters()) >= LARGE


def compile_blocks(module: Trainable) -> None:
    """torch.compile the module's units one by one, which takes a fraction of the time that all at once would, or all
    of it where it has none.

    Only passes that are differentiated are compiled: what a run validates and samples on the way has many other shapes,
    and each would be compiled for minutes, until torch gives up (`recompile_limit`).
    """
    for unit in list(module.units()) or [module]:
        unit.forward = partial(_differentiated, torch.compile(unit.forward), unit.forward)  # type: ignore[method-assign]


def _differentiated(compiled: Forward, plain: Forward, *given: Any, **named: Any) -> Any:
    return (compiled if torch.is_grad_enabled() else plain)(*given, **named)
