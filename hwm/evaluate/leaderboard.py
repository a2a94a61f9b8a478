"""One row a model and scenario, in a table that grows: what the 1X World Model Challenge ranked by, and baselines.

As there, LPIPS is taken against the decoded true tokens, and seconds are those of predicting a frame, amortised over a
batch, without decoding. PSNR is taken against the camera where there is one (the challenge had none).
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hwm.data.store import write_atomically
from hwm.errors import HwmError
from hwm.evaluate.results import Results, perplexity

COLUMNS = (
    "model", "parameters", "data", "scenario", "prompt", "horizon", "clips", "cross-entropy", "perplexity", "accuracy",
    "accuracy of copy", "LPIPS", "LPIPS of copy", "PSNR", "PSNR of copy", "against", "s/frame", "batch", "device",
)  # fmt: skip
"""Cross-entropy in nats a token, PSNR in dB. The copy is the last frame of the prompt, repeated."""


def rows(results: Results) -> list[list[str]]:
    """The values of `COLUMNS` for each scenario; empty for a figure that does not apply."""
    return [_row(results, scenario) for scenario in results.figures]


def add_rows(path: str | Path, results: Results) -> Path:
    """Add the rows of an evaluation to a table, CSV or, for any other ending, markdown; a new one is begun with a head.

    Raises:
        HwmError: the file is there and is not such a table.
    """
    path = Path(path)
    comma, table = path.suffix == ".csv", rows(results)
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise HwmError(f"cannot read the table {path}: {error}") from error
    head = _csv([list(COLUMNS)]) if comma else _markdown([list(COLUMNS), ["---"] * len(COLUMNS)])
    if text.strip() and not text.startswith(head):
        raise HwmError(f"{path} does not begin with the columns of this table; name another file with --leaderboard")
    if text and not text.endswith("\n"):
        text += "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ((text if text.strip() else head) + (_csv(table) if comma else _markdown(table))).encode())
    return path


def _row(results: Results, scenario: str) -> list[str]:
    def mean(name: str, places: int) -> str:
        found = results.overall(name, scenario=scenario)
        return "" if found is None else f"{found.mean:.{places}f}"

    nats = results.overall("ce", scenario=scenario)
    return [
        results.checkpoint or results.model,
        str(results.parameters),
        results.data,
        scenario,
        str(results.prompt),
        str(results.horizon),
        str(results.clips),
        mean("ce", 4),
        "" if nats is None else f"{perplexity(nats.mean):.1f}",
        mean("accuracy", 4),
        mean("accuracy_copy", 4),
        mean("lpips_reconstruction_reference", 4),
        mean("lpips_copy_reconstruction_reference", 4),
        mean("psnr", 2),
        mean(f"psnr_{results.rival(scenario=scenario)}", 2),
        results.reference,
        f"{results.seconds_per_frame(scenario):.4g}",
        str(results.batch_size),
        f"{results.device}, {results.dtype}",
    ]


def _csv(lines: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _markdown(lines: list[list[str]]) -> str:
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)
