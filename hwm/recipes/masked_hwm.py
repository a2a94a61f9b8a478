"""Masked-HWM (arXiv 2506.01182) at the paper's size, small enough to play on a laptop, and tiny for a first look."""

from __future__ import annotations

from dataclasses import replace

from hwm.data.mixture import DataConfig
from hwm.models.masked_hwm import MaskedHWM
from hwm.objectives.maskgit import MaskGITSampler
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import mini, onex_v2
from hwm.train.config import TrainConfig
from hwm.types import LatentSpec


@recipe
def masked_hwm_base() -> Recipe:
    """The paper's base block: 24 x 512, 8 heads, two past latents and one future latent of a 17-frame clip."""
    return Recipe(
        model=MaskedHWM.Config(dim=512, depth=24, heads=8, past=2, horizon=1),
        data=DataConfig(steps=3, expects=onex_v2()),
        train=TrainConfig(
            steps=60_000,
            batch_size=16,
            lr=3e-5,
            warmup=100,
            weight_decay=0.0,
            val_every=2000,
            save_every=2000,
        ),
        tokenizer="cosmos-dv8x8x8",
    )


@recipe
def masked_hwm_modality() -> Recipe:
    """One MLP for video and one for actions after the first four blocks."""
    return masked_hwm_base().but(model=dict(variant="modality"))


@recipe
def masked_hwm_full() -> Recipe:
    """One MLP for all four streams after the first four blocks."""
    return masked_hwm_base().but(model=dict(variant="full"))


@recipe
def masked_hwm_split() -> Recipe:
    """Video and actions attend to themselves, then video to actions."""
    return masked_hwm_base().but(model=dict(variant="split"))


@recipe
def masked_hwm_shared() -> Recipe:
    """The four-stream model with shared parameters, reading the latents of a clip as time."""
    from hwm.models.masked_hwm_shared import MaskedHWMShared

    return masked_hwm_base().but(model=MaskedHWMShared.Config(dim=512, depth=24, heads=8, past=2, horizon=1))


@recipe
def masked_hwm_shared_factors() -> Recipe:
    """The same, reading the three latents of a clip as three factors: only for checkpoints trained that way."""
    spec = onex_v2()
    factors = replace(spec, latent=LatentSpec((32, 32), 65_536, stride=8))
    return masked_hwm_shared().but(
        model=dict(clip_factors=3, past=3, horizon=3),
        data=DataConfig(steps=6, reader="1x-v2.0-joined", expects=factors),
    )


@recipe
def masked_hwm_mini() -> Recipe:
    """The shipped model: 128x128 pictures at 10 Hz, trained and played on two CPU cores.

    It differs from the paper's in what a small budget needs: every step of a clip is a target, spatial attention also
    reads the step before, ids are predicted digit by digit, and time is told by rotary positions alone, so that the
    window slides and the past is cached.
    """
    return Recipe(
        model=MaskedHWM.Config(
            dim=192,
            depth=5,
            heads=6,
            past=6,
            horizon=1,
            window_stride=3,
            variant="modality",
            unshared_layers=0,
            factorized=True,
            learned_steps=1,
            parallel=True,
            reach=1,
            copy_previous=True,
            action_deltas=True,
            ordered_actions=True,
            final_norm=True,
            fully_masked=0.7,
            max_corrupt=0.1,
            sampler=MaskGITSampler(steps=1, temperature=0.0, pick="mean"),
        ),
        data=DataConfig(stores=("mini",), val_stores=("mini_heldout",), steps=7, motion=1.0, expects=mini()),
        train=TrainConfig(
            steps=9_000,
            batch_size=8,
            optimizer="muon",
            lr=2e-3,
            floor=0.1,
            warmup=100,
            weight_decay=0.03,
            ema=0.998,
            val_every=500,
            val_batches=8,
            save_every=250,
        ),
        tokenizer="tiny",
    )


@recipe
def masked_hwm_mini_rollout() -> Recipe:
    """Second stage of the shipped model: half of the clips show the past as the model predicts it (give --init)."""
    return masked_hwm_mini().but(
        model=dict(own_past=1.0), train=dict(steps=3_000, lr=1e-3, floor=0.01, warmup=30, save_every=250)
    )
