"""How far a dream has drifted from where it should be, in metres and degrees.

The simulator goes through the same commands, so it is known where the robot should be. Where the dream shows it to be
is found by matching its pictures against views of the same world (`hwm.evaluate.places`). What is found of the
simulator's own pictures says how far that can be trusted, what is found of the tokenizer's reconstructions is the
ceiling, and staying at the start is the baseline.

Shape suffixes: N starts, H horizons, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.evaluate.judge import accompany, dream, rebuilt, side_of, starts_of, unit
from hwm.evaluate.places import Distance, Locator, Map, Search, apart, free_at, squared
from hwm.models.base import WorldModel
from hwm.progress import bar
from hwm.sim.twin import Twin
from hwm.types import Tokenizer

SECONDS = (0.5, 1.0, 3.0, 5.0, 10.0)
"""Horizons."""

NEAR = (0.5, 20.0)
"""Metres and degrees within which a dream counts as in its place."""

SOURCES = ("prediction", "copy", "reconstruction", "camera")
"""Whose place is compared with the true one: the dream's; the start's; that of the simulator's picture as the tokenizer
shows it; that of the simulator's picture."""


@dataclass(frozen=True)
class Ride:
    """One start, for a look from above.

    Attributes:
        name: the recording and the step in it.
        path: (T + 1, 3), where the simulated robot was (x, y, yaw).
        found: (H, 3), where the dream's pictures are.
        floor: (rows, columns) bool, which of the floor is free, a point every `FLOOR` metres from `corner` on.
        corner: x and y of the first point.
    """

    name: str
    path: np.ndarray
    found: np.ndarray
    floor: np.ndarray
    corner: tuple[float, float]


FLOOR = 0.1
"""Metres between the points of `Ride.floor`."""


@dataclass
class Drift:
    """How far pictures are from where they should be.

    Attributes:
        seconds: the horizons.
        metres, degrees: by source (`SOURCES`), (N, H).
        rides: of each start.
        episodes: (N,) of the starts.
        notes: remarks.
    """

    seconds: Sequence[float]
    metres: Mapping[str, np.ndarray]
    degrees: Mapping[str, np.ndarray]
    rides: Sequence[Ride]
    episodes: np.ndarray
    notes: Sequence[str] = ()

    def near(self, source: str) -> np.ndarray:
        """The share of starts within `NEAR`, (H,)."""
        share: np.ndarray = ((self.metres[source] < NEAR[0]) & (self.degrees[source] < NEAR[1])).mean(0)
        return share

    def json(self) -> dict[str, Any]:
        """Plain values for a report or a file: lists go over the horizons."""
        by_source = {
            source: {
                "metres": _plain(np.median(self.metres[source], 0)),
                "degrees": _plain(np.median(self.degrees[source], 0)),
                "near": _plain(self.near(source)),
            }
            for source in SOURCES
        }
        return {
            "starts": len(self.episodes), "seconds": list(self.seconds), "within": list(NEAR), **by_source,
            "notes": list(self.notes),
        }  # fmt: skip


def drift(
    model: WorldModel,
    tokenizer: Tokenizer,
    clips: Clips,
    *,
    starts: int = 12,
    prompt: int | None = None,
    seconds: Sequence[float] = SECONDS,
    distance: Distance = squared,
    search: Search = Search(),  # noqa: B008  it is frozen
    progress: bool = False,
    **how: Any,
) -> Drift:
    """Dream under the recorded commands, and find out where the dream has got to.

    Args:
        starts: windows to start from, spread evenly over the clips.
        seconds: horizons; those beyond the end of the windows are left out, with a note.
        distance: what makes two pictures unlike; one by the features of a network finds more.
        progress: show a progress bar where the output is a terminal.
        how: further options of `hwm.evaluate.judge.dream`.

    Raises:
        HwmError: the store is of no simulator, MuJoCo or a way to draw is missing, or the windows reach no horizon.
    """
    prompt = model.config.past if prompt is None else prompt
    fps, most = clips.spec().fps, clips.length - prompt
    wanted = sorted({max(1, round(s * fps)) for s in seconds})
    steps = [s for s in wanted if s <= most]
    if not steps:
        raise HwmError(
            f"{clips.store.path}: windows of {clips.length} steps, {prompt} of them context, end before the first "
            f"horizon, {wanted[0]} steps on"
        )
    notes = [f"{s / fps:g} s are longer than the clips" for s in wanted if s > most]
    begin = starts_of(clips, starts, prompt)
    total = prompt + steps[-1]
    commands = clips.batch(clips.spread(starts)).window(0, total, total).actions[:, prompt:]
    dreamt = dream(model, tokenizer, begin.context, commands, **how)
    rides, places = [], []
    with bar("finding places", len(begin) * len(steps), "moments", progress) as advance:
        for n, name in enumerate(begin.episodes):
            walk = accompany(begin.origins[n], commands[n].numpy(), side_of(tokenizer))
            ride, found = _find(walk, str(name), dreamt[n], tokenizer, steps, distance, search, advance)
            rides.append(ride)
            places.append([apart(found[source], ride.path[steps]) for source in SOURCES])
    metres, degrees = (dict(zip(SOURCES, error, strict=True)) for error in np.array(places).transpose(2, 1, 0, 3))
    return Drift([s / fps for s in steps], metres, degrees, rides, begin.episodes, notes)


def _find(
    walk: Iterator[Twin],
    name: str,
    dreamt: Tensor,
    tokenizer: Tokenizer,
    steps: Sequence[int],
    distance: Distance,
    search: Search,
    advance: Callable[[int], None],
) -> tuple[Ride, dict[str, np.ndarray]]:
    """Where one dream (T + 1, C, H, W) is beside the simulator: the ride, and places (H, 3) by source."""
    path, world = [], None
    found: dict[str, list[np.ndarray]] = {source: [] for source in SOURCES}
    for t, twin in enumerate(walk):
        if world is None:
            world = Map.of(twin, search)
            floor, corner = floor_of(twin, world)
        path.append(twin.pose())
        if t not in steps:
            continue
        true = torch.from_numpy(twin.frame()).permute(2, 0, 1)
        locator = Locator(twin, world, distance, search)
        pictures = {"prediction": dreamt[t], "reconstruction": rebuilt(tokenizer, true[None])[0], "camera": true}
        for source, picture in pictures.items():
            found[source].append(locator.find(unit(picture)))
        found["copy"].append(path[0])
        advance(1)
    places = {source: np.stack(poses) for source, poses in found.items()}
    return Ride(name, np.stack(path), places["prediction"], floor, corner), places


def floor_of(twin: Twin, world: Map) -> tuple[np.ndarray, tuple[float, float]]:
    """Which of the floor is free, as `Ride.floor`, and its corner."""
    (x, y), (right, top) = world.points.min(0), world.points.max(0)
    columns, rows = np.arange(x, right + FLOOR, FLOOR), np.arange(y, top + FLOOR, FLOOR)
    free = np.array([[free_at(twin, np.array([a, b])) for a in columns] for b in rows])
    return free, (float(x), float(y))


def _plain(values: np.ndarray) -> list[float]:
    return [round(float(v), 4) for v in values]
