"""What is in a store: tables for a terminal, a contact sheet, and a page that needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group

from hwm import far
from hwm.data.arrays import pieces
from hwm.data.store import Episode, Store
from hwm.devices import device_of
from hwm.errors import HwmError
from hwm.files import write_atomically
from hwm.pictures.canvas import DIM, enlargement, shrink
from hwm.pictures.files import png, save_png
from hwm.pictures.plot import need_matplotlib, small_charts
from hwm.pictures.sheet import Block, Row, draw_sheet
from hwm.pictures.stack import side_by_side
from hwm.pictures.style import page_style
from hwm.pictures.video import to_uint8
from hwm.tables import Figures
from hwm.types import Tokenizer

STYLE = """
.strip { display: block; width: 100%; height: auto; border-radius: 6px; }
.card { margin: 14px 0; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tr.constant { color: var(--quiet); }
"""


@dataclass(frozen=True)
class Column:
    """One action dimension over all steps and slots of a store, in the units of the robot.

    Attributes:
        low, mean, high, std: over this store.
        used_mean, used_std: recorded in the store for models to normalise by; in a held-out one the training set's.
    """

    name: str
    low: float
    mean: float
    high: float
    std: float
    used_mean: float
    used_std: float

    @property
    def constant(self) -> bool:
        return self.low == self.high


def columns_of(store: Store) -> list[Column]:
    """Statistics of each action dimension, in bounded memory."""
    names, (used_mean, used_std) = store.header.action_names, store.statistics
    count = store.steps * store.header.actions_per_step
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    total, square = np.zeros(len(names)), np.zeros(len(names))
    # as in `moments`: sums of squares about a value near the mean do not cancel
    origin = np.asarray(store.actions[0], np.float64)[0]
    for piece in pieces(store.actions):
        part = piece.astype(np.float64)
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
        total += (part - origin).sum(0)
        square += ((part - origin) ** 2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0))
    values = zip(low, mean + origin, high, std, used_mean, used_std, strict=True)
    return [Column(name, *map(float, row)) for name, row in zip(names, values, strict=True)]


def facts(store: Store) -> dict[str, str]:
    """What there is to say about a store as a whole, in the order in which it is said."""
    h, latent = store.header, store.header.latent
    lengths = np.sort(np.subtract(*store.bounds[::-1])).tolist()
    files = far.files(store.path) if far.is_far(store.path) else store.path.rglob("*")
    size = sum(map(far.size, files))
    alike = f"{lengths[0]:,} steps each"
    range_ = f"{lengths[0]:,} to {lengths[-1]:,} steps, half of them of at least {lengths[len(lengths) // 2]:,}"
    lines = {
        "episodes": f"{len(lengths):,}, of {alike if lengths[0] == lengths[-1] else range_}",
        "steps": f"{store.steps:,} at {h.fps:g} a second: {store.seconds / 60:.1f} minutes",
        "embodiment": h.embodiment,
        "actions": f"{h.actions_per_step} a step, of {len(h.action_names)} dimensions, {h.action_dtype}",
    }
    if latent is None:
        lines["latents"] = "none yet: hwm encode makes them"
    else:
        grid = f"{latent.grid[0]} x {latent.grid[1]}"
        what = f"ids of {latent.vocab:,}" if latent.vocab else f"values in {latent.channels} channels"
        if latent.levels:
            what += f" (digits of {', '.join(map(str, latent.levels))})"
        lines["latents"] = f"{grid} {what}, {h.dtype}, {latent.stride} frames a step after the first"
        if latent.vocab and store.latents is not None:
            used = ids_in_use(store)
            lines["codebook usage"] = f"{used / latent.vocab:.2%}: {used:,} of {latent.vocab:,} ids"
        lines["tokenizer"] = h.tokenizer or "not recorded"
    if h.views:
        lines["cameras"] = f"{', '.join(h.views)}; one below the other in each step"
    lines["video"] = "yes" if store.has_video else "no"
    lines["size"] = f"{size / 2**20:,.1f} MiB"
    if h.source:
        lines["source"] = h.source
    if store.settings:
        lines["settings"] = ", ".join(settings_in_words(store.settings))
    if store.notes:
        lines["notes"] = "; ".join(store.notes)
    return lines


def settings_in_words(settings: Mapping[str, Any]) -> Iterator[str]:
    """What was asked for when a store was written, but for what was left as it is by itself."""
    for name, value in settings.items():
        if value is True or not value:
            yield from [name] * bool(value)
        else:
            yield f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def ids_in_use(store: Store) -> int:
    """How many different token ids occur in a store of discrete latents."""
    assert store.latents is not None
    assert store.header.latent is not None
    seen = np.zeros(store.header.latent.vocab or 0, bool)
    for i in range(0, store.steps, 4096):
        seen[np.asarray(store.latents[i : i + 4096])] = True
    return int(seen.sum())


def describe(store: Store) -> Group:
    """Tables for a terminal: the store as a whole, and the statistics of each action dimension."""
    whole = Figures("", "", words=2, ruled=False)
    whole.add("store", far.address(store.path))
    for name, value in facts(store).items():
        whole.add(name, value)
    columns = columns_of(store)
    actions = Figures(*_headings(columns), ruled=False)
    for c in columns:
        actions.add(*_cells(c, columns), style="dim" if c.constant else "")
    return Group(whole, actions)


def _foreign(columns: Iterable[Column]) -> bool:
    """Whether the statistics in use are another store's."""
    return any(not np.allclose((c.mean, c.std), (c.used_mean, c.used_std), rtol=1e-4, atol=1e-6) for c in columns)


def _headings(columns: list[Column]) -> list[str]:
    return ["action", "min", "mean", "max", "std", *(["mean in use", "std in use"] if _foreign(columns) else []), ""]


def _cells(c: Column, columns: list[Column]) -> list[str]:
    values = [c.low, c.mean, c.high, c.std, *([c.used_mean, c.used_std] if _foreign(columns) else [])]
    return [c.name, *(f"{v:.4g}" for v in values), "constant" if c.constant else ""]


def pictures(store: Store, episode: Episode, steps: list[int], tokenizer: Tokenizer | None = None) -> np.ndarray:
    """What the camera saw at some steps of an episode, uint8 (len(steps), H, W, 3); without video, decoded latents.
    Of several cameras the pictures are side by side.

    Raises:
        HwmError: there is neither video nor a tokenizer, or the video is too short.
    """
    views = max(1, len(store.header.views))
    if store.has_video:
        every = episode.frames_per_step
        wanted = {s * every for s in steps}
        film = enumerate(store.frames(episode, stop=max(wanted) + 1))
        found = {i: frame for i, frame in film if i in wanted}
        if len(found) < len(wanted):
            raise HwmError(f"{store.path}: the video of {episode.id!r} ends before step {max(steps)}")
        return side_by_side(np.stack([found[s * every] for s in steps]), views)
    if tokenizer is None or store.latents is None:
        raise HwmError(
            f"{store.path} has no video: give the tokenizer whose latents it holds ({store.header.tokenizer})"
        )
    rows = np.asarray(store.latents[episode.start : episode.stop])
    if tokenizer.latent.stride == 1:  # each step by itself
        rows, shown = rows[steps], range(len(steps))
    else:
        shown = [tokenizer.latent.frames(s + 1) - 1 for s in steps]  # type: ignore[assignment]
    continuous = store.header.latent is not None and store.header.latent.channels is not None
    latents = torch.from_numpy(rows.astype(np.float32 if continuous else np.int64))
    if continuous and store.header.dtype == "uint8":
        latents /= 255
    shown_by = to_uint8(tokenizer.decode(latents[None].to(device_of(tokenizer, latents.device)))[0])[list(shown)]
    return side_by_side(shown_by, views)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..count-1, evenly from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def strip(
    store: Store, episode: Episode, columns: int, tokenizer: Tokenizer | None = None, wide: int = 128
) -> tuple[Block, int]:
    """Pictures of an episode side by side with their times, and the factor that makes them about `wide` pixels wide."""
    steps = spread(episode.steps, columns)
    frames = shrink(pictures(store, episode, steps, tokenizer), wide)
    heads = [(f"{step / store.header.fps:.1f} s", DIM) for step in steps]
    title = f"{episode.id}, {episode.steps:,} steps"
    return Block(title=title, heads=heads, rows=[Row(pictures=frames)]), enlargement(frames, wide)


def contact_sheet(
    store: Store, out_png: str | Path, tokenizer: Tokenizer | None = None, rows: int = 6, columns: int = 8
) -> Path:
    """Write a PNG of episodes x moments, both spread evenly over the store.

    Args:
        tokenizer: decodes the latents of a store without video.
        rows, columns: most episodes, and moments of each.

    Raises:
        HwmError: there is neither video nor a tokenizer.
    """
    if rows < 1 or columns < 1:
        raise HwmError(f"a contact sheet of {rows} rows and {columns} columns shows nothing")
    strips = [strip(store, store.episodes[i], columns, tokenizer) for i in spread(len(store.episodes), rows)]
    return save_png(out_png, draw_sheet([block for block, _ in strips], strips[0][1]))


def view_html(
    store: Store, out_html: str | Path, tokenizer: Tokenizer | None = None, episodes: int = 12, columns: int = 8
) -> Path:
    """Write a page that needs no other file: facts, action statistics, and for some episodes pictures and actions.

    Args:
        tokenizer: decodes the latents of a store without video.
        episodes, columns: most episodes, spread evenly over the store, and moments of each.

    Raises:
        HwmError: there is neither video nor a tokenizer, or Matplotlib is not installed.
    """
    need_matplotlib()
    statistics = columns_of(store)
    chosen = [store.episodes[i] for i in spread(len(store.episodes), episodes)]
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in facts(store).items())
    heads = "".join(f"<th>{escape(name)}</th>" for name in _headings(statistics))
    body = "".join(
        f"<tr{' class=constant' if c.constant else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(c, statistics))
        + "</tr>"
        for c in statistics
    )
    shown = "".join(_card(store, e, statistics, columns, tokenizer) for e in chosen)
    of_all = "all" if len(chosen) == store.count else f"{len(chosen)} of {store.count:,}"
    title = escape(store.path.name)
    style = page_style() + STYLE
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{style}</style></head><body><main><h1>{title}</h1>"
        f'<div class="scroll"><table>{rows}</table></div>'
        f'<h2>Actions</h2><div class="scroll"><table><tr>{heads}</tr>{body}</table></div>'
        f"<h2>Episodes ({of_all})</h2>{shown}</main></body></html>\n"
    )
    path = Path(out_html)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())
    return path


def _card(store: Store, episode: Episode, columns: list[Column], moments: int, tokenizer: Tokenizer | None) -> str:
    """An episode: its pictures, and a curve of each action that is not constant in the store."""
    block, scale = strip(store, episode, moments, tokenizer, wide=96)
    picture = base64.b64encode(png(draw_sheet([replace(block, title="")], scale))).decode()
    actions = np.asarray(store.actions[episode.start : episode.stop], np.float64).reshape(-1, len(columns))
    values = {c.name: actions[:, i] for i, c in enumerate(columns) if not c.constant}
    seconds = episode.steps / store.header.fps
    times = np.arange(len(actions)) * seconds / len(actions)
    curves = small_charts(values, {c.name: (c.low, c.high) for c in columns}, times) if values else ""
    name = escape(episode.id)
    return (
        f'<div class="card"><h3>{name}: {episode.steps:,} steps, {seconds:.1f} s</h3>'
        f'<img class="strip" alt="{name} from beginning to end" src="data:image/png;base64,{picture}">'
        f"{curves}</div>"
    )
