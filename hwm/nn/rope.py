"""Rotary position tables in one dimension (time), two (the cells of a latent step) and three; and sines and cosines.

A table is the pair (cos, sin), each (positions, d), d the width of a head: channels i and i + d/2 turn together, so the
cosines stand there twice, and the sines once negative and once positive. Tables are computed in float32 and cached by
device outside the modules: they are in no state dict, and `.to(bfloat16)` on a model cannot touch them.

Three dimensions with YaRN (arXiv 2309.00071), and sines and cosines, are as in Cosmos-Predict1
(github.com/nvidia-cosmos/cosmos-predict1, Apache-2.0).

Shape suffixes: P positions, D width, S = H*W cells, d head width.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.errors import HwmError

Table = tuple[Tensor, Tensor]
THETA = 10000.0


def turning(angle_PE: Tensor, device: torch.device) -> Table:
    """The table (P, d) of the angles (P, d/2) by which the pairs of channels turn."""
    cos, sin = angle_PE.cos().float(), angle_PE.sin().float()
    return torch.cat([cos, cos], -1).to(device), torch.cat([-sin, sin], -1).to(device)  # MPS has no float64


@lru_cache(maxsize=256)
def rope_1d(positions: tuple[float, ...], dim: int, device: torch.device, theta: float = THETA) -> Table:
    """Tables (P, d) at arbitrary positions, with frequencies theta^-(2i/d).

    Positions are given one by one, so that streams that share a time (video, and the actions that lead to it) share a
    position too. The release numbers its joint sequence instead, which puts each action T steps after its own video.
    """
    if dim % 2:
        raise HwmError(f"rotary positions need an even head width, got {dim}")
    with torch.inference_mode(False):
        frequency = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        return turning(torch.tensor(positions, dtype=torch.float32)[:, None] * frequency, device)


@lru_cache(maxsize=64)
def rope_2d(
    grid: tuple[int, int], dim: int, device: torch.device, theta: float = THETA, published: bool = False
) -> Table:
    """Tables (S, d) of a row-major grid: the first d/4 pairs turn with the row, the others with the column.

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
        return turning(torch.cat([row.reshape(-1, 1) * frequency, column.reshape(-1, 1) * frequency], -1), device)


class Yarn(NamedTuple):
    """How rotary frequencies are slowed down, so that a model takes grids larger than those it learned first.

    Frequencies that turn less than `slow` times over the first grid are divided by `scale`, those that turn more than
    `fast` times are kept, with a ramp between. Attention is not rescaled, as in the published models.

    Attributes:
        steps, side: of that first grid; one side stands for both.
    """

    scale: float
    fast: float
    slow: float
    steps: int
    side: int

    def slowed(self, frequency: Tensor, length: int) -> Tensor:
        low, high = (2 * math.pi * turns / length for turns in (self.slow, self.fast))
        ramp = ((frequency - low) / (high - low)).clamp(0, 1)
        return frequency * ((1 - ramp) / self.scale + ramp)


def shares(dim: int) -> tuple[int, int]:
    """How a width is shared out: the even parts of time and of each side, 2 * floor(d / 6) each."""
    side = 2 * (dim // 6)
    if dim % 2 or not side:
        raise HwmError(f"positions in three dimensions need an even width of at least 6, got {dim}")
    return dim - 2 * side, side


def coordinates(times: tuple[float, ...], grid: tuple[int, int], centred: bool) -> tuple[Tensor, ...]:
    """Time, row and column of each cell of row-major grids at these times, float64 (P, 1)."""
    sides = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 * centred for n in grid]
    places = torch.meshgrid(torch.tensor(times, dtype=torch.float64), *sides, indexing="ij")
    return tuple(x.reshape(-1, 1) for x in places)


@lru_cache(maxsize=64)
def rope_3d(
    times: tuple[float, ...],
    grid: tuple[int, int],
    dim: int,
    device: torch.device,
    *,
    theta: float = THETA,
    yarn: Yarn | None = None,
    lead: int = 0,
    centred: bool = False,
) -> Table:
    """Tables (lead + T * H * W, d) of row-major grids at these times: pairs that turn with time, row, then column.

    Each of d/6 (rounded down) pairs of a side has the frequency theta^(-2i/share); time has the rest.

    Args:
        lead: tokens before the grid, which are not turned.
        centred: count rows and columns from the middle of the grid, so that a grid of one cell, as an action is, turns
            with time alone and lies at the centre of the pictures.
    """
    with torch.inference_mode(False):
        angles = []
        lengths = (yarn.steps, yarn.side, yarn.side) if yarn else (0, 0, 0)
        time, side = shares(dim)
        for at_P1, share, length in zip(coordinates(times, grid, centred), (time, side, side), lengths, strict=True):
            frequency = theta ** -(torch.arange(0, share, 2, dtype=torch.float64) / share)
            angles.append(at_P1 * (yarn.slowed(frequency, length) if yarn else frequency))
        return turning(F.pad(torch.cat(angles, 1), (0, 0, lead, 0)), device)


@lru_cache(maxsize=16)
def sincos_3d(
    steps: int, grid: tuple[int, int], dim: int, device: torch.device, dtype: torch.dtype, lead: int = 0
) -> Tensor:
    """Vectors (lead + P, D) of row-major grids, rounded to a type: for time, row and column in turn the sines, then the
    cosines, of the place times 10000^(-2i/share).

    Args:
        lead: tokens before the grid, whose vectors are zero.
    """
    with torch.inference_mode(False):
        parts = []
        time, side = shares(dim)
        for at_P1, share in zip(coordinates(tuple(range(steps)), grid, False), (time, side, side), strict=True):
            angle = at_P1 * THETA ** -(torch.arange(0, share, 2, dtype=torch.float64) / share)
            parts += [angle.sin(), angle.cos()]
        return F.pad(torch.cat(parts, 1), (0, 0, lead, 0)).to(dtype).to(device)  # MPS has no float64


def rotate(x: Tensor, table: Table) -> Tensor:
    """Rotate (..., d) by a table that broadcasts against it; channel i is paired with channel i + d/2.

    The angles are exact; their cosines are rounded to the type of `x`, as the products would be anyhow. Products are of
    whole rows: on a CPU those of halves of 16 numbers take up to three times as long.
    """
    cos, sin = (t.to(x.dtype) for t in table)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
