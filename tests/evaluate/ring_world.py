"""A toy in the place of the simulated humanoid: a camera before a wallpaper, that pans as it turns, zooms as it drives.

Pictures are computed from the pose, so that a model which knows the pose can be perfect. The wallpaper closes on itself
after a full turn.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from hwm.data.clips import Clips
from hwm.data.store import Header
from hwm.data.writer import Writer
from hwm.evaluate.judge import Starts
from hwm.models.base import WorldModel
from hwm.sim.twin import Origin
from hwm.tokenizers.pixels import Pixels
from hwm.types import Batch, Prediction

SIZE, SLOTS, FPS = 32, 3, 10.0
NAMES = ("ARM", "LINEAR_VELOCITY", "ANGULAR_VELOCITY")


def view(seed: int, pose: np.ndarray) -> np.ndarray:
    """The picture from a pose (x, y, yaw), (SIZE, SIZE, 3) uint8; y does nothing."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] - (SIZE - 1) / 2
    zoom = np.exp(0.4 * pose[0])
    u, v = columns / zoom - pose[2] * SIZE / (2 * np.pi) * 4, rows / zoom
    out = np.zeros((SIZE, SIZE, 3))
    for colour in range(3):
        for _ in range(8):
            kx, ky = rng.integers(1, 24), rng.integers(-8, 8)
            out[..., colour] += np.sin(2 * np.pi * (kx * u / (4 * SIZE) + ky * v / SIZE) + rng.uniform(0, 6.28))
    return ((out / 12 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)


class RingTwin:
    """Has the face of `Twin`. Speeds are those commanded, at once."""

    open = 0

    def __init__(self, origin: Origin, size: int) -> None:
        assert RingTwin.open == 0, "the simulator before was not closed"
        assert size == SIZE
        RingTwin.open += 1
        self.seed, self.at = origin.seed, np.zeros(3)
        self.sim = SimpleNamespace(room=SimpleNamespace(is_free=lambda point, margin: np.abs(point).max() < 2 - margin))
        for actions in origin.actions[1:]:
            self.step(actions)

    def step(self, actions_KA: np.ndarray) -> None:
        for _, drive, turn in actions_KA:
            self.at += np.array([drive, 0, turn]) / (FPS * SLOTS)

    def frame(self) -> np.ndarray:
        return view(self.seed, self.at)

    def pose(self) -> np.ndarray:
        return self.at.copy()

    def __enter__(self) -> RingTwin:
        return self

    def __exit__(self, *_: object) -> None:
        RingTwin.open -= 1


class Knowing(WorldModel):
    """Knows where each start is, and shows what the simulator would, were the speeds `obeyed` times those told.

    `twist` adds so many metres for each radian turned to either side.
    """

    starts: Starts
    obeyed, twist = 1.0, 0.0

    def predict(self, batch: Batch, *, sampler=None, logits=False, cache=None, generator=None) -> Prediction:
        past = batch.latents.shape[1]
        return Prediction(
            torch.stack([self.row(x, a[past:]) for x, a in zip(batch.latents, batch.actions.numpy(), strict=True)])
        )

    def row(self, context: torch.Tensor, actions_TKA: np.ndarray) -> torch.Tensor:
        (n,) = [i for i, known in enumerate(self.starts.context.latents) if torch.equal(known, context)]
        frames = []
        with RingTwin(self.starts.origins[n], SIZE) as twin:
            for actions in actions_TKA:
                turned = np.abs(actions[:, 2]).sum() / (FPS * SLOTS)
                twin.step(actions * self.obeyed)
                twin.at[0] += self.twist * turned
                frames.append(twin.frame())
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


def record(path: Path, episodes: int = 3, steps: int = 40, length: int = 34) -> Clips:
    """Clips of a store of pixels whose commands are smooth; each episode has a wallpaper of its own."""
    header = Header(
        embodiment="sim_g1", action_names=NAMES, actions_per_step=SLOTS, fps=FPS, latent=Pixels((SIZE, SIZE)).latent,
        dtype="uint8", tokenizer=Pixels((SIZE, SIZE)).id, source="a wallpaper",
    )  # fmt: skip
    writer = Writer(path, header)
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(steps * SLOTS + 14, 3))
        smooth = np.stack([np.convolve(column, np.ones(15) / 4, "valid") for column in noise.T], -1)
        actions = (smooth * [1, 0.6, 1.2]).clip(-1.2, 1.2).astype(np.float32).reshape(steps, SLOTS, 3)
        frames = []
        with RingTwin(Origin(seed, actions[:1]), SIZE) as twin:
            for step in range(steps):
                if step:
                    twin.step(actions[step])
                frames.append(twin.frame())
        writer.add(f"ring_{seed}", actions, np.stack(frames).transpose(0, 3, 1, 2), None, {"seed": seed})
    return Clips(writer.finish(), length)


def build(model: type[WorldModel], clips: Clips, past: int = 2) -> WorldModel:
    """A model that predicts everything at once."""
    return model(WorldModel.Config(past=past, horizon=1000), clips.spec())
