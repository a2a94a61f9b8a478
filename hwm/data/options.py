"""What can be asked for when data is recorded, read or made. Imports no PyTorch, as options are shown without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hwm.errors import HwmError
from hwm.sim.worlds import HEAD, Camera, World

#: seeds of rooms and takes from here on are held out: `record` never mixes the two ranges in one store
HELD_OUT_FROM = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SimRecording:
    """What to record.

    Attributes:
        world: rooms: another room for every episode; home: takes in one home of three rooms, in which loose objects,
            light, start and behaviour vary.
        minutes: of simulated time, over all episodes.
        seconds: of an episode.
        first_seed: the episodes are those of seeds first_seed, first_seed + 1, ...
        held_out: take the seeds from the range kept for evaluation.
        cameras: head: the robot's own; chest, and wrist: above the right hand. Of several each step shows them all.
        size: side of a camera's picture in pixels; edges are smooth where a tokenizer's pictures are half as large.
        every: keep every n-th frame of the 30 a second, with the actions of all of them.
        crf, preset: quality and effort of the video encoder (x264).
        processes: episodes rendered at once; 0 is one a core.
    """

    world: World = "rooms"
    minutes: float = 10.0
    seconds: float = 30.0
    first_seed: int = 0
    held_out: bool = False
    cameras: tuple[Camera, ...] = HEAD
    size: int = 256
    every: int = 1
    crf: int = 20
    preset: str = "veryfast"
    processes: int = 0

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.seconds <= 0 or self.size < 2 or self.every < 1:
            raise HwmError(
                f"minutes {self.minutes}, seconds {self.seconds}, size {self.size} and every {self.every} "
                "must be positive"
            )
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise HwmError(f"cameras {' '.join(self.cameras)}: name each that is wanted once")
        if self.size % 2:
            raise HwmError(f"size {self.size} must be even, as video is")
        if self.first_seed < 0 or self.processes < 0:
            raise HwmError(f"first seed {self.first_seed} and processes {self.processes} must not be negative")

    def seeds(self) -> list[int]:
        """Seeds of the episodes, all below `HELD_OUT_FROM` or none.

        Raises:
            HwmError: so many for training that they would reach the held-out ones.
        """
        count = max(1, round(self.minutes * 60 / self.seconds))
        first = self.first_seed + (HELD_OUT_FROM if self.held_out else 0)
        if not self.held_out and first + count > HELD_OUT_FROM:
            raise HwmError(f"seeds from {HELD_OUT_FROM:,} are held out; choose a smaller first seed or --held-out")
        return list(range(first, first + count))


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to read data of other layouts; empty or 0 takes what is there, and asks where there are several.

    Attributes:
        kind: read the source as this kind instead of as what it is recognised as.
        camera: which of several cameras; of several names each step shows them all, from top to bottom in this order.
        action_keys: columns or keys that hold the actions, joined in this order.
        split: which part of a data set that has parts, and which of its episodes: `train`, `train[:95%]`, `[200:]`.
        source_fps: steps a second of the source, where it does not say or is wrong.
        embodiment: name of the robot whose actions these are, in place of the source's own.
        actions: keep the action dimensions whose names match one of these patterns (`LEFT_*`), in this order.
        fps: change to so many steps a second, by time stamps; actions of the time between are kept.
    """

    kind: str = ""
    camera: tuple[str, ...] = ()
    action_keys: tuple[str, ...] = ()
    split: str = ""
    source_fps: float = 0.0
    embodiment: str = ""
    actions: tuple[str, ...] = ()
    fps: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.camera, str):  # a single name, as it once was
            object.__setattr__(self, "camera", (self.camera,) if self.camera else ())
        for name in ("source_fps", "fps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise HwmError(f"{name} {getattr(self, name)}: frames a second are a positive number")


@dataclass(frozen=True, kw_only=True)
class MakeOptions:
    """Write a small folder in one of 1X's layouts, of the embedded humanoid data or of random tokens.

    Attributes:
        out: the new folder.
        version: 1.1, 2.0 (tokens), 2.0-raw (video) or 2.0-test (samples).
        source: a store of ids with the 25 actions at 30 a second, or `random`. Its ids are repeated to fill the
            larger grid: they stand for the real tokenizers' ids and decode to nothing.
        frames: frames in all; of test samples 64 make one.
        shards: files that they are spread over (v2.0).
        flat: all files side by side, as in the validation split (v2.0).
        neck_width: columns of neck_desired (v1.1): 3 as published, or 1 as on the card.
        seed: of random numbers.
    """

    out: Path
    version: Literal["1.1", "2.0", "2.0-raw", "2.0-test"] = "2.0"
    source: str = "mini_heldout"
    frames: int = 2000
    shards: int = 2
    flat: bool = False
    neck_width: Literal[1, 3] = 3
    seed: int = 0
