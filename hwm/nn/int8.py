"""Weights of linear layers as 8-bit integers, through torchao: half the memory of bfloat16, a quarter of float32."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from hwm.errors import HwmError

M = TypeVar("M", bound=nn.Module)


@contextmanager
def no_complaints() -> Iterator[None]:
    """While torchao is imported, by itself or by peft: it warns that its kernels for other devices do not load."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def with_int8_weights(module: M, device: torch.device | str = "cpu") -> M:
    """Round the weights of a module's linear layers to 8-bit integers, each row with a scale of its own, for inference.

    Layers go to the device one by one, so that it never holds the whole module at its former size. Activations, norms
    and embeddings keep their type. A layer's weights are widened again whenever they are used, which costs time.

    Raises:
        HwmError: torchao is not installed.
    """
    try:
        with no_complaints():
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise HwmError(
            "weights of 8 bits need torchao: pip install 'humanoid-world-models[int8]', or leave out --int8"
        ) from None
    module.requires_grad_(False)
    quantize_(module, Int8WeightOnlyConfig(), device=torch.device(device))
    return module.to(device)
