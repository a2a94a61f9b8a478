"""Recording the simulated humanoid: many episodes in parallel, resumably, as a store of video and actions."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hwm.config import from_json
from hwm.data.options import HELD_OUT_FROM as HELD_OUT_FROM
from hwm.data.options import SimRecording as SimRecording
from hwm.data.store import Header, Store
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.pictures.video import write_video
from hwm.progress import track
from hwm.sim.worlds import HEAD, World

FPS = 30
_WORLDS: dict[World, str] = {"rooms": "random rooms", "home": "takes in one home of three rooms"}
Job: TypeAlias = "tuple[str, int, SimRecording]"


def record_sim(out: str | Path, config: SimRecording) -> Store:
    """Record episodes into a store; the same call goes on after a kill.

    Raises:
        HwmError: MuJoCo or a way to render is missing (the message names the packages), an episode failed, or `out` was
            begun with other settings or other seeds.
    """
    from hwm.sim.robot import ACTION_NAMES

    header = Header(
        embodiment="sim_g1",
        action_names=tuple(ACTION_NAMES),
        actions_per_step=config.every,
        fps=FPS / config.every,
        source=f"MuJoCo, Unitree G1 upper body on a wheeled base, {_WORLDS[config.world]}",
        views=config.cameras if len(config.cameras) > 1 else (),
    )
    repeated = ("world", "seconds", "size", "every", "held_out", "crf", "preset", "cameras")
    writer = Writer(out, header, {name: getattr(config, name) for name in repeated})
    names = {episode_name(config.world, seed): seed for seed in config.seeds()}
    done = writer.done_of(names)
    jobs = [(str(out), seed, config) for name, seed in names.items() if name not in done]
    unit = config.seconds * FPS / config.every
    for _ in track(_record_all(jobs, config.processes), len(jobs), "recording episodes", scale=unit, unit="frames"):
        pass
    return writer.finish()


def _record_all(jobs: list[Job], processes: int) -> Iterator[int]:
    """Seeds of the episodes as they are finished, several at once."""
    count = min(processes or os.cpu_count() or 1, len(jobs))
    # one renderer a process, as contexts of two simulators in one disturb each other; fresh processes now and then, as
    # drivers of graphics leak
    for i in range(0, len(jobs), 8 * max(1, count)):
        part = jobs[i : i + 8 * count]
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            under_way = [pool.submit(_record_episode, job) for job in part]
            try:
                for episode in as_completed(under_way):
                    yield episode.result()
            except BrokenProcessPool as error:
                raise HwmError(
                    "a process that records was killed, perhaps for want of memory. The same command goes on "
                    "from there; use fewer processes"
                ) from error
            finally:
                # not shutdown(cancel_futures=True): with pending work it can wait for ever (seen on Python 3.11)
                for episode in under_way:
                    episode.cancel()


def episode_name(world: World, seed: int) -> str:
    """Name of the episode of a seed: a room of its own, or a take in the home."""
    return f"{'take' if world == 'home' else 'room'}_{seed:07d}"


def _record_episode(job: Job) -> int:
    out, seed, config = job
    from hwm.sim.episode import simulate_episode

    name = episode_name(config.world, seed)
    try:
        frames, actions, _ = simulate_episode(
            seed, config.seconds, size=config.size, every=config.every, world=config.world, cameras=config.cameras
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise HwmError(f"{name}: {error}") from error
    header_k = config.every
    # actions[t] leads to simulated frame t; the first kept frame has only the command in force at the start
    head = np.repeat(actions[:1], header_k, 0)[None]
    steps = len(frames)
    body = actions[1 : 1 + (steps - 1) * header_k].reshape(steps - 1, header_k, -1)
    writer = Writer(out, _header_of(out))
    video = {view: writer.partial / f".{name}.{view}.{os.getpid()}.mp4" for view in writer.header.views or ("",)}
    for file, film in zip(video.values(), np.split(frames, len(video), 1), strict=True):
        write_video(file, film, FPS / config.every, config.crf, config.preset)
    info: dict[str, Any] = {"seed": seed, "world": config.world, "frames_per_step": 1}
    if config.cameras != HEAD:
        info["cameras"] = list(config.cameras)
    writer.add(name, np.concatenate([head, body]), video=video, info=info)
    return seed


def _header_of(out: str) -> Header:
    return from_json(Header, json.loads((Path(out) / ".partial" / "header.json").read_bytes()))
