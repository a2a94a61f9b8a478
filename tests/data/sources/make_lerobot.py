"""Writes the data sets that tests read without the package lerobot, with it.

    python tests/data/sources/make_lerobot.py tests/data/sources/lerobot          (lerobot 0.4.4: version 3.0)
    python tests/data/sources/make_lerobot.py tests/data/sources/lerobot_v21      (lerobot 0.3.3: version 2.1)
    python tests/data/sources/make_lerobot.py tests/data/sources/lerobot_arm 24 24 20       (lerobot 0.4.4)

The numbers are the steps of each episode. `expected.npz` holds the frames and actions that were handed to lerobot.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

STEPS = (7, 5, 9)
SHAPE = (48, 64, 3)


def picture(episode: int, step: int) -> np.ndarray:
    """A red ramp with a bright square that moves."""
    out = np.zeros(SHAPE, np.uint8)
    out[..., 0] = np.linspace(0, 200, SHAPE[1])
    x = (4 * step + 8 * episode) % 48
    out[16:32, x : x + 16] = (230, 200 - 40 * episode, 60)
    return out


def main(out: Path, lengths: Sequence[int]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    three = hasattr(LeRobotDataset, "finalize")
    video = {"dtype": "video", "shape": SHAPE, "names": ["height", "width", "channels"]}
    made = LeRobotDataset.create(
        repo_id="toy/arm",
        fps=10,
        root=out,
        robot_type="toy_arm",
        features={
            "observation.images.front": video,
            "observation.images.wrist": video,
            "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
            "action": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "grip"]},
        },
        **({"vcodec": "h264"} if three else {}),
    )
    expected: dict[str, np.ndarray] = {}
    for e, steps in enumerate(lengths):
        frames = np.stack([picture(e, t) for t in range(steps)])
        actions = np.random.default_rng(e).normal(size=(steps, 3)).astype(np.float32)
        for frame, action in zip(frames, actions, strict=True):
            row = {
                "observation.images.front": frame,
                "observation.images.wrist": 255 - frame,
                "observation.state": action + 1,
                "action": action,
            }
            if three:
                made.add_frame({**row, "task": f"task {e % 2}"})
            else:
                made.add_frame(row, task=f"task {e % 2}")
        made.save_episode()
        expected |= {f"{e}/frames": frames, f"{e}/action": actions}
    if three:
        made.finalize()
    np.savez_compressed(out / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or STEPS)
