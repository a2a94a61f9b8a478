"""A world small enough for tests: a toy model of any family and a tokenizer that paints ids as colours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwm.config import registered
from hwm.errors import HwmError
from hwm.interact.limits import Limits
from hwm.interact.session import World
from hwm.interact.starts import Start
from hwm.plugins import own
from hwm.types import ActionSpec, DataSpec, Tokenizer
from tests.interact.pages import address, browser, model, page  # noqa: F401  fixtures
from tests.models.toys import toy_batch, toy_spec

FAMILIES = sorted(entry.name for entry in own("hwm.models"))


class Painter(Tokenizer):
    """Ids as grey squares; each frame also carries a little of the step before (`lookback`)."""

    lookback = 1

    def __init__(self, spec: DataSpec) -> None:
        self.latent, self.id = spec.latent, spec.tokenizer
        self.size = (spec.latent.grid[0] * 4, spec.latent.grid[1] * 4)

    def encode(self, video_BFCHW: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(video_BFCHW.mean(2), 4)
        return (small * ((self.latent.vocab or 2) - 1)).round().long()

    def decode(self, latents: Tensor) -> Tensor:
        x = latents.float()
        if self.latent.channels is not None:
            x = x.mean(2).sigmoid()
        else:
            x = x / max(1, (self.latent.vocab or 2) - 1)
        before = torch.cat([x[:, :1], x[:, :-1]], 1)
        video = (0.75 * x + 0.25 * before).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return video[:, :, None].expand(-1, -1, 3, -1, -1).repeat_interleave(self.latent.stride, 1)


def spec_of(spec: DataSpec, names: tuple[str, ...]) -> DataSpec:
    """The spec with an arm of other actions, if any are named."""
    zeros, ones = (0.0,) * len(names), (1.0,) * len(names)
    return replace(spec, actions=spec.actions | {"arm": ActionSpec(2, names, zeros, ones)}) if names else spec


def build_world(name: str = "masked_hwm", names: tuple[str, ...] = (), **config: Any) -> World:
    """A toy model of a family, seeded, in float64 so that batches round alike; of an arm with the actions named."""
    torch.manual_seed(0)
    made = registered(name).tiny()
    if config:
        made = replace(made, **config)
    try:
        model = made.build(spec_of(toy_spec(), names))
    except HwmError:
        model = made.build(spec_of(toy_spec(channels=4), names))
    with torch.no_grad():
        for parameter in model.parameters():  # as built, some families hardly depend on what they see
            parameter.add_((0.5 if parameter.dim() > 1 else 0.05) * torch.randn_like(parameter))
    limits = {name: Limits.of_spec(action) for name, action in model.spec.actions.items()}
    return World(model, Painter(model.spec), limits, name=name)


def a_start(world: World, seed: int = 0) -> Start:
    batch = toy_batch(world.model.spec, world.model.config.past)
    rolled = batch.latents.roll(seed, -1)[0]
    return Start(f"toy:{seed}", rolled, batch.actions[0].numpy().astype(np.float32), batch.embodiment)


@pytest.fixture(params=FAMILIES)
def world(request: pytest.FixtureRequest) -> World:
    """A toy world of every family."""
    return build_world(request.param)
