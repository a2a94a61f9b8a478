"""Named ways to sample a model, with what each costs and gives."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hwm.config import from_json
from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.files import write_atomically
from hwm.interact.engine import Engine, Shown
from hwm.interact.session import Session, World
from hwm.models.base import WorldModel

FILE = "presets.json"
HORIZON = 8
"""Steps of the rollouts that presets are judged by."""
IN_FLIGHT = 3
"""Steps under way at once, as the page has them: one computed, one made a picture of, one waiting."""


@dataclass(frozen=True)
class Preset:
    """A sampler by name.

    Attributes:
        name, label: to choose it by, and to show.
        sampler: fields of the model's sampler that differ from its config's.
        figures: what was measured of it (`hwm presets --write`), or None.
        about: what it trades for what, in one sentence.
    """

    name: str
    label: str
    sampler: Mapping[str, Any]
    figures: Mapping[str, Any] | None = None
    about: str = ""

    def build(self, model: WorldModel) -> Any:
        """The model's sampler with these changes; raises `HwmError` for unknown fields and values of other types."""
        return model.sampler_with(self.sampler)

    def describe(self) -> dict[str, Any]:
        """What a page shows of it."""
        return {"name": self.name, "label": self.label, "about": self.about, "figures": self.figures}


def load_presets(folder: Path, model: WorldModel) -> dict[str, Preset]:
    """The presets beside a model's weights; where there are none, the config's own sampler and the family's ways.

    Raises:
        HwmError: the file is damaged, or a preset does not fit the model.
    """
    path = folder / FILE
    if not path.exists():
        own = Preset("default", "Default", {}, about="As the model's configuration has it.")
        ways = [Preset(name, way.label, way.sampler, about=way.about) for name, way in model.ways.items()]
        return {preset.name: preset for preset in [own, *ways]}
    try:
        presets = [from_json(Preset, plain) for plain in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise HwmError(f"{path} is not a list of presets: {error}") from error
    if not presets:
        raise HwmError(f"{path} holds no preset")
    for preset in presets:
        preset.build(model)
    return {preset.name: preset for preset in presets}


def save_presets(folder: Path, presets: Sequence[Preset]) -> Path:
    """Write the presets beside a model's weights."""
    path = folder / FILE
    write_atomically(path, (json.dumps([asdict(p) for p in presets], indent=1, allow_nan=False) + "\n").encode())
    return path


def measure(preset: Preset, world: World, clips: Clips, *, count: int, seconds: float, threads: int = 0) -> Preset:
    """The preset with figures: PSNR of the first step and of the last of 8 in dB, delta-PSNR of that last step with
    jump-free swaps in dB, all of `count` clips, and frames a second of a player alone.

    Args:
        clips: held-out windows of the model's past and 8 more steps.
        seconds: how long to play.
        threads: of the model; 0 as the server chooses.
    """
    from hwm.evaluate.evaluate import EvaluateConfig, evaluate

    how = EvaluateConfig(
        clips=count, horizon=HORIZON, swaps=("jump_free",), sampler=preset.build(world.model), examples=0,
        dtype=world.dtype,
    )  # fmt: skip
    found = evaluate(world.model, world.tokenizer, clips, how)
    psnr, delta = found.mean("psnr"), found.mean("delta_psnr")
    assert psnr is not None
    figures = {
        "psnr": psnr[0],
        "psnr_8": psnr[-1],
        "delta_psnr": delta[-1] if delta else None,
        "fps": frames_per_second(world, preset, seconds, threads),
        "device": found.device if world.device.type != "cpu" else f"{os.cpu_count()} CPU cores",
        "dtype": found.dtype,
        "threads": torch.get_num_threads(),
        "clips": found.clips,
        "store": found.store,
        "split": found.split,
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    return replace(preset, figures={k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()})


def frames_per_second(world: World, preset: Preset, seconds: float, threads: int = 0) -> float:
    """Frames a second that one player gets of the engine, computed, decoded and made into pictures."""
    engine, session = Engine(world, threads=threads), Session(world, preset.build(world.model))
    try:
        engine.change(session, Session.reset).result()
        under_way: deque[Future[Shown]] = deque(engine.step(session, {}) for _ in range(IN_FLIGHT))
        for _ in range(2 * IN_FLIGHT):  # what is only done once
            under_way.popleft().result()
            under_way.append(engine.step(session, {}))
        frames, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            frames += len(under_way.popleft().result().pictures)
            under_way.append(engine.step(session, {}))
        return frames / (time.perf_counter() - begun)
    finally:
        engine.close()
