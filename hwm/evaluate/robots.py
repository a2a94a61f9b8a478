"""One model on the data of several robots: their figures side by side, and how each picture follows its actions.

Robots differ in how many steps they take a second, so that their steps are not of one length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwm.errors import HwmError
from hwm.evaluate.results import Results, perplexity
from hwm.files import write_atomically
from hwm.pictures.plot import Series, svg_file
from hwm.tables import Figures

TRUE_OR_RANDOM = (
    ("psnr", "true actions", "model", "-", "o"),
    ("psnr_random_actions", "random actions", "swap", "--", "s"),
    ("psnr_copy", "last camera frame repeated", "copy", ":", ""),
)
"""Figure, name, colour, dashes and marker of the lines of `controllability`."""

FIGURES = {
    "psnr": "PSNR in dB",
    "gain": "above the better copy",
    "delta_psnr": "delta-PSNR, jump-free swap",
    "delta_psnr_random": "delta-PSNR, random actions",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "fid": "FID",
    "fvd": "FVD",
    "accuracy": "accuracy",
    "perplexity": "perplexity",
}
"""The figures of a robot, each the mean over clips and steps, and what they are called."""


def by_robot(results: Sequence[Results]) -> list[dict[str, Any]]:
    """A row for each evaluation; figures that one does not have are None."""
    rows = []
    for r in results:
        means = {name: r.overall(name) for name in (*FIGURES, f"gain_{r.rival()}", "ce")}
        row: dict[str, Any] = {name: None if mean is None else round(mean.mean, 5) for name, mean in means.items()}
        row |= {name: round(value, 5) for name, value in r.distances.get(r.scenario, {}).items() if name in FIGURES}
        row["gain"], nats = row.pop(f"gain_{r.rival()}"), row.pop("ce")
        row["perplexity"] = None if nats is None else round(perplexity(nats), 5)
        about = {"embodiment": r.embodiment, "store": r.store, "clips": r.clips, "steps_per_second": r.steps_per_second}
        rows.append(about | {name: row[name] for name in FIGURES})
    return rows


def summary(results: Sequence[Results]) -> dict[str, Any]:
    """All figures as plain values: those of the one evaluation or, of several, the rows and each by itself."""
    if len(results) == 1:
        return results[0].json()
    return {"by_robot": by_robot(results), "stores": [r.json() for r in results]}


def save(path: str | Path, results: Sequence[Results]) -> Path:
    """Write `summary` to a file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(summary(results), indent=1, allow_nan=False) + "\n").encode())
    return path


def table(results: Sequence[Results]) -> Figures:
    """For a terminal: a column for each evaluation, and a row for each figure that any of them has."""
    rows = by_robot(results)
    title = f"by robot, mean over {results[0].horizon} steps"
    out = Figures("robot", *(row["embodiment"] for row in rows), title=title)
    for heading in ("store", "clips", "steps_per_second"):
        out.add(
            heading.replace("_", " "), *(f"{row[heading]:g}" if heading != "store" else row[heading] for row in rows)
        )
    for name, heading in FIGURES.items():
        if any(row[name] is not None for row in rows):
            out.add(heading, *("" if row[name] is None else results[0].quoted(name, row[name]) for row in rows))
    return out


def controllability(path: str | Path, results: Sequence[Results]) -> Path:
    """Draw what random actions cost: PSNR by step under the true actions and under random ones, a chart a robot.

    Raises:
        HwmError: random actions were not tried, or Matplotlib is not installed.
    """
    charts: list[tuple[str, list[Series]]] = []
    for r in results:
        if r.mean("psnr_random_actions") is None:
            raise HwmError("no random actions were tried, so there is nothing to draw: leave out --no-swaps")
        drawn = []
        for name, label, colour, dash, marker in TRUE_OR_RANDOM:
            mean = r.mean(name) or []
            drawn.append(Series(label, range(1, len(mean) + 1), mean, colour, dash, marker))
        charts.append((f"{r.embodiment} ({r.store}), {r.steps_per_second:g} steps a second", drawn))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, svg_file(charts, "step of the horizon", "PSNR in dB", unit="dB").encode())
    return path
