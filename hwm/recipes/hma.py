"""HMA at the sizes of its authors, on 1X v1.1, and at a size for the embedded data."""

from __future__ import annotations

from dataclasses import replace

from hwm.data.mixture import DataConfig
from hwm.models.hma_continuous import HMAContinuous, MARSampler
from hwm.models.hma_discrete import HMADiscrete
from hwm.objectives.maskgit import MaskGITSampler
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import mini, onex_v1, pixels
from hwm.train.config import TrainConfig
from hwm.types import ActionSpec, DataSpec, LatentSpec


@recipe
def hma_discrete_base() -> Recipe:
    """HMA's base size, 32 x 256, on 1X v1.1: 12 frames of MAGVIT2 tokens at 2 Hz, actions as tokens and as modulation.

    Learning rate, weight decay, warm-up, betas, 64 clips an update and 60,000 updates are the authors', who trained on
    40 robots at once: give --data.stores several. Not run to its end here.
    """
    return Recipe(
        model=HMADiscrete.Config(),
        data=DataConfig(steps=12, rate=2.0, filter_overlaps=True, expects=onex_v1()),
        train=TrainConfig(
            steps=60_000,
            batch_size=8,
            accumulate=8,
            lr=1e-4,
            floor=1.0,
            warmup=500,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            val_every=2000,
            save_every=2000,
        ),
        tokenizer="magvit2",
    )


@recipe
def hma_discrete_xl() -> Recipe:
    """The largest size of the paper, 32 x 1024; muP takes the same learning rate."""
    return hma_discrete_base().but(model=dict(dim=1024), train=dict(activation_checkpoint="full"))


@recipe
def hma_discrete_tiny() -> Recipe:
    """The same kind of model on the embedded data, small enough for minutes on a CPU: 0.1 s at a time."""
    return Recipe(
        model=HMADiscrete.Config(
            dim=128,
            depth=4,
            heads=4,
            past=6,
            window_stride=3,
            prompt=2,
            action_tokens=4,
            mup=False,
            label_smoothing=0.0,
            sampler=MaskGITSampler(steps=2),
        ),
        data=DataConfig(stores=("mini",), val_stores=("mini_heldout",), steps=7, motion=1.0, expects=mini()),
        train=TrainConfig(
            steps=600,
            batch_size=8,
            optimizer="muon",
            lr=3e-3,
            floor=0.1,
            warmup=50,
            weight_decay=0.03,
            ema=0.99,
            val_every=200,
            val_batches=4,
            save_every=200,
        ),
        tokenizer="tiny",
    )


@recipe
def hma_continuous_base() -> Recipe:
    """HMA's base size over continuous latents of 32 x 32 x 4, 2 x 2 of them a token; a diffusion head of 4 x 1024.

    Such latents are those of the VAE of Stable Video Diffusion, the tokenizer `svd-vae` (extra `vae`). Learning rate,
    weight decay and gradient norm are the authors'. Not run here.
    """
    v1 = onex_v1("svd-vae")
    return hma_discrete_base().but(
        model=HMAContinuous.Config(),
        data=dict(expects=replace(v1, latent=LatentSpec((32, 32), channels=4))),
        train=dict(lr=2e-4, weight_decay=0.01, clip=10.0),
        tokenizer="svd-vae",
    )


@recipe
def hma_language_table() -> Recipe:
    """HMA's second stage: the continuous base size goes on on Language Table alone; begin with --init MODEL_OF_MANY.

    Learning rate, weight decay, gradient norm and 8 clips an update are the authors', and so is that every step of the
    recordings is taken, ten a second. How many updates they made is not known: 10,000 are ours. Not run here.
    """
    return hma_continuous_base().but(
        data=dict(
            split="language_table",
            root="data",
            rate=0.0,
            expects=DataSpec(
                LatentSpec((32, 32), channels=4),
                {"language_table": ActionSpec(1, ("x", "y"), (0.0, 0.0), (1.0, 1.0))},
                "svd-vae",
                10.0,
            ),
        ),
        train=dict(steps=10_000, batch_size=8, accumulate=1),
    )


@recipe
def hma_continuous_tiny() -> Recipe:
    """The same kind of model for a CPU: pictures of 32 x 32 themselves, 4 x 4 of their pixels a token."""
    return hma_discrete_tiny().but(
        model=HMAContinuous.Config(
            dim=128,
            depth=4,
            heads=4,
            past=6,
            window_stride=3,
            prompt=2,
            action_tokens=4,
            mup=False,
            mlp_drop=0.0,
            fully_masked=0.2,
            patch=4,
            head_depth=2,
            head_width=256,
            sampler=MARSampler(steps=4, diffusion_steps=20, temperature=0.9, clamp=4.0),
        ),
        data=dict(stores=("data/pixels_32",), val_stores=("data/pixels_32_heldout",), expects=pixels(32)),
        tokenizer="pixels-32x32",
    )
