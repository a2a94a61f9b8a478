"""What long rollouts came to: figures at each horizon beside their baselines, as JSON, as a table and as HTML.

Shapes: N clips, H horizons.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from hwm.evaluate.moments import BASELINES, SOURCES, Figure
from hwm.evaluate.results import ONE_EPISODE, plain
from hwm.evaluate.uncertainty import Estimate, estimates
from hwm.pictures.canvas import FUTURE_COLOUR, enlargement
from hwm.pictures.files import save_video
from hwm.pictures.page import picture_card, section, video_card
from hwm.pictures.panels import compose
from hwm.pictures.plot import Series, line_chart
from hwm.pictures.sheet import Block, Row, draw_sheet
from hwm.tables import Figures

FROZEN = 0.1
"""Share of the camera's motion below which a dream has frozen."""

MOVES = 1 / 255
"""Mean change of a pixel from frame to frame from which on the camera moves; a still camera's video flickers less."""

FROZEN_RULE = (
    f"Frozen: where the camera moves, pixels change less than {FROZEN:g} as much as the camera's. "
    f"It moves where they change by {MOVES * 255:g} of 255 a frame or more."
)


@dataclass(frozen=True)
class Film:
    """A clip as it was dreamed, and as it was, from the last frame of the context on.

    Attributes:
        episode, start: where it is from: episode and its first step there.
        dream, truth: (F, H, W, 3) uint8.
    """

    episode: str
    start: int
    dream: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Endurance:
    """Figures of N clips at H horizons.

    Attributes:
        seconds, steps: the horizons, in seconds and in steps after the context.
        prompt: context frames (latent steps).
        steps_per_second, frames_per_step: of the latents.
        seed, sampler: how.
        episodes: (N,) which episode each clip is from: standard errors are clustered by it.
        about: the figures that were taken, by name.
        values: figure -> source -> (N, H); of a share also what it is a share of.
        distances: Frechet distance -> source -> its distance from the camera, and `examples`, their number; over the
            pictures of all horizons.
        absent: figures that could not be taken: name -> what it is called above its rows.
        films: some clips to look at, drawn at random.
        notes: what was left out, and why.
    """

    seconds: Sequence[float]
    steps: Sequence[int]
    prompt: int
    steps_per_second: float
    frames_per_step: int
    seed: int
    sampler: Any
    episodes: np.ndarray
    about: Mapping[str, Figure]
    values: Mapping[str, Mapping[str, np.ndarray]]
    distances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    films: Sequence[Film] = ()
    notes: Sequence[str] = ()

    def by_horizon(self, figure: str, source: str = "prediction") -> list[Estimate]:
        """Mean over the clips with its standard error at each horizon.

        Of a share it is the mean by the mean of what it is a share of, and the error that of a ratio of means, by
        linearisation; nan where there is nothing to have a share of.
        """
        found = self.values[figure][source]
        if not self.about[figure].share_of:
            return estimates(found, self.episodes)
        true = self.values[figure][self.about[figure].share_of]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, mean = found.mean(0) / true.mean(0), true.mean(0)
            rest = estimates(found - ratio * true, self.episodes)
            return [Estimate(r, e.error / m, e.episodes) for r, e, m in zip(ratio, rest, mean, strict=True)]

    def mean(self, figure: str, source: str = "prediction") -> list[float]:
        """The means of `by_horizon`."""
        return [each.mean for each in self.by_horizon(figure, source)]

    def value(self, figure: str, seconds: float, source: str = "prediction") -> float | None:
        """The mean at one horizon; None where it was not taken or is not finite."""
        step = round(seconds * self.steps_per_second)
        if figure not in self.about or step not in self.steps:
            return None
        return plain(self.mean(figure, source)[self.steps.index(step)])

    @property
    def frozen(self) -> np.ndarray:
        """Which clips have frozen while the camera moves, (N, H) bool."""
        mine, true = (self.values["liveliness"][source] for source in ("prediction", "camera"))
        return self.moving & (mine < FROZEN * true)

    @property
    def moving(self) -> np.ndarray:
        """Where the camera moves, (N, H) bool."""
        moving: np.ndarray = self.values["liveliness"]["camera"] >= MOVES
        return moving

    @property
    def frozen_share(self) -> list[float | None]:
        """The share of the clips that have frozen, of those whose camera moves, by horizon; None where none moves, or
        liveliness was not taken."""
        if "liveliness" not in self.values:
            return [None] * len(self.steps)
        counts = zip(self.frozen.sum(0), self.moving.sum(0), strict=True)
        return [float(frozen / moving) if moving else None for frozen, moving in counts]

    def beaten(self, figure: str, horizon: int) -> bool | None:
        """Whether the prediction is better than every baseline there; None for a figure that no contest is about."""
        about = self.about[figure]
        rivals = [self.mean(figure, source)[horizon] for source in BASELINES if source in about.sources]
        if about.lower_is_better is None or not rivals:
            return None
        mine = self.mean(figure)[horizon]
        return mine < min(rivals) if about.lower_is_better else mine > max(rivals)

    # ------------------------------------------------------------------ out
    def json(self) -> dict[str, Any]:
        """Everything but the pictures as plain values: lists go over the horizons."""
        figures: dict[str, Any] = dict.fromkeys(self.absent)
        for name, about in self.about.items():
            rows = {source: self.by_horizon(name, source) for source in about.sources}
            figures[name] = {source: [plain(each.mean) for each in row] for source, row in rows.items()}
            figures[name] |= {f"{source}_stderr": [plain(each.error) for each in row] for source, row in rows.items()}
        return {
            "seconds": [plain(s) for s in self.seconds],
            "steps": list(self.steps),
            "prompt": self.prompt,
            "clips": len(self.episodes),
            "episodes": len(set(self.episodes)),
            "seed": self.seed,
            "sampler": self.sampler,
            "figures": figures,
            "frozen": [share is not None and share > 0.5 for share in self.frozen_share],
            "frozen_share": [None if share is None else plain(share) for share in self.frozen_share],
            "frozen_rule": FROZEN_RULE,
            "distances": {n: {k: plain(v) for k, v in found.items()} for n, found in self.distances.items()},
            "notes": list(self.notes),
        }

    def table(self) -> Group:
        """A table for a terminal: the prediction among its baselines at each horizon."""
        clips, episodes = len(self.episodes), len(set(self.episodes))
        title = f"long rollouts: {clips} clips of {episodes} episode{'s' * (episodes > 1)}, seconds after the context"
        table = Figures("seconds", *(f"{seconds:.3g} " for seconds in self.seconds), title=title)
        for heading, rows in self.groups().items():
            table.add(Text(heading, style="dim"))
            for label, cells in rows.items():
                table.add(f"  {label}", *(_cell(*cell) for cell in cells))
        parts: list[Any] = [table]
        for name, found in self.distances.items():
            row = ", ".join(f"{SOURCES[s]} {v:,.2f}" for s, v in found.items() if s in SOURCES)
            parts.append(Text(f"{name}, {found['examples']:,.0f} examples: {row}"))
        parts += [Text(note, style="yellow") for note in self.notes]
        if episodes < 2:
            parts.append(Text(ONE_EPISODE, style="yellow"))
        parts.append(Text(f"* better than every baseline. {FROZEN_RULE}", style="dim"))
        return Group(*parts)

    def groups(self) -> dict[str, dict[str, list[tuple[str, bool | None]]]]:
        """The rows of the tables: heading -> row -> cells by horizon, each with whether it is good, bad or neither."""
        groups: dict[str, dict[str, list[tuple[str, bool | None]]]] = {}
        for name, about in self.about.items():
            rows = groups[about.title + ", lower is better" * bool(about.lower_is_better)] = {}
            for source in about.sources:
                values = [f"{value:.{about.places}f}" for value in self.mean(name, source)]
                mine = source == "prediction"
                good = [self.beaten(name, h) if mine else None for h in range(len(values))]
                rows[SOURCES[source]] = list(zip(values, good, strict=True))
        for title in self.absent.values():
            groups[title] = {SOURCES["prediction"]: [("n/a", None)] * len(self.steps)}
        shares = ["n/a" if share is None else f"{share:.0%}" for share in self.frozen_share]
        bad = [False if (share or 0) > 0.5 else None for share in self.frozen_share]
        groups["frozen, of the clips whose camera moves"] = {SOURCES["prediction"]: list(zip(shares, bad, strict=True))}
        return groups

    def html(self) -> str:
        """A section of a report; needs Matplotlib."""
        return _section(self)


def _cell(value: str, good: bool | None) -> Text:
    return Text(value + ("*" if good else " "), style={True: "bold green", False: "red", None: ""}[good])


# ---------------------------------------------------------------------------------------------- HTML

LINES = {
    "prediction": ("model", "-", "o"),
    "copy": ("copy", "--", "s"),
    "copy_reconstruction": ("rebuilt", ":", "D"),
    "random": ("swap", "-.", ""),
    "reconstruction": ("ceiling", ":", ""),
}
"""Colour, dashes and marker of each source."""

WORDS = (
    "<p>The model was left alone for as long as the curves go, told the recorded commands. Beside it stand the last "
    "frame that it saw, repeated; a random moment of the same episode, which is what a picture of the right room at "
    "the wrong place is worth; and what the tokenizer makes of the truth. Sharpness (differences of neighbouring "
    "pixels) and liveliness (change from frame to frame) are shares of the camera's: 1 is as sharp and as lively. "
    "Bands are 95 % confidence intervals, episodes taken as independent.</p>"
)


def _section(found: Endurance) -> str:
    charts = "".join(_chart(found, name) for name in found.about)
    lines = [*found.notes, *_frozen(found)]
    notes = f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""
    sheet = picture_card(endurance_sheet(found), "The truth above the dream at each horizon.") if found.films else ""
    return section(
        "How long does the dream live?", WORDS, notes, f'<div class="pair">{charts}</div>', sheet, _table(found),
        f'<div class="pair">{"".join(_video(film, found) for film in found.films)}</div>',
    )  # fmt: skip


def endurance_sheet(found: Endurance, scale: int | None = None) -> np.ndarray:
    """The clips that were kept, the truth above the dream at each horizon, uint8 (height, width, 3)."""
    last = [step * found.frames_per_step for step in found.steps]
    heads = [(f"{seconds:.3g} s", FUTURE_COLOUR) for seconds in found.seconds]
    blocks = [
        Block(
            title=f"{film.episode} from step {film.start}",
            heads=heads,
            rows=[Row(name="truth", pictures=film.truth[last]), Row(name="dream", pictures=film.dream[last])],
        )
        for film in found.films
    ]
    return draw_sheet(blocks, scale or enlargement(found.films[0].truth, 128))


def _frozen(found: Endurance) -> list[str]:
    shares = zip(found.seconds, found.frozen_share, strict=True)
    return [f"After {s:.3g} s {share:.0%} of the dreams have frozen." for s, share in shares if share]


def _chart(found: Endurance, name: str) -> str:
    about, series = found.about[name], []
    for source in about.sources:
        row = found.by_horizon(name, source)
        band = [each.margin for each in row] if row[0].known_error is not None and source == "prediction" else None
        colour, dash, marker = LINES[source]
        means = [each.mean for each in row]
        series.append(Series(SOURCES[source], found.seconds, means, colour, dash, marker, band))
    chart = line_chart(series, "seconds after the context", about.title, zero=bool(about.share_of), log=True)
    return f'<div class="card">{chart}</div>'


def _table(found: Endurance) -> str:
    body = []
    for title, rows in found.groups().items():
        body.append(f'<tr class="group"><th colspan="{len(found.seconds) + 1}">{escape(title)}</th></tr>')
        for label, cells in rows.items():
            kinds = {True: ' class="best"', False: ' class="below"', None: ""}
            row = "".join(f"<td{kinds[good]}>{value}</td>" for value, good in cells)
            body.append(f"<tr><td>{escape(label)}</td>{row}</tr>")
    head = "".join(f"<th>{seconds:.3g} s</th>" for seconds in found.seconds)
    return (
        f'<div class="scroll"><table><thead><tr><th>after</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _video(film: Film, found: Endurance) -> str:
    fps = found.steps_per_second * found.frames_per_step
    lines = [f"{i / fps:.1f} s" for i in range(len(film.truth))]
    frames = compose({"dream": film.dream, "truth": film.truth}, lines, context=1)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "film.mp4"
        save_video(file, frames, fps, crf=26)
        return video_card(file.read_bytes(), f"{film.episode} from step {film.start}, at its true speed.")
