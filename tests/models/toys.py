"""Small data that every world model is tested on."""

import torch

from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec

LEVELS = (3, 4, 5)


def toy_spec(
    stride: int = 1, per_step: int = 2, grid: tuple[int, int] = (4, 4), channels: int | None = None
) -> DataSpec:
    arm = ActionSpec(per_step, ("shoulder", "elbow", "wrist"), (0.1, 0.0, -0.1), (1.0, 2.0, 0.0))
    hand = ActionSpec(per_step, ("thumb", "index"), (0.0, 0.0), (1.0, 1.0))
    discrete = LatentSpec((4, 4), vocab=60, stride=stride, levels=LEVELS)
    latent = LatentSpec((4, 4), channels=channels, stride=stride) if channels else discrete
    return DataSpec(latent, {"arm": arm, "hand.v2": hand})


def toy_batch(spec: DataSpec, steps: int, batch: int = 2, embodiment: str = "arm", seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    latent, action = spec.latent, spec.actions[embodiment]
    actions = torch.randn(batch, steps, action.per_step, action.dim, generator=generator)
    if latent.channels:
        return Batch(torch.randn(batch, steps, latent.channels, *latent.grid, generator=generator), actions, embodiment)
    return Batch(torch.randint(latent.vocab, (batch, steps, *latent.grid), generator=generator), actions, embodiment)


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether a tensor begins at a multiple of 64 bytes, as all that torch allocates does."""
    return tensor.data_ptr() % 64 == 0
