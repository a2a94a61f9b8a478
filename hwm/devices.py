"""Where computing is done."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def device_of(thing: Any, default: torch.device) -> torch.device:
    """Where the weights of a module are; `default` for what has none."""
    if isinstance(thing, nn.Module):
        for tensor in [*thing.parameters(), *thing.buffers()]:
            return tensor.device
    return default
