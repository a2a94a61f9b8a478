"""Data that recipes are written for: layouts known before any file is at hand."""

from __future__ import annotations

from hwm.data.onex.specs import ACTIONS_1X as ACTIONS_1X
from hwm.data.onex.specs import COSMOS_LEVELS as COSMOS_LEVELS
from hwm.data.onex.specs import actions_1x as actions_1x
from hwm.data.onex.specs import onex_v1 as onex_v1
from hwm.data.onex.specs import onex_v2 as onex_v2
from hwm.types import ActionSpec, DataSpec, LatentSpec


def mini() -> DataSpec:
    """The embedded set: 128x128 pictures at 10 Hz as 8x8 ids of the shipped tokenizer, three actions a step."""
    latent = LatentSpec((8, 8), 64_000, levels=COSMOS_LEVELS)
    return DataSpec(latent, {"sim_g1": actions_1x(3)}, "tiny", 10.0)


def mini_continuous() -> DataSpec:
    """The same pictures as 8x8 cells of eight numbers of the tokenizer `tiny_continuous`."""
    return DataSpec(LatentSpec((8, 8), channels=8), {"sim_g1": actions_1x(3)}, "tiny_continuous", 10.0)


def pixels(side: int = 128) -> DataSpec:
    """Pictures themselves: what a tokenizer is trained on."""
    return DataSpec(LatentSpec((side, side), channels=3), {"sim_g1": actions_1x(3)}, f"pixels-{side}x{side}", 10.0)


def push_t() -> DataSpec:
    """Push-T: pictures of 96x96 at 10 Hz, and where the pusher is sent before each."""
    latent, action = LatentSpec((96, 96), channels=3), ActionSpec(1, ("x", "y"), (256.0, 256.0), (100.0, 100.0))
    return DataSpec(latent, {"pusht": action}, "pixels-96x96", 10.0)
