"""1X v1.1: one MAGVIT2 picture of 16 x 16 ids a frame, 30 a second, and five files of actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hwm.data.arrays import Lazy
from hwm.data.fields import Fields
from hwm.data.in_place import InPlace
from hwm.data.onex.layout import run_starts
from hwm.data.onex.specs import EMBODIMENT_1X, onex_v1
from hwm.data.store import Header, StoreError
from hwm.types import LatentSpec

FIELDS: dict[str, tuple[int, ...]] = {
    "joint_pos": (21,),
    "driving_command": (2,),
    "neck_desired": (1, 3),
    "l_hand_closure": (1,),
    "r_hand_closure": (1,),
}
"""Files of `actions/` and the widths that they may have. The card gives neck_desired one column; the published files
have three, so widths are taken from file sizes."""
LAYOUT = ("joint_pos", "l_hand_closure", "r_hand_closure", "driving_command")
"""Fields that make up the 25 actions, in order. neck_desired is not among them: v2.0 has no such field, and the joint
NECK_PITCH is."""


class OneXV1(InPlace):
    """`train_v1.1` and `val_v1.1`. A step is a frame; episodes are runs of one segment id.

    Attributes:
        fields: every file of `actions/` by name, (N, width) float32.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / "metadata.json").is_file() and (path / "video.bin").is_file()

    def _open(self) -> None:
        meta = Fields.read(self.path / "metadata.json")
        meta.need("num_images", "s", "vocab_size", "hz")
        self.steps, side, vocab = (meta.whole(key, least=1) for key in ("num_images", "s", "vocab_size"))
        published = onex_v1(stride=1)
        latent = LatentSpec((side, side), vocab, levels=published.latent.levels if vocab == 512**2 else ())
        self.header = Header(
            embodiment=EMBODIMENT_1X,
            action_names=published.actions[EMBODIMENT_1X].names,
            actions_per_step=1,
            fps=meta.rate("hz"),
            latent=latent,
            dtype=meta.text("token_dtype", "uint32"),
            tokenizer=published.tokenizer,
            source="1X World Model Challenge v1.1",
        )
        self.latents = self._map("video.bin", self.header.dtype, self.header.latent_shape)
        ids = self._map("segment_ids.bin", "int32", ())
        self.fields = {name: self._field(name) for name in FIELDS}
        parts = [self.fields[name] for name in LAYOUT]
        names = len(self.header.action_names)
        self.actions = Lazy((self.steps, 1, names), lambda rows: np.concatenate([p[rows] for p in parts], -1)[:, None])
        self.once = self.actions
        starts = run_starts(ids)

        def describe(number: int) -> tuple[str, dict[str, Any]]:
            start = int(starts[number])
            segment = int(ids[start])
            return f"segment_{segment:06d}_frame_{start:08d}", {"segment": segment, "frames_per_step": 1}

        self._set_episodes(starts, self.steps, describe)

    def _field(self, name: str) -> np.memmap:
        path = self.path / "actions" / f"{name}.bin"
        size = path.stat().st_size if path.is_file() else 0
        width, rest = divmod(size, 4 * self.steps)
        if rest or width not in FIELDS[name]:
            raise StoreError(
                f"{path} has {size:,} bytes; {self.steps:,} frames of float32 in {' or '.join(map(str, FIELDS[name]))} "
                f"columns take {' or '.join(f'{4 * self.steps * w:,}' for w in FIELDS[name])}: fetch it again"
            )
        return np.memmap(path, "float32", "r", shape=(self.steps, width))
