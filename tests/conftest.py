"""What tests share: one thread, and small stores with known contents."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from hwm import devices
from hwm.data.store import Header, Store
from hwm.data.writer import Writer
from hwm.pictures.video import write_video
from hwm.types import LatentSpec
from tests import parity

torch.set_num_threads(1)
os.environ.setdefault("PYTHONFAULTHANDLER", "1")  # a process of a test that crashes says where
# a busy machine is no failure, and a test that passed yesterday passes today
settings.register_profile("hwm", deadline=None, derandomize=True, database=None)
settings.load_profile("hwm")

TOKENS = LatentSpec((2, 2), 25, levels=(5, 5))
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is float32 here, whatever this machine is fast at."""
    monkeypatch.setattr(devices, "faster_format", lambda device: "float32")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    parity.report(terminalreporter)


def make_header(**changes: Any) -> Header:
    """The header of a small token store, with some fields changed."""
    fields: dict[str, Any] = {
        "embodiment": "toy", "action_names": ("left", "right"), "actions_per_step": 2, "fps": 10.0, "latent": TOKENS,
        "tokenizer": "test",
    }  # fmt: skip
    return Header(**{**fields, **changes})


def make_arrays(header: Header, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Random actions (N, K, A) and latents of a header."""
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(steps, *header.action_shape)).astype(np.float32)
    if header.latent is None:
        return actions, None
    shape = (steps, *header.latent_shape)
    if header.latent.vocab is not None:
        return actions, rng.integers(0, header.latent.vocab, shape)
    if header.dtype == "uint8":
        return actions, rng.integers(0, 256, shape, dtype=np.uint8)
    return actions, rng.normal(size=shape).astype(np.float32)


def make_frames(count: int, height: int = 32, width: int = 32, seed: int = 0) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 of a bright square on a dark ramp; the square moves two pixels a frame."""
    ramp = np.linspace(0, 60, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    frames = []
    for i in range(count):
        frame = ramp.copy()
        x = (seed * 5 + 2 * i) % (width - 8)
        frame[8:16, x : x + 8] = (230, 180, 40 + (i * 7) % 200)
        frames.append(frame)
    return frames


def make_store(
    path: Path,
    episodes: Iterable[int] = (12, 9, 15),
    *,
    prefix: str = "e",
    seed: int = 0,
    video: bool = False,
    **header: Any,
) -> Store:
    """A store of random episodes of so many steps, named e0, e1, ..., with video of one frame a step if asked; of
    several views each shows another place of the square."""
    writer = Writer(path, make_header(**header))
    for i, steps in enumerate(episodes):
        actions, latents = make_arrays(writer.header, steps, seed + i)
        films = {view: path / f"{prefix}{i}{view}.mp4" for view in writer.header.views or ("",)} if video else {}
        for j, film in enumerate(films.values()):
            write_video(film, make_frames(steps, seed=i + 3 * j), writer.header.fps)
        writer.add(f"{prefix}{i}", actions, latents, films or None, {"frames_per_step": 1})
    return writer.finish()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three episodes of 12, 9 and 15 steps of 2 x 2 tokens out of 25, with two actions of two dimensions a step."""
    return make_store(tmp_path / "store")
