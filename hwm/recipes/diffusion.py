"""Diffusion by a U-Net: to be played on two cores, for a card of 24 GB, and for small pictures without a tokenizer."""

from __future__ import annotations

from dataclasses import replace

from hwm.data.mixture import DataConfig
from hwm.models.diffusion import Diffusion
from hwm.objectives.edm import EDMSampler
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import mini_continuous, push_t
from hwm.train.config import TrainConfig
from hwm.types import LatentSpec


@recipe
def diffusion_home() -> Recipe:
    """Plays on two CPU cores: 32 x 32 cells of four numbers, the next 0.1 s from 0.8 s."""
    cells = replace(mini_continuous(), latent=LatentSpec((32, 32), channels=4))
    return Recipe(
        model=Diffusion.Config(
            past=8,
            widths=(64, 128, 256),
            blocks=(2, 2, 3),
            attention=(False, True, True),
            patch=2,
            flow=0.5,
            # neighbouring cells are alike: what a picture shows is drowned by stronger noise than in fewer numbers
            context_noise=(0.02, 1.5),
            sigma_mean=0.5,
            sigma_std=1.4,
            sampler=EDMSampler(sigma_max=20.0),
        ),
        data=DataConfig(stores=("data/home_train",), val_stores=("data/home_heldout",), steps=9, expects=cells),
        train=TrainConfig(
            steps=100_000,
            batch_size=32,
            lr=8e-4,
            floor=0.02,
            warmup=200,
            betas=(0.9, 0.99),
            ema=0.9995,
            val_every=1000,
            save_every=1000,
        ),
        tokenizer="tiny_continuous",
    )


@recipe
def diffusion_lab() -> Recipe:
    """For one card of 24 GB: 32 x 32 cells of eight numbers, the next 0.1 s from 0.8 s."""
    cells = replace(mini_continuous(), latent=LatentSpec((32, 32), channels=8))
    return Recipe(
        model=Diffusion.Config(
            past=8,
            widths=(320, 640, 960, 1280),
            blocks=(2, 2, 3, 3),
            attention=(False, True, True, True),
            condition=1024,
            dropped_actions=0.1,
        ),
        data=DataConfig(stores=("data/home_train",), val_stores=("data/home_heldout",), steps=9, expects=cells),
        train=TrainConfig(
            steps=200_000,
            batch_size=64,
            lr=1e-4,
            warmup=1000,
            betas=(0.9, 0.99),
            ema=0.9995,
            val_every=2000,
            save_every=2000,
        ),
        tokenizer="tiny_continuous",
    )


@recipe
def diffusion_pusht() -> Recipe:
    """Without a tokenizer: pictures of 96 x 96 themselves, as those of Push-T are, the next 0.1 s from 0.4 s."""
    return Recipe(
        model=Diffusion.Config(
            widths=(64, 64, 128, 192),
            blocks=(1, 2, 2, 2),
            attention=(False, False, False, True),
            condition=256,
            sampler=EDMSampler(sigma_max=20.0),
        ),
        data=DataConfig(stores=("data/pusht",), val_stores=("data/pusht_heldout",), steps=5, expects=push_t()),
        train=TrainConfig(
            steps=50_000,
            batch_size=32,
            lr=2e-4,
            warmup=200,
            betas=(0.9, 0.99),
            ema=0.999,
            val_every=1000,
            save_every=1000,
        ),
        tokenizer="pixels-96x96",
    )
