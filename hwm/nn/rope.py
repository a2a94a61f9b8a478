"""Rotary position tables in one dimension (time) and two (the cells of a latent step).

A table is the pair (cos, sin), each (positions, d/2), d the width of a head. Tables are computed in float32 and cached
by device outside the modules: they are in no state dict, and `.to(bfloat16)` on a model cannot touch them.

Shape suffixes: P positions, S = H*W cells, d head width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hwm.errors import HwmError

Table = tuple[Tensor, Tensor]
THETA = 10000.0


@lru_cache(maxsize=256)
def rope_1d(positions: tuple[float, ...], dim: int, device: torch.device, theta: float = THETA) -> Table:
    """Tables (P, d/2) at arbitrary positions, with frequencies theta^-(2i/d).

    Positions are given one by one, so that streams that share a time (video, and the actions that lead to it) share a
    position too. The release numbers its joint sequence instead, which puts each action T steps after its own video.
    """
    if dim % 2:
        raise HwmError(f"rotary positions need an even head width, got {dim}")
    with torch.inference_mode(False):
        frequency = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angle = torch.tensor(positions, dtype=torch.float32)[:, None] * frequency
        return angle.cos().to(device), angle.sin().to(device)


@lru_cache(maxsize=64)
def rope_2d(
    grid: tuple[int, int], dim: int, device: torch.device, theta: float = THETA, published: bool = False
) -> Table:
    """Tables (S, d/2) of a row-major grid: the first d/4 pairs turn with the row, the others with the column.

    Args:
        published: the frequencies (d/2) / theta^(2i) of the released Masked-HWM code (and of the code it was taken
            from), an accident of operator precedence that leaves all but one pair of each axis standing still. Only
            of use with weights trained by that code; the intended ones are theta^-(2i/(d/2)).
    """
    if dim % 4:
        raise HwmError(f"two-dimensional rotary positions need a head width divisible by 4, got {dim}")
    with torch.inference_mode(False):
        exponent = torch.arange(0, dim // 2, 2, dtype=torch.float64)
        frequency = (dim // 2) / theta**exponent if published else theta ** -(exponent / (dim // 2))
        row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
        angle = torch.cat([row.reshape(-1, 1) * frequency, column.reshape(-1, 1) * frequency], -1)
        return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x: Tensor, table: Table) -> Tensor:
    """Rotate (..., d) by a table that broadcasts against (..., d/2); channel i is paired with channel i + d/2.

    The angles are exact; their cosines are rounded to the type of `x`, as the products would be anyhow.
    """
    cos, sin = (t.to(x.dtype) for t in table)
    a, b = x.chunk(2, -1)
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)], -1)
