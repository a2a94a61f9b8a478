"""Named ways to sample a model, with what each costs and gives, and the rule by which one of them is the default.

The default is the model's own sampler, which everything takes that names none: play, `Session`, the Gymnasium
environment, policies, `hwm evaluate`. `hwm presets --write` sees to it.
"""

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

from hwm.config import from_json, to_json
from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.files import write_atomically
from hwm.interact.engine import Engine, Shown
from hwm.interact.session import Session, World
from hwm.models.base import WorldModel
from hwm.train.checkpoint import note_sampler

FILE = "presets.json"
HORIZON = 8
"""Steps of the rollouts that presets are judged by."""
NEAR, FAR = 0.5, 3.0
"""Seconds after which the default is chosen: by PSNR, and by perceptual distance and liveliness."""
ALIVE = 0.5, 1.5
"""Liveliness, as a share of the camera's, of a dream that neither freezes nor flickers."""
AS_TRUE = 1.0
"""dB of PSNR that the default may lose to another preset."""
COLUMNS = {
    "psnr": "PSNR, step 1",
    "psnr_8": f"step {HORIZON}",
    "psnr_0.5s": "0.5 s",
    "delta_psnr": f"delta-PSNR, step {HORIZON}",
    "perceptual_3s": "perceptual, 3 s",
    "liveliness_3s": "liveliness, 3 s",
    "fps": "frames/s",
}
"""The figures of a preset that tables show, and what they are called."""
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
        presets = [from_json(Preset, plain) for plain in json.loads(path.read_bytes())]
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


def choose(presets: Sequence[Preset]) -> Preset:
    """The one that is to be the default.

    Of those whose liveliness at 3 s is between 0.5 and 1.5 of the camera's, or of the one that comes nearest to that
    where none is, those that are within 1 dB of the best PSNR at 0.5 s; of these the one with the least perceptual
    distance at 3 s, or the most PSNR at 0.5 s where that distance could not be taken.

    Where these figures could not be taken of all, it stays the first.
    """
    found = {p.name: p.figures or {} for p in presets}
    if any(figures.get(name) is None for figures in found.values() for name in ("liveliness_3s", "psnr_0.5s")):
        return presets[0]

    def off(p: Preset) -> float:
        live = found[p.name]["liveliness_3s"]
        return float(max(ALIVE[0] - live, live - ALIVE[1], 0))

    alive = [p for p in presets if off(p) == min(map(off, presets))]
    best = max(found[p.name]["psnr_0.5s"] for p in alive)
    true = [p for p in alive if found[p.name]["psnr_0.5s"] >= best - AS_TRUE]
    seen = all(found[p.name].get("perceptual_3s") is not None for p in true)
    return min(true, key=lambda p: found[p.name]["perceptual_3s"] if seen else -found[p.name]["psnr_0.5s"])


def settle(folder: Path, model: WorldModel, presets: Sequence[Preset]) -> list[Preset]:
    """Make the preset that `choose` chooses the model's own sampler, in the folder of its weights.

    Returns:
        the presets to save, in terms of that sampler, the chosen one first.
    """
    chosen = choose(presets)
    own = chosen.build(model)
    if own != model.sampler:
        note_sampler(folder, own)
    fields = to_json(own) or {}
    out = []
    for preset in sorted(presets, key=lambda p: p is not chosen):
        mine = to_json(preset.build(model)) or {}
        out.append(replace(preset, sampler={k: v for k, v in mine.items() if v != fields[k]}))
    return out


def measure(preset: Preset, world: World, clips: Clips, *, count: int, seconds: float, threads: int = 0) -> Preset:
    """The preset with figures: PSNR of the first step and of the last of 8 in dB, delta-PSNR of that last step with
    jump-free swaps in dB, of `count` clips; PSNR at 0.5 s, and perceptual distance and liveliness at 3 s, of as many
    rollouts of 3 s; and frames a second of a player alone. What cannot be measured here is None.

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
        **_far(preset, world, clips, count),
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


def _far(preset: Preset, world: World, clips: Clips, count: int) -> dict[str, float | None]:
    """The figures that the default is chosen by."""
    from hwm.evaluate.endure import EnduranceConfig, endure, horizons, windows_for
    from hwm.evaluate.moments import Eyes, eyes

    wanted = {"psnr_0.5s": ("psnr", NEAR), "perceptual_3s": ("perceptual", FAR), "liveliness_3s": ("liveliness", FAR)}
    seen = {name: figure for name, figure in eyes(world.device).figures.items() if name in dict(wanted.values())}
    store, prompt = clips.store, world.model.config.past
    far = windows_for(store, prompt, (NEAR, FAR), stride=clips.stride, part=clips.part)
    if not store.has_video or not horizons((NEAR, FAR), far.spec().fps, far.length - prompt)[0]:
        return dict.fromkeys(wanted)
    how = EnduranceConfig(
        clips=count, seconds=(NEAR, FAR), sampler=preset.build(world.model), films=0, dtype=world.dtype, progress=False,
        eyes=Eyes(seen),
    )  # fmt: skip
    found = endure(world.model, world.tokenizer, far, how)
    return {key: found.value(figure, seconds) for key, (figure, seconds) in wanted.items()}


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
