"""Tokenizers of our own."""

from __future__ import annotations

from hwm.data.mixture import DataConfig
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import pixels
from hwm.tokenizers.tiny import TinyContinuous, TinyTokenizer
from hwm.train.config import TrainConfig


@recipe
def tiny_tokenizer() -> Recipe:
    """The shipped tokenizer: 128x128 pictures <-> 8x8 ids out of 64,000."""
    return Recipe(
        model=TinyTokenizer.Config(),
        data=DataConfig(stores=("data/pixels",), val_stores=("data/pixels_heldout",), steps=1, expects=pixels()),
        train=TrainConfig(
            steps=8000,
            batch_size=16,
            lr=1.5e-3,
            floor=0.01,
            warmup=200,
            ema=0.999,
            val_every=500,
            val_batches=16,
            save_every=500,
        ),
    )


@recipe
def tiny_continuous_tokenizer() -> Recipe:
    """The continuous twin: 128x128 pictures <-> 8x8 cells of 8 numbers. `--init tiny` saves half the work."""
    return tiny_tokenizer().but(model=TinyContinuous.Config(), train=dict(steps=3000))


@recipe
def tokenizer_home() -> Recipe:
    """For the simulated home: 128x128 pictures <-> 32x32 cells of 4 numbers that move as pictures do."""
    return tiny_tokenizer().but(
        model=TinyContinuous.Config(down=4, channels=4, decoder_width=64, perceptual=0.15, moving=0.5),
        data=dict(stores=("data/home_pixels",), val_stores=("data/home_pixels_heldout",)),
        train=dict(steps=3000, lr=2e-3, warmup=100, ema=0.995),
    )


@recipe
def tokenizer_home_ids() -> Recipe:
    """For the same pictures, 8x8 ids out of 64,000, by a perceptual loss too."""
    return tokenizer_home().but(model=TinyTokenizer.Config(perceptual=0.15))
