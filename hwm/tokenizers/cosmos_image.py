"""The networks of the Cosmos image tokenizers: the same plan as for video, in two dimensions and of simpler parts.

Sources: as of `hwm.tokenizers.cosmos_video`; names of weights are the published ones.

Shape suffixes: N pictures, H W rows and columns, C channels, S = H*W.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.tokenizers.cosmos_video import signs


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    """Norm, swish and a 3x3 convolution, twice, added to the input (through a 1x1 convolution if widths differ)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(before), norm(after)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_NCHW)))
        return self.nin_shortcut(x_NCHW) + self.conv2(F.silu(self.norm2(h)))


class Attend(nn.Module):
    """One head of attention among all cells of a picture, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h = self.norm(x_NCHW)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        y_NSC = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x_NCHW + self.proj_out(y_NSC.transpose(1, 2).view(x_NCHW.shape))


class Middle(nn.Module):
    """A block, attention, and a block, at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = Residual(channels, channels), Residual(channels, channels)
        self.attn_1 = Attend(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_NCHW)))


class Down(nn.Module):
    """Half the resolution, by a convolution; the picture is padded at its right and lower edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_NCHW, (0, 1, 0, 1)))


class Up(nn.Module):
    """Twice the resolution: cells are repeated, then convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv(x_NCHW.repeat_interleave(2, 2).repeat_interleave(2, 3))


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next, if it is another one."""

    def __init__(self, before: int, after: int, count: int, resample: dict[str, nn.Module]) -> None:
        super().__init__()
        self.block = nn.Sequential(*(Residual(before if i == 0 else after, after) for i in range(count)))
        for name, layer in resample.items():
            self.add_module(name, layer)
        self.resample = tuple(resample)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.block(x_NCHW)
        for name in self.resample:
            x_NCHW = getattr(self, name)(x_NCHW)
        return x_NCHW


class Encoder(nn.Module):
    """Pictures (N, 3, H, W) in [-1, 1] -> (N, z, h, w). The first `halvings` levels halve the resolution."""

    def __init__(self, z: int, patch: int, widths: tuple[int, ...], blocks: int, halvings: int) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in = nn.Conv2d(3 * patch**2, widths[0], 3, padding=1)
        self.down = nn.Sequential(
            *(
                Level(a, b, blocks, {"downsample": Down(b)} if i < halvings else {})
                for i, (a, b) in enumerate(pairwise(widths))
            )
        )
        self.mid, self.norm_out = Middle(widths[-1]), norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h = self.mid(self.down(self.conv_in(patches(x_NCHW, self.patch))))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """(N, z, h, w) -> pictures (N, 3, H, W), in about [-1, 1]. The last `doublings` levels double the resolution.

    Levels are numbered from the finest, as in the encoder, and run from the last to the first.
    """

    def __init__(self, z: int, patch: int, widths: tuple[int, ...], blocks: int, doublings: int) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in, self.mid = nn.Conv2d(z, widths[-1], 3, padding=1), Middle(widths[-1])
        levels = list(enumerate(pairwise((*widths[1:], widths[-1]))))
        self.up = nn.ModuleList(
            Level(b, a, blocks + 1, {"upsample": Up(a)} if i >= len(levels) - doublings else {}) for i, (a, b) in levels
        )
        self.norm_out, self.conv_out = norm(widths[1]), nn.Conv2d(widths[1], 3 * patch**2, 3, padding=1)

    def forward(self, z_NCHW: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z_NCHW))
        for level in reversed(list(self.up)):
            h = level(h)
        return unpatched(self.conv_out(F.silu(self.norm_out(h))), self.patch)


@lru_cache(maxsize=16)
def bands(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Which of 2 x 2 neighbours each band adds (1) and subtracts (-1), (band, neighbour).

    Bands are the mean, the difference of rows, the difference of columns, and both. Those of video have the last axis
    first, (height, width) = (sum, difference) before (difference, sum): here the two in the middle change places.
    """
    with torch.inference_mode(False):
        return signs(2, torch.device("cpu"), dtype)[[0, 2, 1, 3]].to(device)


def patches(x_NCHW: Tensor, patch: int) -> Tensor:
    """Haar wavelets: (N, C, H * P, W * P) -> (N, C * P^2, H, W).

    Each level of it replaces 2 x 2 pixels by their `bands`, which come before channels; the next level takes all bands.
    """
    for _ in range(int(math.log2(patch))):
        x = x_NCHW.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4)
        x_NCHW = torch.einsum("gp,nchwp->ngchw", bands(x.device, x.dtype) / 4, x).flatten(1, 2)
    return x_NCHW


def unpatched(x_NCHW: Tensor, patch: int) -> Tensor:
    """The inverse of `patches`."""
    for _ in range(int(math.log2(patch))):
        x = torch.einsum("gp,ngchw->nchwp", bands(x_NCHW.device, x_NCHW.dtype), x_NCHW.unflatten(1, (4, -1)))
        x_NCHW = x.unflatten(4, (2, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    return x_NCHW
