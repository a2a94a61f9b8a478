"""The networks of the Cosmos video tokenizers: convolutions over space and, causally, over time.

Sources: Cosmos World Foundation Model Platform (arXiv 2501.03575), section on tokenizers, and
github.com/NVIDIA/Cosmos-Tokenizer (Apache-2.0), whose names of weights are kept here.

A video may run through in pieces. What a layer must remember of earlier pieces (two frames of a convolution, the keys
and values of attention) it keeps in a `Past` that the caller holds, under itself; the modules have no state. Without a
`Past` the video comes in one piece, as in training: nothing is kept, and running a part twice gives the same.

Activations lie with channels last. So a convolution over space sees frames as a batch, one over time sees cells as the
width of a picture, and neither copies anything.

Shape suffixes: B batch, F frames, T step of this resolution, H W rows and columns, C channels, S = H*W, P patch side.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwm.errors import HwmError

Past = dict[nn.Module, Tensor]
"""What layers remember of the pieces so far; empty before the first."""


def recall(past: Past | None, layer: nn.Module) -> Tensor | None:
    """What a layer remembers; None in the first piece."""
    return None if past is None else past.get(layer)


def first_piece(past: Past | None, layer: nn.Module) -> bool:
    """Whether a layer, which remembers nothing else, sees its first piece; it will know that it has."""
    if recall(past, layer) is not None:
        return False
    if past is not None:
        past[layer] = torch.empty(0)
    return True


class Conv(nn.Module):
    """A convolution over space or over time; its weight has five dimensions, as published.

    Over space it is padded with zeros. Over time the first frame stands for all before it.

    Args:
        size: (time, height, width) of the kernel, of which time or space must be 1.
        stride: in time, or in height and width. Space is padded at the end alone where it is 2.
    """

    def __init__(self, before: int, after: int, size: tuple[int, int, int] = (1, 1, 1), stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(before, after, size)
        self.size, self.stride = size, stride

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        weight, bias = self.conv3d.weight, self.conv3d.bias
        if self.size == (1, 1, 1):
            return F.linear(x_BTHWC, weight.flatten(1), bias)
        if self.size[0] == 1:
            frames_NCHW = x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
            pad = self.size[1] // 2 if self.stride == 1 else 0
            y_NCHW = F.conv2d(frames_NCHW, weight[:, :, 0], bias, self.stride, pad)
            return y_NCHW.permute(0, 2, 3, 1).unflatten(0, x_BTHWC.shape[:2])
        # with a stride of 2 the next window begins one frame later, and needs one frame less
        x_BTHWC = after(past, self, x_BTHWC, self.size[0] - 1, remember=self.size[0] - self.stride)
        cells_BCTS = x_BTHWC.flatten(2, 3).permute(0, 3, 1, 2)
        y_BCTS = F.conv2d(cells_BCTS, weight[..., 0], bias, (self.stride, 1))
        return y_BCTS.permute(0, 2, 3, 1).unflatten(2, x_BTHWC.shape[2:4])


def after(past: Past | None, layer: nn.Module, x_BTHWC: Tensor, first: int, remember: int) -> Tensor:
    """A piece with what its layer remembers before it; before the first piece `first` copies of its first frame.

    Keeps the last `remember` frames for the next piece, as a copy: a slice would keep all of the piece alive.
    """
    head = recall(past, layer)
    if head is None:
        head = x_BTHWC[:, :1].expand(-1, first, -1, -1, -1)
    x_BTHWC = torch.cat([head, x_BTHWC], 1)
    if past is not None:
        past[layer] = x_BTHWC[:, x_BTHWC.shape[1] - remember :].clone()
    return x_BTHWC


class ConvPair(nn.ModuleList):
    """3x3 over space, then 3 over time, with nothing between."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__([Conv(before, after, (1, 3, 3)), Conv(after, after, (3, 1, 1))])

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        return self[1](self[0](x_BTHWC, past), past)


class Norm(nn.Module):
    """Each frame normalised over all of its values, with a scale and shift of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        flat = x_BTHWC.flatten(2)
        x_BTHWC = F.layer_norm(flat, flat.shape[2:], eps=1e-6).view(x_BTHWC.shape)
        return torch.addcmul(self.norm.bias, x_BTHWC, self.norm.weight)


class Residual(nn.Module):
    """Norm, swish and a pair of convolutions, twice, added to the input (through a 1x1x1 one if widths differ)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(before), Norm(after)
        self.conv1, self.conv2 = ConvPair(before, after), ConvPair(after, after)
        self.nin_shortcut = None if before == after else Conv(before, after)

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BTHWC)), past)
        h = self.conv2(F.silu(self.norm2(h)), past)
        return (x_BTHWC if self.nin_shortcut is None else self.nin_shortcut(x_BTHWC, past)) + h


class Attend(nn.Module):
    """One head of attention, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.q, self.k, self.v, self.proj_out = (Conv(channels, channels) for _ in range(4))

    def project(self, x_BTHWC: Tensor, past: Past | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, T, S, C)."""
        h = self.norm(x_BTHWC)
        q_BTSC, k_BTSC, v_BTSC = (layer(h, past).flatten(2, 3) for layer in (self.q, self.k, self.v))
        return q_BTSC, k_BTSC, v_BTSC


class AttendSpace(Attend):
    """Among the cells of each frame."""

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        y_BTSC = F.scaled_dot_product_attention(*self.project(x_BTHWC, past))
        return x_BTHWC + self.proj_out(y_BTSC.view(x_BTHWC.shape), past)


class AttendTime(Attend):
    """From each cell to itself in earlier frames.

    Args:
        reach: how many frames it sees, its own included.
    """

    def __init__(self, channels: int, reach: int) -> None:
        super().__init__(channels)
        self.reach = reach

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        q_BSTC, *new = (x_BTSC.transpose(1, 2) for x_BTSC in self.project(x_BTHWC, past))
        known = recall(past, self)
        both = torch.stack(new) if known is None else torch.cat([known, torch.stack(new)], 3)
        steps, seen = q_BSTC.shape[2], both.shape[3]
        if past is not None:
            past[self] = both[:, :, :, max(0, seen - self.reach + 1) :].clone()
        earlier = seen - steps
        mask = torch.ones(steps, seen, dtype=torch.bool, device=q_BSTC.device)
        mask = mask.tril(earlier).triu(earlier - self.reach + 1)
        y_BSTC = F.scaled_dot_product_attention(q_BSTC, both[0], both[1], attn_mask=mask)
        return x_BTHWC + self.proj_out(y_BSTC.transpose(1, 2).reshape(x_BTHWC.shape), past)


class Middle(nn.Module):
    """A block, attention over space and over time, and a block, at the lowest resolution."""

    def __init__(self, channels: int, reach: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = Residual(channels, channels), Residual(channels, channels)
        self.attn_1 = nn.ModuleList([AttendSpace(channels), AttendTime(channels, reach)])

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        x_BTHWC = self.block_1(x_BTHWC, past)
        for attend in self.attn_1:
            x_BTHWC = attend(x_BTHWC, past)
        return self.block_2(x_BTHWC, past)


class Down(nn.Module):
    """Half the resolution: in each direction a convolution of stride 2 plus a mean of neighbours."""

    def __init__(self, channels: int, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, (1, 3, 3), stride=2) if space else None
        self.conv2 = Conv(channels, channels, (3, 1, 1), stride=2) if time else None
        self.conv3 = Conv(channels, channels)

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        if self.conv1 is not None:
            x_BTHWC = F.pad(x_BTHWC, (0, 0, 0, 1, 0, 1))
            means_NCHW = F.avg_pool2d(x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2), 2)
            x_BTHWC = self.conv1(x_BTHWC, past) + means_NCHW.permute(0, 2, 3, 1).unflatten(0, x_BTHWC.shape[:2])
        if self.conv2 is not None:
            pairs_BTHWC = after(past, self, x_BTHWC, first=1, remember=0)
            x_BTHWC = self.conv2(x_BTHWC, past) + pairs_BTHWC.unflatten(1, (-1, 2)).mean(2)
        return self.conv3(x_BTHWC, past)


class Up(nn.Module):
    """Twice the resolution: frames and cells are repeated, and corrected by a convolution.

    Of the first frame there is one copy: a video of 1 + n steps has 1 + 2n.
    """

    def __init__(self, channels: int, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, (3, 1, 1)) if time else None
        self.conv2 = Conv(channels, channels, (1, 3, 3)) if space else None
        self.conv3 = Conv(channels, channels)

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        if self.conv1 is not None:
            first = recall(past, self.conv1) is None
            x_BTHWC = x_BTHWC.repeat_interleave(2, 1)[:, int(first) :]
            x_BTHWC = x_BTHWC + self.conv1(x_BTHWC, past)
        if self.conv2 is not None:
            x_BTHWC = doubled(x_BTHWC, self.conv2.conv3d.weight[:, :, 0], self.conv2.conv3d.bias)
        return self.conv3(x_BTHWC, past)


def doubled(x_BTHWC: Tensor, weight_OCHW: Tensor, bias: Tensor | None) -> Tensor:
    """Cells repeated twice in height and width, plus a 3x3 convolution of that, zeros around it.

    A window of 3 x 3 copies shows 2 x 2 cells. So the convolution is four of 2 x 2, one for each place in a pair of
    rows and columns, of cells that are not repeated: four products in place of nine.
    """
    frames_NCHW = F.pad(x_BTHWC.flatten(0, 1), (0, 0, 1, 1, 1, 1)).permute(0, 3, 1, 2)
    height, width = x_BTHWC.shape[2:4]
    rows = []
    for i, of_rows in enumerate(_as_pairs(weight_OCHW, 2)):
        row = []
        for j, kernel in enumerate(_as_pairs(of_rows, 3)):
            seen = frames_NCHW[:, :, i : i + height + 1, j : j + width + 1]
            row.append(F.conv2d(seen, kernel, bias).permute(0, 2, 3, 1))
        rows.append(torch.stack(row, 3))
    y_NH2W2C = torch.stack(rows, 2) + x_BTHWC.flatten(0, 1)[:, :, None, :, None]
    return y_NH2W2C.flatten(3, 4).flatten(1, 2).unflatten(0, x_BTHWC.shape[:2])


def _as_pairs(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """A kernel of three along an axis, as it meets pairs of equal values: beginning at the end of one, and at its
    beginning."""
    a, b, c = weight.split(1, axis)
    return torch.cat([a, b + c], axis), torch.cat([a + b, c], axis)


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next, if it is another one: `downsample` or `upsample`."""

    def __init__(self, before: int, after: int, count: int, resample: dict[str, nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(before if i == 0 else after, after) for i in range(count))
        for name, layer in resample.items():
            self.add_module(name, layer)
        self.resample = tuple(resample)

    def forward(self, x_BTHWC: Tensor, past: Past | None) -> Tensor:
        for block in self.block:
            x_BTHWC = block(x_BTHWC, past)
        for name in self.resample:
            x_BTHWC = getattr(self, name)(x_BTHWC, past)
        return x_BTHWC


class Encoder(nn.Module):
    """Frames (B, F, 3, H, W) in [-1, 1] -> (B, T, h, w, z).

    The first piece has 1 + n * (frames a step) frames, those after it n * (frames a step).

    Args:
        z: channels of the result.
        patch: side of a patch in pixels and frames.
        widths: channels before the first level and of each level.
        blocks: residual blocks a level.
        down: (space, time) for each level: whether its resolution is halved after it.
        reach: latent steps that attention over time sees.
    """

    def __init__(
        self, z: int, patch: int, widths: tuple[int, ...], blocks: int, down: tuple[tuple[bool, bool], ...], reach: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in = ConvPair(3 * patch**3, widths[0])
        self.down = nn.ModuleList(
            Level(a, b, blocks, {"downsample": Down(b, *halve)} if any(halve) else {})
            for (a, b), halve in zip(pairwise(widths), down, strict=True)
        )
        self.mid, self.norm_out = Middle(widths[-1], reach), Norm(widths[-1])
        self.conv_out = ConvPair(widths[-1], z)

    def forward(self, x_BFCHW: Tensor, past: Past | None) -> Tensor:
        if first_piece(past, self):  # the first frame fills a patch by itself
            x_BFCHW = torch.cat([x_BFCHW[:, :1].expand(-1, self.patch - 1, -1, -1, -1), x_BFCHW], 1)
        h = self.conv_in(patches(x_BFCHW, self.patch), past)
        for level in self.down:
            h = level(h, past)
        return self.conv_out(F.silu(self.norm_out(self.mid(h, past))), past)


class Decoder(nn.Module):
    """(B, T, h, w, z) -> frames (B, F, 3, H, W), in about [-1, 1]. The arguments are the encoder's.

    Levels are numbered from the finest, as in the encoder, and run from the last to the first.

    Args:
        up: (space, time) for each level: whether its resolution is doubled after it.
    """

    def __init__(
        self, z: int, patch: int, widths: tuple[int, ...], blocks: int, up: tuple[tuple[bool, bool], ...], reach: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in, self.mid = ConvPair(z, widths[-1]), Middle(widths[-1], reach)
        levels = zip(pairwise((*widths[1:], widths[-1])), up, strict=True)
        self.up = nn.ModuleList(
            Level(b, a, blocks + 1, {"upsample": Up(a, *double)} if any(double) else {}) for (a, b), double in levels
        )
        self.norm_out, self.conv_out = Norm(widths[1]), ConvPair(widths[1], 3 * patch**3)

    def forward(self, z_BTHWC: Tensor, past: Past | None) -> Tensor:
        first = first_piece(past, self)
        h = self.mid(self.conv_in(z_BTHWC, past), past)
        for level in reversed(list(self.up)):
            h = level(h, past)
        h = self.conv_out(F.silu(self.norm_out(h)), past)
        return unpatched(h, self.patch)[:, self.patch - 1 if first else 0 :]


def patches(x_BFCHW: Tensor, patch: int) -> Tensor:
    """Haar wavelets: frames (B, T * P, C, H * P, W * P) -> (B, T, H, W, C * P^3).

    Each level of it replaces 2 x 2 x 2 values by their means with all choices of signs. Bands are in the order of
    (time, height, width), sums before differences, and come before channels; the next level takes all bands.
    """
    x = x_BFCHW.permute(0, 1, 3, 4, 2)
    _divides(x.shape[1:4], patch)
    for _ in range(int(math.log2(patch))):
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).unflatten(5, (-1, 2))  # B T 2 H 2 W 2 C
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6)
        x = torch.einsum("gp,bthwpc->bthwgc", signs(3, x.device, x.dtype) / 8, x).flatten(4)
    return x


def unpatched(x_BTHWC: Tensor, patch: int) -> Tensor:
    """The inverse of `patches`."""
    x = x_BTHWC
    for _ in range(int(math.log2(patch))):
        x = torch.einsum("gp,bthwgc->bthwpc", signs(3, x.device, x.dtype), x.unflatten(4, (8, -1)))
        x = x.unflatten(4, (2, 2, 2)).permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(1, 2).flatten(2, 3).flatten(3, 4)
    return x.permute(0, 1, 4, 2, 3)


@lru_cache(maxsize=16)
def signs(dims: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Which of 2^dims neighbours each band adds (1) and subtracts (-1), (band, neighbour); symmetric.

    Made outside inference mode, as all that is kept.
    """
    with torch.inference_mode(False):
        one, signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device="cpu"), torch.ones(1, 1, device="cpu")
        for _ in range(dims):
            signs = torch.kron(signs, one)
        return signs.to(device, dtype)


def _divides(sides: tuple[int, ...], patch: int) -> None:
    if any(side % patch for side in sides):
        raise HwmError(f"{tuple(sides)} frames, rows and columns do not divide into patches of {patch}")
