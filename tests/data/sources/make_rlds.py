"""Writes the data sets in tests/data/sources/rlds with tensorflow-datasets, which tests read without it.

    python tests/data/sources/make_rlds.py tests/data/sources/rlds      (needs tensorflow-datasets 4.9 and tensorflow)

`toy_arm` has one tensor of actions, two cameras and a sentence a step; `toy_base` a dictionary of actions of several
types, and pictures as PNG. `expected.npz` beside them holds what tensorflow-datasets itself reads.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

STEPS = (5, 4, 6, 3)
SPACE = tfds.features


def picture(episode: int, step: int, shade: int = 0) -> np.ndarray:
    """A ramp of 24 x 32 with a bright square that moves."""
    out = np.repeat(np.linspace(0, 120, 32, dtype=np.uint8)[None, :, None], 24, 0).repeat(3, 2)
    out[..., 2] = shade
    x = (3 * step + 5 * episode) % 24
    out[8:16, x : x + 8] = (240, 200 - 20 * episode, 40)
    return out


class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("0.1.0")
    cameras: dict[str, str]
    actions: Any

    def _info(self) -> Any:
        images = {
            name: SPACE.Image(shape=(24, 32, 3), dtype=np.uint8, encoding_format=kind)
            for name, kind in self.cameras.items()
        }
        steps = {
            "observation": {**images, "state": SPACE.Tensor(shape=(3,), dtype=np.float32)},
            "action": self.actions,
            "language_instruction": SPACE.Text(),
            "is_first": SPACE.Scalar(dtype=np.bool_),
            "is_last": SPACE.Scalar(dtype=np.bool_),
            "is_terminal": SPACE.Scalar(dtype=np.bool_),
            "reward": SPACE.Scalar(dtype=np.float32),
        }
        features = {"steps": SPACE.Dataset(steps), "episode_metadata": {"file_path": SPACE.Text()}}
        return tfds.core.DatasetInfo(builder=self, features=SPACE.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self.generate(0, 3), "val": self.generate(3, 4)}

    def _generate_examples(self, **_: Any) -> Any:
        raise NotImplementedError

    def generate(self, first: int, stop: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for e in range(first, stop):
            n, rng = STEPS[e], np.random.default_rng(e)
            steps = [
                {
                    "observation": {
                        **{c: picture(e, t, 90 * i) for i, c in enumerate(self.cameras)},
                        "state": rng.normal(size=3).astype(np.float32),
                    },
                    "action": self.act(rng),
                    "language_instruction": f"push the block, {e}",
                    "is_first": t == 0,
                    "is_last": t == n - 1,
                    "is_terminal": t == n - 1,
                    "reward": float(t == n - 1),
                }
                for t in range(n)
            ]
            yield f"episode_{e}", {"steps": steps, "episode_metadata": {"file_path": f"{e}.npy"}}

    def act(self, rng: np.random.Generator) -> Any:
        raise NotImplementedError


class ToyArm(Toy):
    cameras = {"image": "jpeg", "wrist_image": "jpeg"}
    actions = SPACE.Tensor(shape=(7,), dtype=np.float32)

    def act(self, rng: np.random.Generator) -> Any:
        return rng.normal(size=7).astype(np.float32)


class ToyBase(Toy):
    cameras = {"rgb": "png"}
    actions = SPACE.FeaturesDict(
        {
            "world_vector": SPACE.Tensor(shape=(3,), dtype=np.float32),
            "gripper_closedness_action": SPACE.Tensor(shape=(1,), dtype=np.float64),
            "terminate_episode": SPACE.Tensor(shape=(3,), dtype=np.int32),
            "open_gripper": SPACE.Scalar(dtype=np.bool_),
        }
    )

    def act(self, rng: np.random.Generator) -> Any:
        return {
            "world_vector": rng.normal(size=3).astype(np.float32),
            "gripper_closedness_action": rng.normal(size=1),
            "terminate_episode": rng.integers(-2, 3, 3).astype(np.int32),
            "open_gripper": bool(rng.random() < 0.5),
        }


def main(out: Path) -> None:
    expected: dict[str, np.ndarray] = {}
    for kind in (ToyArm, ToyBase):
        builder = kind(data_dir=str(out))
        shutil.rmtree(out / builder.name, ignore_errors=True)
        builder.download_and_prepare()
        for split in ("train", "val"):
            for i, episode in enumerate(tfds.as_numpy(builder.as_dataset(split=split))):
                steps = list(episode["steps"])
                for key in kind.cameras:
                    expected[f"{builder.name}/{split}/{i}/{key}"] = np.stack([s["observation"][key] for s in steps])
                for key in kind.actions if isinstance(kind.actions, SPACE.FeaturesDict) else [""]:
                    values = [s["action"][key] if key else s["action"] for s in steps]
                    expected[f"{builder.name}/{split}/{i}/action{key and '/'}{key}"] = np.stack(values)
                expected[f"{builder.name}/{split}/{i}/text"] = np.array(steps[0]["language_instruction"].decode())
    np.savez_compressed(out / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
