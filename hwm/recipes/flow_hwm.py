"""Flow-HWM (arXiv 2506.01182) at the paper's size, and tiny for a first look."""

from __future__ import annotations

from dataclasses import replace

from hwm.data.mixture import DataConfig
from hwm.models.flow_hwm import FlowHWM
from hwm.models.flow_hwm_uvit import FlowHWMUViT
from hwm.objectives.flow import FlowSampler
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import mini_continuous, onex_v2, pixels
from hwm.train.config import TrainConfig
from hwm.types import LatentSpec


@recipe
def flow_hwm_base() -> Recipe:
    """The paper's base block: 15 x 1152, 16 heads, two past latents and one future latent of a 17-frame clip."""
    continuous = replace(onex_v2("cosmos-cv8x16x16"), latent=LatentSpec((16, 16), channels=16, stride=8))
    return Recipe(
        model=FlowHWM.Config(dim=1152, depth=15, heads=16, past=2, horizon=1),
        data=DataConfig(steps=3, expects=continuous),
        train=TrainConfig(
            steps=150_000,
            batch_size=16,
            accumulate=8,
            lr=1e-4,
            warmup=0,
            betas=(0.9, 0.99),
            ema=0.999,
            val_every=2000,
            save_every=2000,
        ),
        tokenizer="cosmos-cv8x16x16",
    )


@recipe
def flow_hwm_modality() -> Recipe:
    """One set of weights for video and one for actions after the first four blocks."""
    return flow_hwm_base().but(model=dict(variant="modality"))


@recipe
def flow_hwm_full() -> Recipe:
    """One set of weights for all four streams after the first four blocks."""
    return flow_hwm_base().but(model=dict(variant="full"))


@recipe
def flow_hwm_split() -> Recipe:
    """Each stream attends to itself, then the future video to the others."""
    return flow_hwm_base().but(model=dict(variant="split"))


@recipe
def flow_hwm_uvit() -> Recipe:
    """Base blocks with the skips of a U-ViT, on four times as many cells: of 8 x 8 pixels instead of 16 x 16."""
    finer = replace(onex_v2("cosmos-cv8x8x8"), latent=LatentSpec((32, 32), channels=16, stride=8))
    return Recipe(
        model=FlowHWMUViT.Config(dim=1152, depth=15, heads=16, past=2, horizon=1),
        data=DataConfig(steps=3, expects=finer),
        train=replace(flow_hwm_base().train, batch_size=9, accumulate=9),
        tokenizer="cosmos-cv8x8x8",
    )


@recipe
def flow_hwm_base_tiny() -> Recipe:
    """Small enough for a CPU: the embedded pictures, four steps of 0.1 s from two, sampled in one to four steps."""
    return Recipe(
        model=FlowHWM.Config(
            dim=96,
            depth=4,
            heads=4,
            unshared_layers=1,
            past=2,
            horizon=4,
            any_horizon=True,
            clean_context=True,
            direct=True,
            condition_dropout=0.05,
            logit_normal_mean=-1.0,
            objective="shortcut",
            sampler=FlowSampler(steps=2, guidance=1.0),
        ),
        data=DataConfig(
            stores=("data/flow_train",),
            val_stores=("data/flow_heldout",),
            steps=6,
            motion=1.0,
            expects=mini_continuous(),
        ),
        train=TrainConfig(
            steps=3_000,
            batch_size=16,
            optimizer="muon",
            lr=2e-3,
            floor=0.05,
            warmup=50,
            ema=0.99,
            val_every=500,
            save_every=500,
        ),
        tokenizer="tiny_continuous",
    )


@recipe
def flow_hwm_modality_tiny() -> Recipe:
    """The same with one set of weights for video and one for actions after the first block."""
    return flow_hwm_base_tiny().but(model=dict(variant="modality"))


@recipe
def flow_hwm_full_tiny() -> Recipe:
    """The same with one set of weights for all four streams after the first block."""
    return flow_hwm_base_tiny().but(model=dict(variant="full"))


@recipe
def flow_hwm_split_tiny() -> Recipe:
    """The same with each stream by itself, then the future video over the others; the context is run once."""
    return flow_hwm_base_tiny().but(model=dict(variant="split"))


@recipe
def flow_hwm_uvit_tiny() -> Recipe:
    """The same as a U-ViT, of five blocks."""
    base = flow_hwm_base_tiny()
    fields = {k: v for k, v in vars(base.model).items() if k not in ("variant", "unshared_layers")}
    return replace(base, model=FlowHWMUViT.Config(**fields | dict(depth=5)))


@recipe
def flow_hwm_tiny() -> Recipe:
    """Without a tokenizer: pictures of 32 x 32 themselves, one step of 0.1 s from two, context run once a step."""
    return Recipe(
        model=FlowHWM.Config(
            dim=96,
            depth=4,
            heads=4,
            variant="split",
            patch=4,
            clean_context=True,
            sampler=FlowSampler(steps=10, solver="midpoint", guidance=1.5),
        ),
        data=DataConfig(
            stores=("data/pixels_32",), val_stores=("data/pixels_32_heldout",), steps=3, motion=1.0, expects=pixels(32)
        ),
        train=TrainConfig(steps=3_000, batch_size=16, lr=1e-3, floor=0.05, ema=0.998, val_every=500, save_every=500),
        tokenizer="pixels-32x32",
    )
