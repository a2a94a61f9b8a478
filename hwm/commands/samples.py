"""What a run shows of itself while it trains: loss curves, and rollouts beside the truth."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hwm.data.clips import Clips
from hwm.data.store import write_atomically
from hwm.errors import HwmError
from hwm.pictures.page import html_page, training_section
from hwm.pictures.plot import need_matplotlib
from hwm.train.loggers import read_log
from hwm.types import Tokenizer


def curve(run: str | Path) -> list[tuple[int, float, float | None]]:
    """(update, training loss, held-out loss where it was measured) of a run, in order."""
    rows: dict[int, dict[str, float]] = {}
    for line in read_log(run):
        rows.setdefault(int(line["step"]), {}).update(line)
    return [(step, row["loss"], row.get("val_loss")) for step, row in sorted(rows.items()) if "loss" in row]


@cache
def _can_draw() -> bool:
    """Whether charts can be drawn; says once that they cannot, which is no reason to end a run."""
    try:
        need_matplotlib()
    except HwmError as error:
        print(f"no curves.html: {error}", file=sys.stderr)
        return False
    return True


def draw_curves(run: Path) -> None:
    """Write `curves.html` from the run's log, where charts can be drawn."""
    if not _can_draw():
        return
    page = html_page(f"{run.name}: training", [training_section(curve(run))])
    write_atomically(run / "curves.html", page.encode())


def show_progress(rollouts: tuple[Clips, Tokenizer] | None, dtype: str = "auto") -> Callable[[int, Any, Path], None]:
    """A callback for `Trainer`: curves always, and a contact sheet of rollouts of held-out clips where there are any.

    What goes wrong with them is said and does not end the training.

    Args:
        rollouts: held-out windows, longer than the model's past, and the tokenizer of their latents.
        dtype: number format of the rollouts, as of `EvaluateConfig`.
    """

    def show(step: int, model: Any, run: Path) -> None:
        try:
            draw_curves(run)
            if rollouts is not None:
                sample(step, model, run, *rollouts)
        except Exception as error:  # pictures are made by tokenizers and metrics of anybody's
            print(f"no pictures at update {step}: {type(error).__name__}: {error}", file=sys.stderr)

    def sample(step: int, model: Any, run: Path, clips: Clips, tokenizer: Tokenizer) -> None:
        from hwm.evaluate.evaluate import EvaluateConfig, evaluate
        from hwm.evaluate.show import contact_sheet
        from hwm.pictures.files import save_png

        prompt = model.config.past
        how = EvaluateConfig(
            clips=4, prompt=prompt, horizon=clips.length - prompt, swaps=("jump_free",), progress=False, dtype=dtype
        )
        results = evaluate(model, tokenizer, clips, how)
        (run / "samples").mkdir(exist_ok=True)
        save_png(run / "samples" / f"step_{step:08d}.png", contact_sheet(results))

    return show
