"""GENIE, the baseline of the 1X World Model Challenge, at its two published sizes."""

from __future__ import annotations

from hwm.data.mixture import DataConfig
from hwm.models.genie import Genie
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import onex_v1
from hwm.train.config import TrainConfig


@recipe
def genie_35m() -> Recipe:
    """GENIE_35M: 32 x 256, 8 heads, muP; 16 frames of MAGVIT2 tokens at 2 Hz, no actions (--model.actions adds them).

    Learning rate, warm-up, betas, schedule, 64 clips an update and clips that do not overlap are what the authors gave;
    their number of updates is not known. They also trained on data that was not published.
    """
    return Recipe(
        model=Genie.Config(dim=256, depth=32, heads=8),
        data=DataConfig(steps=16, stride=15, filter_overlaps=True, expects=onex_v1()),
        train=TrainConfig(
            steps=60_000,
            batch_size=8,
            accumulate=8,
            lr=5e-4,
            warmup=1000,
            weight_decay=0.0,
            val_every=2000,
            save_every=2000,
        ),
        tokenizer="magvit2",
    )


@recipe
def genie_138m() -> Recipe:
    """GENIE_138M: twice as wide; muP takes the same learning rate."""
    return genie_35m().but(model=dict(dim=512))
