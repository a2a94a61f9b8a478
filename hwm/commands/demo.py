"""`hwm demo`: the shipped model on rooms it has never seen, a toy model trained before your eyes, and a report."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from hwm.computing import Computing
from hwm.errors import HwmError

if TYPE_CHECKING:
    from rich.console import Console

    from hwm.devices import Runtime
    from hwm.evaluate.obey import Obedience
    from hwm.evaluate.results import Results

#: constant commands that the model is asked to follow; values in the robot's units (rad/s, m/s)
COMMANDS = {
    "turn left": {"ANGULAR_VELOCITY": 1.2, "LINEAR_VELOCITY": 0.0},
    "turn right": {"ANGULAR_VELOCITY": -1.2, "LINEAR_VELOCITY": 0.0},
    "drive forward": {"ANGULAR_VELOCITY": 0.0, "LINEAR_VELOCITY": 0.6},
    "stand still": {"ANGULAR_VELOCITY": 0.0, "LINEAR_VELOCITY": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Computing):
    """Evaluate the shipped model on held-out rooms, train a toy model for a minute, write a report with videos.

    Attributes:
        out: folder for the report, the figures and the videos.
        clips: held-out clips to evaluate.
        train: train the toy model.
        model: the world model to show.
        store: held-out rooms.
    """

    out: Path = Path("demo")
    clips: int = 48
    train: bool = True
    model: str = "masked_hwm_mini"
    store: str = "mini_heldout"


def demo(args: list[str]) -> None:
    """`hwm demo [--out DIR]`."""
    run_demo(tyro.cli(DemoOptions, args=args, prog="hwm demo"))


def run_demo(o: DemoOptions) -> Path:
    """Run the demo; returns the path of the report."""
    from rich.console import Console

    from hwm.evaluate.report import write_report
    from hwm.pictures.plot import need_matplotlib

    need_matplotlib()
    runtime = o.start()
    began = time.monotonic()
    console = Console()
    if o.out.exists() and not o.out.is_dir():
        raise HwmError(f"{o.out} is a file; give a folder with --out")
    o.out.mkdir(parents=True, exist_ok=True)

    console.print(f"on {runtime}")
    console.rule("1. the shipped model on rooms it has never seen")
    results, videos = _evaluated(o, runtime, console)
    console.rule("2. does it do what it is told?")
    obedience = _commanded(o, runtime, console)
    points = []
    if o.train:
        console.rule("3. a toy model, trained from nothing")
        points = _trained(o, console)

    notes = [
        f"The training curve is that of the toy model trained during this demo ({runtime}), not of the model "
        "evaluated here."
    ]
    report = write_report(
        o.out / "report.html",
        results,
        title="A humanoid's world, predicted",
        obedience=obedience,
        training=points,
        notes=notes if points else [],
        data="120 minutes of simulated rooms; the rooms shown here are not among them",
    )
    console.rule("done")
    console.print(f"{time.monotonic() - began:.0f} s. Open {report} in a browser; videos: {videos}/clip_*.mp4")
    return report


def _evaluated(o: DemoOptions, runtime: Runtime, console: Console) -> tuple[Results, Path]:
    """Figures of the model, which are saved with videos of some clips and a contact sheet; the folder of the videos."""
    from hwm.commands.evaluation import EvaluateOptions
    from hwm.commands.rollouts import run_evaluation
    from hwm.evaluate.show import contact_sheet, save_examples
    from hwm.pictures.files import save_png

    options = EvaluateOptions(model=o.model, store=o.store, clips=o.clips, dtype=o.dtype)
    results = run_evaluation(options, runtime, "hwm demo", progress=True)
    console.print(results.table())
    results.save(o.out / "figures.json")
    videos = save_examples(o.out, results)
    save_png(o.out / "contact_sheet.png", contact_sheet(results))
    return results, videos[0].parent


def _commanded(o: DemoOptions, runtime: Runtime, console: Console) -> Obedience:
    """How the picture moves in the model under each of `COMMANDS`."""
    from hwm.data.clips import Clips
    from hwm.data.readers import open_store
    from hwm.evaluate.obey import obey
    from hwm.loading import load, load_tokenizer

    model = load(o.model, runtime.device)
    clips = Clips(open_store(o.store), model.config.past + 8, part="test")
    tokenizer = load_tokenizer(clips.store.header.tokenizer, runtime.device, views=clips.store.header.views)
    obedience = obey(model, tokenizer, clips, COMMANDS, starts=6, steps=10, dtype=o.dtype, progress=True)
    for command, motion in obedience.motion.items():
        shift, expansion = motion.mean((0, 1))
        console.print(f"  {command:<14} the picture shifts {shift:+.2f} pixels a step, expands {expansion:+.2f}")
    return obedience


def _trained(o: DemoOptions, console: Console) -> list[tuple[int, float, float | None]]:
    """The training curve of a toy model, as of `curve`; losses in nats a token."""
    from hwm.commands.samples import curve
    from hwm.commands.training import train_recipe
    from hwm.recipes import find_recipe

    run, recipe = o.out / "toy", find_recipe("masked_hwm_toy")()
    train = replace(recipe.train, device=o.device, dtype=o.dtype, threads=o.threads)
    train_recipe(replace(recipe, train=train), run)
    points = curve(run)
    console.print(f"  loss {points[0][1]:.2f} -> {points[-1][1]:.2f} nats a token in {points[-1][0]} updates")
    return points
