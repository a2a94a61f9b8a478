"""A report in one HTML file: no script, no second file, nothing fetched; readable in light and dark and on a phone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from hwm.data.store import write_atomically
from hwm.evaluate import show
from hwm.evaluate.obey import MOTIONS, Obedience
from hwm.evaluate.results import LABELS, MOVING_RULE, Results, label, shown_steps
from hwm.evaluate.words import Finding, cautions, findings, verdict
from hwm.pictures.files import save_video
from hwm.pictures.page import html_page, section, training_section, video_card
from hwm.pictures.panels import compose
from hwm.pictures.plot import Series, line_chart

CURVES = (
    ("psnr", "model", "-", "o"),
    ("psnr_copy", "copy", "--", "s"),
    ("psnr_copy_reconstruction", "rebuilt", ":", "D"),
    ("psnr_swapped_actions", "swap", "-.", ""),
    ("psnr_reconstruction", "ceiling", ":", ""),
)
"""Figure, colour, dashes and marker of the lines of the PSNR charts."""

DELTAS = (
    ("delta_psnr", "model", "-", "o"),
    ("delta_psnr_other_clip", "copy", "--", "s"),
    ("delta_psnr_random", "swap", ":", "D"),
)
PALETTE = (
    ("model", "-", "o"),
    ("copy", "--", "s"),
    ("rebuilt", ":", "D"),
    ("swap", "-.", "o"),
)


def write_report(
    path: str | Path,
    results: Results,
    *,
    title: str = "",
    obedience: Obedience | None = None,
    training: Sequence[tuple[int, float, float | None]] = (),
    videos: Sequence[tuple[str, Path]] = (),
    notes: Sequence[str] = (),
    data: str = "",
) -> Path:
    """Write the report of an evaluation, whole or not at all; returns where it is.

    Args:
        title: the heading; by default the model's name.
        obedience: what the pictures did under constant commands, with its videos.
        training: (step, loss, held-out loss or None) for a training curve.
        videos: (caption, mp4 file) of further videos.
        notes: remarks to add, in plain text.
        data: what the model was trained on, in plain text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    title = title or results.model
    with tempfile.TemporaryDirectory() as scratch:
        watch = _examples(results, Path(scratch)) + [video_card(file.read_bytes(), caption) for caption, file in videos]
        commands = _commands(obedience, Path(scratch)) if obedience is not None else ""
    sections = [
        _head(title, results, findings(results, obedience)),
        section("Watch", _watch_words(results), f'<div class="pair">{"".join(watch)}</div>') if watch else "",
        _baselines(results),
        section("Does it listen to its actions?", _swap_words(results), _delta_charts(results), commands),
        *(found.html() for found in results.further.values()),
        training_section(training),
        section("All figures", *(_figures(results, s, m) for s in results.figures for m in _subsets(results))),
        *_by_view(results),
        section("What was evaluated", _about(results, data)),
        section("To be fair", _list([*cautions(results), *notes], "notes")),
    ]
    write_atomically(path, html_page(f"{title}: evaluation", sections).encode())
    return path


# ---------------------------------------------------------------------------------------------- sections


def _head(title: str, results: Results, said: Sequence[Finding]) -> str:
    """Heading, verdict, headline numbers and findings."""
    judgement = verdict(results)
    facts = (
        f"{_count(results.parameters)}, {results.embodiment}, {results.clips} held-out clips of "
        f"{results.data}, {_device(results)}, {results.date}"
    )
    items = "".join(f'<li class="{f.tone}">{escape(f.text)}</li>' for f in said)
    return (
        f'<header><h1>{escape(title)}</h1><p class="facts">{escape(facts)}</p></header>\n'
        f'<p class="verdict {judgement.tone}">{escape(judgement.text)}</p>\n'
        f'<div class="tiles">{_tiles(results)}</div>\n'
        f'<section><h2>In short</h2><ul class="findings">{items}</ul></section>'
    )


def _tiles(results: Results) -> str:
    moving = bool(results.moving.any())
    of, rival = "moving clips" if moving else "all clips", results.rival(moving)
    tiles = []
    for step in sorted({0, results.horizon - 1}):
        mine, copy = results.mean("psnr", moving), results.mean(f"psnr_{rival}", moving)
        if mine is not None and copy is not None:
            what = f"at step {step + 1}, {of}; {mine[step] - copy[step]:+.1f} against the better copy"
            tiles.append((f"{mine[step]:.1f} dB", what))
    delta, wins = results.overall("delta_psnr", moving), results.overall(f"win_rate_{rival}", moving)
    if delta is not None:
        spread = f" (± {delta.error:.2f})" if np.isfinite(delta.error) else ""
        tiles.append((f"{delta.mean:.2f} dB", f"lost{spread} when told wrong actions that do not jump, {of}"))
    if wins is not None:
        tiles.append((f"{wins.mean:.0%}", f"of comparisons won against the better copy, {of}"))
    accuracy = results.overall("accuracy")
    if accuracy is not None:
        copied = results.overall("accuracy_copy") or accuracy
        tiles.append((f"{accuracy.mean:.0%}", f"of tokens exactly right, all clips; repeating gets {copied.mean:.0%}"))
    seconds = results.seconds_per_step[results.scenario]
    at = f"predicted on {_device(results)}, {results.batch_size} clips at once, not decoded"
    tiles.append((f"{float(f'{1 / seconds:.3g}'):,g} steps/s", at))
    return "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)


def _watch_words(results: Results) -> str:
    moving = sum(e.moving for e in results.examples)
    which = (
        "clips drawn at random among those that move" if moving == len(results.examples) else "clips drawn at random"
    )
    return (
        f"<p>These are {which}, without regard to how well they were predicted. While the line below is grey the model "
        "is shown its context; when it turns orange the model is on its own and knows only the actions.</p>"
    )


def _baselines(results: Results) -> str:
    count, cards = int(results.moving.sum()), []
    for moving in _subsets(results):
        name = f"The {count} clips that move" if moving else f"All {results.clips} clips"
        series = _series(results, CURVES, moving)
        highest = max(p[1] for s in series[:-1] for p in s.points())
        ceiling = min(p[1] for p in series[-1].points())
        above = ceiling > highest + 10  # so far up that it would flatten the rest
        chart = line_chart(series[:-1] if above else series, _steps(results), "PSNR in dB", unit="dB")
        note = f'<p class="quiet">The ceiling, at {ceiling:.1f} dB, lies above the picture.</p>' if above else ""
        cards.append(f'<div class="card"><h3>{name}</h3>{chart}{note}</div>')
    seconds = 1 / results.steps_per_second
    words = (
        f"<p>PSNR against {_reference(results)}; higher is better. A model earns its keep above the copies: repeating "
        "the last camera frame, and repeating its reconstruction by the same tokenizer, whose blur PSNR may reward. "
        "The ceiling is what the tokenizer makes of the true frames: about the best that can be predicted through it. "
        f"A step is {seconds:.2g} s. {escape(MOVING_RULE)}</p>"
    )
    return section("Prediction against its baselines", words, f'<div class="pair">{"".join(cards)}</div>')


def _swap_words(results: Results) -> str:
    sizes = {k: v.mean() for k, v in results.swap_distance.items()}
    named = {"jump_free": "the jump-free swap", "other_clip": "another clip's actions", "random": "random actions"}
    far = ", ".join(f"{named.get(k, k)} {v:.2f}" for k, v in sizes.items())
    return (
        "<p>Delta-PSNR is what a prediction loses when it is given wrong actions: zero for a model that ignores them. "
        "The jump-free swap adds another clip's changes of command onto the clip's own last command, so that nothing "
        "jumps; it is the one that counts. The other two make commands jump, which disturbs any model and flatters the "
        "figure. Bands are 95 % confidence intervals, episodes taken as independent."
        + (f" Distance of the wrong actions from the right ones in standard deviations: {escape(far)}." if far else "")
        + "</p>"
    )


def _delta_charts(results: Results) -> str:
    cards = []
    for moving in _subsets(results):
        series = _series(results, DELTAS, moving, errors=True)
        if series:
            name = "Clips that move" if moving else "All clips"
            chart = line_chart(series, _steps(results), "delta-PSNR in dB", zero=True, unit="dB")
            cards.append(f'<div class="card"><h3>{name}</h3>{chart}</div>')
    return f'<div class="pair">{"".join(cards)}</div>' if cards else '<p class="quiet">No swaps were evaluated.</p>'


def _series(
    results: Results, curves: Sequence[tuple[str, str, str, str]], moving: bool, errors: bool = False
) -> list[Series]:
    out = []
    for name, colour, dash, marker in curves:
        found = results.by_step(name, moving)
        if found is not None:
            band = [each.margin for each in found] if errors and found[0].known_error is not None else None
            steps, means = range(1, len(found) + 1), [each.mean for each in found]
            out.append(Series(LABELS[name], steps, means, colour, dash, marker, band))
    return out


def _commands(obedience: Obedience, scratch: Path) -> str:
    """The rollouts under constant commands: video, curves and a table."""
    fps = obedience.steps_per_second * obedience.frames_per_step
    figures = []
    for start in range(min(2, obedience.starts)):
        panels = {name: video[start] for name, video in obedience.videos.items()}
        count = len(next(iter(panels.values())))
        lines = [f"context {i + 1} of {obedience.context}" for i in range(obedience.context)]
        lines += [f"told for {(i + 1) / fps:.1f} s" for i in range(count - obedience.context)]
        frames = list(compose(panels, lines, context=obedience.context, columns=2))
        file = scratch / f"commands_{start}.mp4"
        save_video(file, frames + [frames[-1]] * round(0.6 * fps), fps)
        caption = "One start, a constant command each; the commands begin where the line turns orange."
        figures.append(video_card(file.read_bytes(), caption))
    cards = []
    labels = {"shift": "pixels a step to the right", "expansion": "pixels a step outwards"}
    for motion in MOTIONS:
        series = []
        for number, name in enumerate(obedience.motion):
            values = obedience.by_step(name, motion)
            colour, dash, marker = PALETTE[number % len(PALETTE)]
            series.append(Series(name, range(1, len(values) + 1), values, colour, dash, marker))
        chart = line_chart(series, _steps(obedience), labels[motion], zero=True, unit="px")
        cards.append(f'<div class="card"><h3>{motion.capitalize()} of the predicted pictures</h3>{chart}</div>')
    rows = []
    for name in obedience.motion:
        told = ", ".join(f"{k} {v:.2g}" for k, v in obedience.told[name].items())
        cells = []
        for m, motion in enumerate(MOTIONS):
            found = obedience.mean(name, motion)
            cells.append(f"{found.mean:+.2f}" + (f" ± {found.error:.2f}" if np.isfinite(found.error) else ""))
            cells.append("n/a" if obedience.expected is None else f"{obedience.expected[name][m]:+.2f}")
        rows.append([name, *cells, told])
    head = ["command", "shift", "of the camera", "expansion", "of the camera", "told"]
    words = (
        f"<p>From each of {obedience.starts} starts the model was told the same thing throughout, "
        "with commands that change no faster than they do in the data. Turning left moves the picture to the right; "
        "driving ahead makes it expand. <i>Of the camera</i> is what the camera's own pictures do under such commands, "
        "learnt from the recording; all in pixels a step.</p>"
    )
    return (
        f'<h3>Told what to do</h3>{words}<div class="pair">{"".join(figures)}</div>'
        f'<div class="pair">{"".join(cards)}</div>{_table(head, rows)}'
    )


def _figures(results: Results, scenario: str, moving: bool) -> str:
    """The table of one scenario, for all clips or the moving ones."""
    count = int(results.moving.sum()) if moving else results.clips
    columns = shown_steps(results.horizon)
    who = f"the {count} clips that move" if moving else f"all {count} clips"
    body = []
    for group, rows in results.groups(moving, scenario).items():
        body.append(f'<tr class="group"><th colspan="{len(columns) + 1}">{escape(group)}</th></tr>')
        for name, row in rows.items():
            cells = []
            for t in columns:
                wins, loses = name in results.best(rows, t), results.loses(name, row[t])
                kind = ' class="best"' if wins else ' class="below"' if loses else ""
                cells.append(f"<td{kind}>{results.quoted(name, row[t])}</td>")
            body.append(f"<tr><td>{escape(label(name))}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{t + 1}</th>" for t in columns)
    title = f"{scenario.replace('_', ' ')}, {who}"
    return (
        f"<h3>{escape(title[0].upper() + title[1:])}</h3>"
        f'<div class="scroll"><table><thead><tr><th>step</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _by_view(results: Results) -> list[str]:
    """The tables of each of several cameras."""
    words = "<p>The figures above are of all cameras' pictures as one; here each camera's are by themselves.</p>"
    tables = [
        f"<h3>{escape(view)}</h3>" + "".join(_figures(of, s, m) for s in of.figures for m in _subsets(of))
        for view, of in results.views().items()
    ]
    return [section("By view", words, *tables)] if tables else []


def _about(results: Results, data: str) -> str:
    scenarios = {
        "autoregressive": "autoregressive (each step from the model's own earlier predictions)",
        "temporally_teacher_forced": "temporally teacher-forced (each step from the true steps before it)",
        "fully_teacher_forced": "fully teacher-forced (each token from the true tokens before it)",
    }
    rows = {
        "model": f"{results.model}, {results.parameters:,} parameters",
        "trained on": data,
        "evaluated on": f"{results.data}: {results.source}" if results.source else results.data,
        "clips": f"{results.clips} of {len(set(results.episodes))} episodes, spread evenly over the store; "
        f"{int(results.moving.sum())} of them move",
        "task": f"{results.prompt} context frames, {results.horizon} predicted (latent steps, "
        f"{results.steps_per_second:g} a second)",
        "scenario": "; ".join(scenarios.get(s, s) for s in results.figures),
        "sampling": _sampling(results),
        "tokenizer": results.tokenizer,
        "compared with": _reference(results),
        "device": f"{_device(results)}, PyTorch {results.torch}",
        "seed": str(results.seed),
        "date": results.date,
        "command": results.command,
    }
    items = "".join(
        f"<dt>{k}</dt><dd>{f'<code>{escape(v)}</code>' if k == 'command' else escape(v)}</dd>"
        for k, v in rows.items()
        if v
    )
    return f"<dl>{items}</dl>"


# ------------------------------------------------------------------------------------------------ pieces


def _examples(results: Results, scratch: Path) -> list[str]:
    files = show.save_examples(scratch, results, columns=2, hold=0.6)
    out = []
    for file, example in zip(files, results.examples, strict=True):
        better = float(np.mean(example.psnr - example.rival))
        kind, than = "moving" if example.moving else "nearly still", "better" if better > 0 else "worse"
        caption = (
            f"{example.episode} from step {example.start}, {kind}. "
            f"On average {abs(better):.1f} dB {than} than the better copy."
        )
        out.append(video_card(file.read_bytes(), caption))
    return out


def _list(items: Sequence[str], kind: str) -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{escape(i)}</li>" for i in items)}</ul>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _count(number: int) -> str:
    """A number of parameters in words."""
    return f"{number / 1e6:.1f} million parameters" if number >= 1e6 else f"{number:,} parameters"


def _sampling(results: Results) -> str:
    own = results.config.get("sampler") if isinstance(results.config, dict) else None
    chosen = results.sampler if results.sampler is not None else own
    if isinstance(chosen, dict):
        chosen = ", ".join(f"{key} {value}" for key, value in chosen.items())
    return str(chosen) if chosen is not None else "the model's own setting"


def _steps(of: Results | Obedience) -> str:
    """What stands along the axis of steps."""
    return f"step of the horizon ({1 / of.steps_per_second:.2g} s each)"


def _subsets(results: Results) -> tuple[bool, ...]:
    """All clips, and those that move where they are others than all."""
    return (False, True) if 0 < results.moving.sum() < results.clips else (False,)


def _reference(results: Results) -> str:
    return "the camera's frames" if results.reference == "camera" else "the tokenizer's reconstruction of the frames"


def _device(results: Results) -> str:
    """Device and number format."""
    name = "CPU" if results.device == "cpu" else results.device
    return f"{name}, {results.dtype}"
