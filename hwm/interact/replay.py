"""Replay files: start, seed and actions of a session, small enough to send, enough to see it again pixel by pixel."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwm.devices import FORMATS
from hwm.errors import HwmError
from hwm.files import write_atomically
from hwm.interact.starts import Start
from hwm.sim.twin import Origin

FORMAT = "hwm-replay-1"
MOST_BYTES = 64 << 20
_TYPES = ("float32", "int32", "int64")


@dataclass(frozen=True)
class Replay:
    """A session as a file.

    Attributes:
        model, tokenizer: names of what it was played in.
        seed: of the session.
        sampler: its fields, or None for the model's own choice.
        start: where it began, with the true latents and actions before it.
        actions: (N, K, A) of the steps taken.
        hashes: a checksum of the latents of each step: what a replay is compared with.
        dtype: number format of the model's matrix products; None in older files, which do not say it.
    """

    model: str
    tokenizer: str
    seed: int
    sampler: dict[str, Any] | None
    start: Start
    actions: np.ndarray
    hashes: tuple[int, ...]
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        origin = self.start.origin
        latents = self.start.latents.numpy()
        return {
            "format": FORMAT,
            "model": self.model,
            "tokenizer": self.tokenizer,
            "seed": self.seed,
            "sampler": self.sampler,
            "start": {
                "name": self.start.name,
                "embodiment": self.start.embodiment,
                "latents": pack(latents.astype(np.int32) if latents.dtype == np.int64 else latents),
                "actions": pack(self.start.actions),
                "origin": None
                if origin is None
                else {"seed": origin.seed, "world": origin.world, "actions": pack(origin.actions)},
            },
            "actions": pack(self.actions),
            "hashes": list(self.hashes),
            "dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, plain: Any) -> Replay:
        """Raises `HwmError` where the object is no replay; whether it fits a model is for `World.start` to say."""
        try:
            if plain["format"] != FORMAT:
                raise HwmError(
                    f"this is a replay of format {str(plain['format'])[:40]!r}; this version reads {FORMAT!r}"
                )
            start, origin = plain["start"], plain["start"].get("origin")
            latents = torch.from_numpy(unpack(start["latents"]))
            replay = cls(
                model=str(plain["model"]),
                tokenizer=str(plain["tokenizer"]),
                seed=int(plain["seed"]),
                sampler=plain["sampler"],
                start=Start(
                    name=str(start["name"]),
                    latents=latents if latents.is_floating_point() else latents.long(),
                    actions=unpack(start["actions"]),
                    embodiment=str(start["embodiment"]),
                    origin=None
                    if origin is None
                    else Origin(int(origin["seed"]), unpack(origin["actions"]), origin.get("world", "rooms")),
                ),
                actions=unpack(plain["actions"]),
                hashes=tuple(int(h) for h in plain["hashes"]),
                dtype=plain.get("dtype"),
            )
            if replay.dtype not in (None, *FORMATS):
                raise ValueError(f"number formats are {', '.join(FORMATS)}, not {str(replay.dtype)[:20]!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HwmError(f"this is not a replay file: {type(error).__name__}: {str(error)[:100]}") from None
        if replay.actions.size and (
            replay.actions.ndim != 3 or replay.actions.shape[1:] != replay.start.actions.shape[1:]
        ):
            raise HwmError(f"replay: actions of shape {replay.actions.shape} after {replay.start.actions.shape}")
        if not np.isfinite(replay.actions).all():
            raise HwmError("replay: an action is not a finite number")
        return replay

    def save(self, path: str | Path) -> None:
        write_atomically(Path(path), json.dumps(self.to_json()).encode())

    @classmethod
    def load(cls, path: str | Path) -> Replay:
        """Raises `HwmError` where the file is missing, too large or no replay."""
        try:
            if Path(path).stat().st_size > MOST_BYTES:
                raise HwmError(f"{path} is larger than any replay ({MOST_BYTES >> 20} MiB)")
            return cls.from_json(json.loads(Path(path).read_bytes()))
        except OSError as error:
            raise HwmError(f"cannot read the replay {path}: {error}") from error
        except ValueError as error:
            raise HwmError(f"{path} is not a replay file: {error}") from error


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as plain JSON: its type, its shape, and its little-endian bytes in base64."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": base64.b64encode(data).decode()}


def unpack(plain: Any) -> np.ndarray:
    """The array; raises `ValueError` where type, shape and bytes do not belong together."""
    if plain["dtype"] not in _TYPES:
        raise ValueError(f"arrays are {', '.join(_TYPES)}, not {str(plain['dtype'])[:20]!r}")
    dtype = np.dtype(plain["dtype"])
    return (
        np.frombuffer(base64.b64decode(plain["data"], validate=True), dtype.newbyteorder("<"))
        .reshape([int(n) for n in plain["shape"]])
        .astype(dtype)
    )
