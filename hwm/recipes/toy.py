"""Runs of a minute on a CPU: for a first look, and for trying out changes."""

from __future__ import annotations

from hwm.recipes import Recipe, recipe
from hwm.recipes.masked_hwm import masked_hwm_mini


@recipe
def masked_hwm_toy() -> Recipe:
    """`masked_hwm_mini`, smaller: the loss falls visibly within a minute on a CPU."""
    return masked_hwm_mini().but(
        model=dict(dim=96, depth=3, heads=3),
        train=dict(steps=160, batch_size=8, warmup=20, ema=0.98, val_every=20, val_batches=4, save_every=80),
    )
