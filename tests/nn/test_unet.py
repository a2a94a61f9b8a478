"""The U-Net: shapes, who sees whom, what it is before it has learned anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hwm.errors import HwmError
from hwm.nn.unet import CellAttention, UNet, UNetBlock, modulated


def opened(module: Any) -> Any:
    """With branches that let pass."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return module


def test_blocks_begin_as_the_identity() -> None:
    block, x = UNetBlock(32, 8, attention=True), torch.randn(2, 32, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 8)), x)
    assert not torch.equal(opened(block)(x, torch.randn(2, 8)), x)


def test_features_are_normed_in_groups_and_then_scaled_and_shifted_for_each_example() -> None:
    x, scale, shift = torch.randn(2, 32, 3, 5) * 4 + 1, torch.randn(2, 32), torch.randn(2, 32)
    out = modulated(x, scale, shift)
    for row in range(2):
        part = x[row].view(2, -1)
        normed = ((part - part.mean(1, keepdim=True)) / part.var(1, keepdim=True, unbiased=False).sqrt()).view(32, 3, 5)
        torch.testing.assert_close(out[row], normed * (1 + scale[row, :, None, None]) + shift[row, :, None, None])


def test_attention_is_that_of_all_cells_of_a_picture() -> None:
    layer = opened(CellAttention(128)).double()
    x_BDHW = torch.randn(2, 128, 3, 2, dtype=torch.float64)
    rows = layer.norm(x_BDHW).flatten(2).transpose(1, 2)  # (B, L, D)
    q, k, v = (part.unflatten(-1, (2, 64)).transpose(1, 2) for part in layer.qkv(rows).chunk(3, -1))
    mixed = F.softmax(q @ k.transpose(-1, -2) / 8, -1) @ v
    want = layer.proj(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (3, 2))
    torch.testing.assert_close(layer(x_BDHW), want)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_row_is_by_itself_in_any_layout(layout: torch.memory_format) -> None:
    net = opened(UNet((16, 32, 48), (1, 2, 1), (False, True, True), 8)).double()
    x, c = torch.randn(3, 16, 8, 4, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    out = net(x.contiguous(memory_format=layout), c)
    assert out.shape == x.shape
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], c[i : i + 1]), out[i : i + 1])
    assert not torch.allclose(net(x, c + 1), out)


def test_channels_stay_last_in_memory_all_the_way() -> None:
    """Convolutions that have to rearrange their input take twice as long."""
    net = opened(UNet((16, 32), (1, 1), (True, True), 8))
    seen = []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last), torch.randn(2, 8))
    assert len(seen) == 9
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_every_level_and_every_block_has_its_part_in_the_result() -> None:
    net = opened(UNet((16, 32, 32), (2, 1, 2), (False, False, True), 8))
    net(torch.randn(2, 16, 8, 8), torch.randn(2, 8)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert [block.conv1.in_channels for block in net.units()] == [16, 16, 32, 32, 32, 32, 16, 16]


@pytest.mark.parametrize(
    ("widths", "blocks", "attention", "message"),
    [
        ((16, 32), (1,), (False, False), "one entry for each level"),
        ((), (), (), "one entry for each level"),
        ((16,), (0,), (False,), "one block in each"),
        ((24,), (1,), (False,), r"widths \(24,\) must be multiples of 16"),
        ((208,), (1,), (True,), "divide into heads"),
    ],
)
def test_levels_that_do_not_fit_are_refused(widths: Any, blocks: Any, attention: Any, message: str) -> None:
    with pytest.raises(HwmError, match=message):
        UNet(widths, blocks, attention, 8)
