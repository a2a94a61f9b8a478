"""Flow-HWM (arXiv 2506.01182) at the paper's size, and tiny for a first look."""

from __future__ import annotations

from dataclasses import replace

from hwm.data.mixture import DataConfig
from hwm.models.flow_hwm import FlowHWM
from hwm.objectives.flow import FlowSampler
from hwm.recipes import Recipe, recipe
from hwm.recipes.specs import onex_v2, pixels
from hwm.train.trainer import TrainConfig
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
            dtype="bfloat16",
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
def flow_hwm_tiny() -> Recipe:
    """Small enough for a CPU: pictures of 32 x 32 themselves, one step of 0.1 s from two, context run once a step."""
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
