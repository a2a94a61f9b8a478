"""Cosmos-Predict1's autoregressive models at their published sizes, and at sizes to be trained from nothing."""

from __future__ import annotations

from hwm.data.mixture import DataConfig
from hwm.models.cosmos_ar import CosmosAR
from hwm.objectives.next_token import NextTokenSampler
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import mini, onex_v2
from hwm.train.config import TrainConfig


@recipe
def cosmos_ar_4b() -> Recipe:
    """Cosmos-Predict1-4B on 1X v2.0: the third latent of a clip from the two before (--model.actions adds actions).

    Give --init a converted checkpoint. It was trained on another tokenizer, of the same vocabulary: learning rate and
    batch are NVIDIA's for such a change, the number of updates is ours. None of this has been run at this size.
    """
    return Recipe(
        model=CosmosAR.Config(past=2, window_stride=1),
        data=DataConfig(steps=3, expects=onex_v2()),
        train=TrainConfig(
            steps=3_000,
            batch_size=1,
            accumulate=32,
            lr=1e-4,
            warmup=100,
            weight_decay=0.05,
            activation_checkpoint="full",
            val_every=500,
            save_every=500,
        ),
        tokenizer="cosmos-dv8x8x8",
    )


@recipe
def cosmos_ar_12b() -> Recipe:
    """Cosmos-Predict1-12B: wider and deeper, with YaRN."""
    return cosmos_ar_4b().but(model=dict(dim=5120, depth=40, yarn_scale=2.0))


@recipe
def cosmos_ar_5b() -> Recipe:
    """Cosmos-Predict1-5B-Video2World: the 4B with attention to a text, absolute positions, and an id to begin with."""
    return cosmos_ar_4b().but(model=dict(context_dim=1024, absolute="bfloat16", begin=True))


@recipe
def cosmos_ar_13b() -> Recipe:
    """Cosmos-Predict1-13B-Video2World: the 12B with what the 5B has."""
    return cosmos_ar_12b().but(model=dict(context_dim=1024, absolute="bfloat16", begin=True))


@recipe
def cosmos_ar_100m() -> Recipe:
    """The same kind of model from nothing, on 1X v2.0 with actions: 16 x 768, ids digit by digit.

    The size and the training are ours, a place to begin from; it has not been run to its end.
    """
    return cosmos_ar_4b().but(
        model=dict(
            dim=768, depth=16, mlp_dim=2048, heads=12, kv_heads=4, head_dim=64, factorized=True, actions=True
        ),
        train=dict(
            steps=60_000, batch_size=8, accumulate=2, lr=6e-4, warmup=1000, activation_checkpoint="none",
            val_every=2000, save_every=2000,
        ),
    )  # fmt: skip


@recipe
def cosmos_ar_tiny() -> Recipe:
    """The same on the embedded data, small enough for a CPU: one step of 0.1 s at a time, with actions."""
    return Recipe(
        model=CosmosAR.Config(
            dim=128,
            depth=4,
            mlp_dim=384,
            heads=4,
            kv_heads=2,
            head_dim=32,
            past=6,
            window_stride=3,
            factorized=True,
            actions=True,
            action_deltas=True,
            max_corrupt=0.1,
            sampler=NextTokenSampler(temperature=0.0),
        ),
        data=DataConfig(stores=("mini",), val_stores=("mini_heldout",), steps=7, motion=1.0, expects=mini()),
        train=TrainConfig(
            steps=2_400,
            batch_size=8,
            optimizer="muon",
            lr=3e-3,
            floor=0.1,
            warmup=50,
            weight_decay=0.03,
            ema=0.99,
            val_every=400,
            val_batches=4,
            save_every=200,
        ),
        tokenizer="tiny",
    )


@recipe
def cosmos_ar_tiny_rollout() -> Recipe:
    """Its second stage: half of the clips show tokens as the model predicts them (give --init)."""
    return cosmos_ar_tiny().but(
        model=dict(own_past=1.0), train=dict(steps=600, lr=1e-3, floor=0.01, warmup=30, val_every=200)
    )
