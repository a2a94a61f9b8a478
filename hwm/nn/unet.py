"""A U-Net over cells whose features are scaled and shifted by one vector an example: a denoiser of latents or pictures.

U-Net: Ronneberger et al. 2015, arXiv 1505.04597; residual blocks scaled and shifted feature by feature, with attention
where there are few cells: Dhariwal and Nichol 2021, arXiv 2105.05233; feature-wise modulation: Perez et al. 2017, arXiv
1709.07871.

Shape suffixes: B batch, C channels, H W grid, L cells in one row, D width, h heads, d = D/h head width, E width of the
condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.nn.attention import attend

GROUP = 16  # channels that are normed together
HEAD = 64  # channels of an attention head, about


def groups(width: int) -> int:
    """Groups of channels that are normed together."""
    return width // GROUP


def heads(width: int) -> int:
    """Heads of attention."""
    return max(1, width // HEAD)


class CellAttention(nn.Module):
    """Every cell attends to all cells of its picture: (B, D, H, W) -> (B, D, H, W), zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = heads(width)
        self.norm = nn.GroupNorm(groups(width), width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        rows_BLD = self.norm(x_BDHW).permute(0, 2, 3, 1).flatten(1, 2)  # no copy: channels are last in memory
        q, k, v = self.qkv(rows_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out_BLD = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return out_BLD.unflatten(1, x_BDHW.shape[2:]).permute(0, 3, 1, 2)


class UNetBlock(nn.Module):
    """Two convolutions and, where asked for, attention, each added to what goes in; the identity at first.

    Before each convolution come a norm of groups of channels, scaled and shifted by a Linear of the condition, and
    SiLU.
    """

    def __init__(self, width: int, condition: int, attention: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition, 4 * width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.attention = CellAttention(width) if attention else None
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x_BDHW: Tensor, condition_BE: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.modulation(condition_BE).chunk(4, 1)
        h_BDHW = self.conv1(F.silu(modulated(x_BDHW, scale1, shift1)))
        x_BDHW = x_BDHW + self.conv2(F.silu(modulated(h_BDHW, scale2, shift2)))
        return x_BDHW if self.attention is None else x_BDHW + self.attention(x_BDHW)


def modulated(x_BDHW: Tensor, scale_BD: Tensor, shift_BD: Tensor) -> Tensor:
    """A norm of groups of channels without weights, scaled by 1 + scale and shifted."""
    normed_BDHW = F.group_norm(x_BDHW, groups(x_BDHW.shape[1]))
    return torch.addcmul(shift_BD[..., None, None], normed_BDHW, 1 + scale_BD[..., None, None])


class UNet(nn.Module):
    """Features of a grid, (B, W0, H, W), through levels of halved grids and back, of the same shape.

    Each level but the last has as many blocks on the way down as on the way up. What leaves a level on the way down is
    joined with what comes back.

    Args:
        widths: channels of each level.
        blocks: of each level, on each way.
        attention: whether the blocks of each level attend.
        condition: width of the vector of an example.

    Raises:
        HwmError: the levels do not fit together.
    """

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], attention: Sequence[bool], condition: int) -> None:
        super().__init__()
        if not len(widths) == len(blocks) == len(attention) or not widths or min(blocks) < 1:
            raise HwmError(
                f"widths {tuple(widths)}, blocks {tuple(blocks)} and attention {tuple(attention)} want one entry for "
                "each level, and one block in each at least"
            )
        if any(w % GROUP or w % heads(w) for w in widths):
            raise HwmError(
                f"widths {tuple(widths)} must be multiples of {GROUP}, and divide into heads of about {HEAD}"
            )

        def level(i: int) -> nn.ModuleList:
            return nn.ModuleList(UNetBlock(widths[i], condition, attention[i]) for _ in range(blocks[i]))

        upper = range(len(widths) - 1)
        self.down, self.middle = nn.ModuleList(level(i) for i in upper), level(len(widths) - 1)
        self.up = nn.ModuleList(level(i) for i in upper)
        self.shrink = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 2, stride=2) for i in upper)
        self.grow = nn.ModuleList(nn.Conv2d(widths[i + 1], 4 * widths[i], 1) for i in upper)
        self.join = nn.ModuleList(nn.Conv2d(2 * widths[i], widths[i], 1) for i in upper)

    def units(self) -> list[nn.Module]:
        """The blocks, in the order in which they are run."""
        return [block for level in (*self.down, self.middle, *reversed(self.up)) for block in level]  # type: ignore

    def forward(self, x_BDHW: Tensor, condition_BE: Tensor) -> Tensor:
        left = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            x_BDHW = through(blocks, x_BDHW, condition_BE)
            left.append(x_BDHW)
            x_BDHW = shrink(x_BDHW)
        x_BDHW = through(self.middle, x_BDHW, condition_BE)
        for i in reversed(range(len(left))):
            back_BDHW = F.pixel_shuffle(self.grow[i](x_BDHW), 2)
            x_BDHW = self.join[i](torch.cat([back_BDHW, left[i]], 1))
            x_BDHW = through(self.up[i], x_BDHW, condition_BE)
        return x_BDHW


def through(blocks: nn.Module, x_BDHW: Tensor, condition_BE: Tensor) -> Tensor:
    """One block after the other."""
    for block in blocks.children():
        x_BDHW = block(x_BDHW, condition_BE)
    return x_BDHW
