"""Recording the simulated humanoid: many rooms in parallel, resumably, as a store of video and actions."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwm.data.store import Header, Store, Writer
from hwm.data.video import write_video
from hwm.progress import track
from hwm.types import HwmError

#: seeds of rooms from here on are held out: `record` never mixes the two ranges in one store
HELD_OUT_FROM = 1_000_000
FPS = 30


@dataclass(frozen=True, kw_only=True)
class SimRecording:
    """What to record.

    Attributes:
        minutes: of simulated time, over all rooms.
        seconds: a room's episode.
        first_seed: the rooms are those of seeds first_seed, first_seed + 1, ...
        held_out: take the rooms from the range kept for evaluation.
        size: side of the picture in pixels.
        every: keep every n-th frame of the 30 a second, with the actions of all of them.
        processes: rooms rendered at once; 0 is one a core.
    """

    minutes: float = 10.0
    seconds: float = 30.0
    first_seed: int = 0
    held_out: bool = False
    size: int = 256
    every: int = 1
    processes: int = 0

    def seeds(self) -> list[int]:
        rooms = max(1, round(self.minutes * 60 / self.seconds))
        first = self.first_seed + (HELD_OUT_FROM if self.held_out else 0)
        if not self.held_out and first + rooms > HELD_OUT_FROM:
            raise HwmError(f"seeds from {HELD_OUT_FROM:,} are held out; choose a smaller first seed or --held-out")
        return list(range(first, first + rooms))


def record_sim(out: str | Path, config: SimRecording) -> Store:
    """Record rooms into a store; the same call goes on after a kill.

    Raises:
        HwmError: MuJoCo or a way to render is missing (the message names the packages), or a room failed.
    """
    from hwm.sim.robot import ACTION_NAMES

    header = Header(
        embodiment="sim_g1", action_names=tuple(ACTION_NAMES), actions_per_step=config.every,
        fps=FPS / config.every, source="MuJoCo, Unitree G1 upper body on a wheeled base, random rooms",
    )
    writer = Writer(out, header)
    done = writer.done()
    jobs = [(str(out), seed, config) for seed in config.seeds() if room_name(seed) not in done]
    processes = config.processes or os.cpu_count() or 1
    # one renderer a process: contexts of two simulators in one process disturb each other
    with multiprocessing.get_context("spawn").Pool(min(processes, max(1, len(jobs))), maxtasksperchild=8) as pool:
        results = pool.imap_unordered(_record_room, jobs)
        unit = config.seconds * FPS / config.every
        for _ in track(results, len(jobs), "recording rooms", scale=unit, unit="frames"):
            pass
    return writer.finish()


def room_name(seed: int) -> str:
    return f"room_{seed:07d}"


def _record_room(job: tuple[str, int, SimRecording]) -> int:
    out, seed, config = job
    from hwm.sim.episode import simulate_episode

    frames, actions, _ = simulate_episode(seed, config.seconds, size=config.size, every=config.every)
    header_k = config.every
    # actions[t] leads to simulated frame t; the first kept frame has only the command in force at the start
    head = np.repeat(actions[:1], header_k, 0)[None]
    steps = len(frames)
    body = actions[1 : 1 + (steps - 1) * header_k].reshape(steps - 1, header_k, -1)
    writer = Writer(out, _header_of(out))
    video = writer.partial / f".{room_name(seed)}.{os.getpid()}.mp4"
    write_video(video, frames, FPS / config.every)
    writer.add(room_name(seed), np.concatenate([head, body]), video=video, info={"seed": seed, "frames_per_step": 1})
    return seed


def _header_of(out: str) -> Header:
    import json

    from hwm.config import from_json

    return from_json(Header, json.loads((Path(out) / ".partial" / "header.json").read_text()))


