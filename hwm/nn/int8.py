"""Weights of linear layers as 8-bit integers, through torchao: half the memory of bfloat16, a quarter of float32."""

from __future__ import annotations

import logging
from typing import TypeVar

import torch
from torch import nn

from hwm.types import HwmError

M = TypeVar("M", bound=nn.Module)


def with_int8_weights(module: M, device: torch.device | str = "cpu") -> M:
    """Round the weights of a module's linear layers to 8-bit integers, each row with a scale of its own, for inference.

    Layers go to the device one by one, so that it never holds the whole module at its former size. Activations, norms
    and embeddings keep their type. A layer's weights are widened again whenever they are used, which costs time.

    Raises:
        HwmError: torchao is not installed.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # importing it complains of kernels for other devices than this
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise HwmError(
            "weights of 8 bits need torchao: pip install 'humanoid-world-models[int8]', or leave out --int8"
        ) from None
    finally:
        logging.disable(disabled)
    module.requires_grad_(False)
    quantize_(module, Int8WeightOnlyConfig(), device=torch.device(device))
    return module.to(device)
