"""All that is judged with the true simulator beside the dream, and what it came to as JSON, as a table and as HTML."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Group
from rich.text import Text

from hwm.data.clips import Clips
from hwm.data.origin import origin_of
from hwm.data.store import Store
from hwm.errors import HwmError
from hwm.evaluate import away, drift, plans, response
from hwm.evaluate.endure import windows_for
from hwm.evaluate.metrics import METRICS, Metric
from hwm.evaluate.places import Distance, squared
from hwm.evaluate.trial_page import Grid, trial_section
from hwm.evaluate.uncertainty import Estimate
from hwm.models.base import WorldModel
from hwm.networks.efficientnet import load_efficientnet
from hwm.sim.graphics import NO_MUJOCO, NO_OPENGL
from hwm.sim.twin import available
from hwm.tables import Figures
from hwm.types import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """How dreams are judged by the simulator.

    Attributes:
        clips: starts of each measurement, spread evenly over the store, at most all.
        prompt: context frames (latent steps); None is all that the model looks back on.
        stride, part: of the windows, as of `Clips`.
        seed: everything random follows from it.
        sampler: passed on to the model; None is the model's own.
        metrics: of pictures, by which views and plans are compared.
        distance: by which places are found.
        notes: remarks for whoever reads the figures.
        progress: show progress bars where the output is a terminal.
        dtype: number format of the model's matrix products, as of `EvaluateConfig`.
    """

    clips: int = 8
    prompt: int | None = None
    stride: int = 1
    part: str = "test"
    seed: int = 0
    sampler: Any = None
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"psnr": METRICS["psnr"]})
    distance: Distance = squared
    notes: Sequence[str] = ()
    progress: bool = True
    dtype: str | torch.dtype = "auto"

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise HwmError(f"clips must be at least 1, got {self.clips}")


@dataclass
class Trial:
    """What the judgement came to; None for what could not be judged, of which the notes say why.

    Attributes:
        drift: how far the dream is from where it should be.
        away: what is left of a view after looking away.
        response: what turning and driving do.
        plans: how often the true plan is told from others.
        metrics: of pictures that were taken.
    """

    drift: drift.Drift | None
    away: away.LookAway | None
    response: response.Responses | None
    plans: plans.Plans
    metrics: Mapping[str, Metric]
    notes: Sequence[str] = ()

    def json(self) -> dict[str, Any]:
        """Everything but the paths as plain values."""
        return {
            "drift": self.drift and self.drift.json(),
            "look_away": self.away and self.away.json(),
            "response": self.response and self.response.json(),
            "which_plan": self.plans.json(),
            "notes": list(self.notes),
        }

    def table(self) -> Group:
        """For a terminal."""
        parts: list[Any] = []
        for grid in self.grids():
            table = Figures("", *grid.heads, title=grid.title)
            for name, cells in grid.rows.items():
                table.add(name, *cells)
            parts.append(table)
        return Group(*parts, *(Text(note, style="yellow") for note in self.notes))

    def grids(self) -> list[Grid]:
        """The rows of the tables."""
        return [
            *([_drift_grid(self.drift)] if self.drift else []),
            *(_away_grids(self.away, self.metrics) if self.away else []),
            *([_response_grid(self.response)] if self.response else []),
            _plans_grid(self.plans, self.metrics),
        ]

    def html(self) -> str:
        """A section of a report; needs Matplotlib."""
        return trial_section(self.drift.rides if self.drift else (), self.grids(), self.notes)


def trial(model: WorldModel, tokenizer: Tokenizer, store: Store, config: TrialConfig | None = None) -> Trial:
    """Judge dreams by the true simulator, and by plans.

    Of a store that is of no simulator, or where none can run, only plans are told apart, and a note says why.

    Raises:
        HwmError: the store's episodes are too short for any of it.
    """
    c = config or TrialConfig()
    prompt = model.config.past if c.prompt is None else c.prompt

    def windows(seconds: Sequence[float]) -> Clips:
        return windows_for(store, prompt, seconds, stride=c.stride, part=c.part)

    how: dict[str, Any] = {
        "prompt": prompt, "seed": c.seed, "sampler": c.sampler, "dtype": c.dtype, "progress": c.progress,
    }  # fmt: skip
    notes = list(c.notes)
    missing = why_no_simulator(store)
    if missing:
        notes.append(f"not judged by the simulator: {missing}")
    told = plans.which_plan(
        model, tokenizer, windows(plans.SECONDS), count=c.clips, seconds=plans.SECONDS, metrics=c.metrics, **how
    )
    if missing:
        return Trial(None, None, None, told, c.metrics, notes)
    far, near = windows(drift.SECONDS), windows((0.1,))
    drifted = drift.drift(model, tokenizer, far, starts=c.clips, seconds=drift.SECONDS, distance=c.distance, **how)
    back = away.look_away(model, tokenizer, near, starts=c.clips, metrics=c.metrics, **how)
    obeyed = response.respond(
        model, tokenizer, near, starts=c.clips, seconds=response.SECONDS, commands=response.COMMANDS, **how
    )
    return Trial(drifted, back, obeyed, told, c.metrics, [*notes, *drifted.notes])


def why_no_simulator(store: Store) -> str:
    """Why no simulator can stand beside this store's recordings here; empty where one can."""
    if any(origin_of(store, episode, 1) is None for episode in store.episodes):
        return f"{store.path} is no recording of the simulated humanoid"
    if not available():
        return NO_OPENGL if importlib.util.find_spec("mujoco") else NO_MUJOCO
    return ""


def eyes(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `TrialConfig` says of looking at pictures: by EfficientNet-Lite0 where its weights are installed."""
    try:
        network = load_efficientnet(device)
    except HwmError as error:
        return {"notes": [f"places and plans were told by pixels alone: {error}"]}
    perceptual = Metric(network, lower_is_better=True, title="perceptual distance")
    return {"metrics": {"psnr": METRICS["psnr"], "perceptual": perceptual}, "distance": network}


# ---------------------------------------------------------------------- tables


def _drift_grid(found: drift.Drift) -> Grid:
    names = {
        "prediction": "dream", "copy": "staying at the start", "reconstruction": "tokenizer alone (ceiling)",
        "camera": "the simulator's own picture",
    }  # fmt: skip
    metres, degrees = drift.NEAR
    rows = {}
    for source, name in names.items():
        about = found.json()[source]
        rows[f"{name}: metres"] = [f"{x:.2f}" for x in about["metres"]]
        rows[f"{name}: degrees"] = [f"{x:.0f}" for x in about["degrees"]]
        rows[f"{name}: within {metres:g} m, {degrees:g}°"] = [f"{x:.0%}" for x in about["near"]]
    title = f"where the dream is beside where it should be: medians over {len(found.episodes)} starts"
    return Grid(title, _seconds(found.seconds), rows)


def _away_grids(found: away.LookAway, metrics: Mapping[str, Metric]) -> list[Grid]:
    names = {
        "prediction": "dream", "copy": "the view at the turning point", "random": "a random view of the turn",
        "reconstruction": "tokenizer alone (ceiling)",
    }  # fmt: skip
    by_degrees, grids = found.json()["by_degrees"], []
    for metric, about in metrics.items():
        rows = {
            name: [f"{figures[metric][source]:.{about.places}f}" for figures in by_degrees.values()]
            for source, name in names.items()
        }
        title = f"looking away by so many degrees and back, {len(found.episodes)} starts: {about.title or metric}"
        grids.append(Grid(title, [f"{angle}°" for angle in by_degrees], rows))
    return grids


def _response_grid(found: response.Responses) -> Grid:
    horizons = range(len(found.steps))
    rows = {
        "shift for turning": [_mean(found.response("shift", h)) for h in horizons],
        "expansion for driving": [_mean(found.response("expansion", h)) for h in horizons],
        "expansion wrongly, for turning": [_share(found.cross_talk("expansion", h)) for h in horizons],
        "shift wrongly, for driving": [_share(found.cross_talk("shift", h)) for h in horizons],
    }
    title = f"motion of the picture as a share of the simulator's, {len(found.episodes)} starts"
    return Grid(title, _seconds(found.seconds), rows)


def _plans_grid(found: plans.Plans, metrics: Mapping[str, Metric]) -> Grid:
    horizons = range(len(found.seconds))
    rows = {
        f"by {metrics[metric].title or metric}": [_mean(found.found(metric, h)) for h in horizons]
        for metric in found.first
    }
    rows["chance"] = [f"{found.chance:.2f}" for _ in horizons]
    title = f"how often the true one of {found.plans} plans is found by its end picture, {len(found.episodes)} clips"
    return Grid(title, _seconds(found.seconds), rows)


def _seconds(seconds: Sequence[float]) -> list[str]:
    return [f"{s:.3g} s" for s in seconds]


def _mean(found: Estimate | None) -> str:
    if found is None:
        return "n/a"
    return f"{found.mean:.2f}" + ("" if found.known_error is None else f" ± {found.error:.2f}")


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
