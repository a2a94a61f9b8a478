"""Small parts: the MLP, its initialisation, and constants that live beside a module and not in it.

Shape suffixes: ... any leading axes, D width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with dropout after both (as in the released Masked-HWM): (..., D) -> (..., D)."""

    def __init__(self, dim: int, ratio: float = 4.0, drop: float = 0.0) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act, self.drop = nn.GELU(), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def init_weights(root: nn.Module, std: float = 0.02) -> None:
    """Linear and embedding weights N(0, std), biases zero, norms one: the initialisation of the released Masked-HWM.

    The projections that end a residual branch are not scaled down by depth: the release does not.
    """
    for module in root.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@lru_cache(maxsize=256)
def constant(values: tuple, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A (nested) tuple of numbers as a tensor, made once a device.

    Constants are no buffers: a module cast to bfloat16 or built on the meta device keeps them whole, and the state
    dict holds weights alone. They are made outside inference mode, so that training may use what play made first.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
