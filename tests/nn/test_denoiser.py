"""The network of a diffusion head."""

from __future__ import annotations

import torch
from torch import nn

from hwm.nn.denoiser import AdaptiveBlock, AdaptiveOut


def test_norms_add_a_millionth_to_the_variance() -> None:
    """As in MAR: inputs of variance 1e-6 come out with variance 1/2. At the size of usual inputs no epsilon shows."""
    x_W, told_W = torch.tensor([1e-3, -1e-3]).repeat(4), torch.zeros(8)
    expected_W = x_W.sign() * 0.5**0.5
    out = AdaptiveOut(8, 8)
    nn.init.eye_(out.linear.weight)
    for bias in (out.linear.bias, out.read[1].bias):
        nn.init.zeros_(bias)
    torch.testing.assert_close(out(x_W, told_W), expected_W)
    block = AdaptiveBlock(8)
    block.mlp = nn.Identity()
    nn.init.constant_(block.read[1].bias, 1.0)
    torch.testing.assert_close(block(x_W, told_W), x_W + expected_W * 2 + 1)
