"""Cosmos tokenizers: fine-tuned from published weights, and a small one from nothing."""

from __future__ import annotations

from hwm.data.mixture import DataConfig
from hwm.objectives.reconstruction import LossWeights
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import pixels
from hwm.tokenizers.cosmos import CosmosImage, CosmosVideo
from hwm.train.config import TrainConfig


@recipe
def cosmos_dv8x8x8_finetune() -> Recipe:
    """Published DV8x8x8 weights (--init) on video of one's own: clips of 17 frames of 256x256 as three steps of ids."""
    return Recipe(
        model=CosmosVideo.Config(),
        data=DataConfig(steps=17, expects=pixels(256)),
        train=TrainConfig(
            steps=10_000,
            batch_size=1,
            accumulate=8,
            lr=5e-5,
            floor=0.1,
            warmup=500,
            ema=0.999,
            activation_checkpoint="full",
            val_every=500,
            save_every=500,
        ),
    )


@recipe
def cosmos_cv8x8x8_finetune() -> Recipe:
    """As cosmos_dv8x8x8_finetune, with continuous latents of 16 channels."""
    return cosmos_dv8x8x8_finetune().but(model=dict(levels=()))


@recipe
def cosmos_di8x8_finetune() -> Recipe:
    """Published DI8x8 weights (--init) on pictures of one's own, 256x256."""
    return cosmos_dv8x8x8_finetune().but(model=CosmosImage.Config(), data=dict(steps=1), train=dict(batch_size=8))


@recipe
def cosmos_tiny() -> Recipe:
    """A DV4x8x8 of 2.3 million weights: 128x128 video <-> 16x16 ids of four frames each, in minutes on a CPU."""
    return Recipe(
        model=CosmosVideo.Config(time=4, base=48, multipliers=(1, 2), blocks=1, loss_weights=LossWeights(squared=4.0)),
        data=DataConfig(stores=("data/pixels",), val_stores=("data/pixels_heldout",), steps=9, expects=pixels()),
        train=TrainConfig(
            steps=4000,
            batch_size=2,
            lr=1.5e-3,
            floor=0.01,
            warmup=100,
            ema=0.998,
            val_every=500,
            val_batches=16,
            save_every=250,
        ),
    )
