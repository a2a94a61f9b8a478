"""Every family at the paper's size on a card: training and prediction, against the card's own matrix products.

A row is a recipe in a process of its own: tokens a second of training steps (forward, backward, clipping, optimizer),
the share that these make of a large matrix product's operations a second, peak memory, and frames a second of one
clip's prediction (of a tokenizer: encoded and decoded). A step has as many clips as the recipe's updates, or half of
them, a quarter, and so on, as many as fit. One recipe of each family comes first, then the same with compiled blocks,
then the others, until the minutes are over; what has not been measured is listed with the reason.

The table is written after every row, as gpu.json and gpu.md.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from common import device_name, parser, report

from hwm.config import registered
from hwm.devices import find_device, runtime_of, synchronize
from hwm.errors import HwmError
from hwm.recipes import make_recipe
from hwm.train.bench import bench, time_prediction
from hwm.types import Tokenizer

FIRST = (
    "masked_hwm_base", "flow_hwm_base", "genie_35m", "hma_discrete_base", "hma_continuous_base", "cosmos_ar_100m",
    "next_block_base", "masked_hwm_shared", "flow_hwm_uvit", "diffusion_lab", "cosmos_dv8x8x8_finetune",
    "cosmos_ar_4b",
)  # fmt: skip
"""A recipe of each family."""

OTHERS = (
    "masked_hwm_modality", "masked_hwm_full", "masked_hwm_split", "flow_hwm_modality", "flow_hwm_full",
    "flow_hwm_split", "genie_138m", "hma_discrete_xl", "hma_language_table", "cosmos_ar_5b", "cosmos_ar_12b",
    "cosmos_ar_13b", "masked_hwm_shared_factors", "cosmos_cv8x8x8_finetune", "cosmos_di8x8_finetune", "tiny_tokenizer",
    "masked_hwm_mini",
)  # fmt: skip
ROWS = [*((name, False) for name in FIRST), *((name, True) for name in FIRST), *((name, False) for name in OTHERS)]
"""Recipes, and whether their blocks are compiled."""

QUICK = ROWS[:1]
PATIENCE = 90.0
"""Most seconds of a row."""


# ---------------------------------------------------------------------- a row, in its own process
def tiny(name: str) -> Any:
    """A recipe with the tiny config of its model, on a small grid."""
    recipe = make_recipe(name)
    spec = recipe.data.expects
    side = 32 if spec.latent.channels == 3 else 8
    small = replace(spec, latent=replace(spec.latent, grid=(side, side)))
    model = registered(recipe.model.owner.name).tiny()  # type: ignore[attr-defined]
    steps = model.past + model.horizon if hasattr(model, "past") else recipe.data.steps
    return recipe.but(model=model, data=dict(expects=small, steps=steps), train=dict(batch_size=2, accumulate=1))


def measured(name: str, recipe: Any, steps: int) -> dict[str, Any]:
    """A recipe's figures, with as many of an update's clips as fit; of a prediction alone where not even one does."""
    clips = recipe.train.batch_size * recipe.train.accumulate
    while clips:
        try:
            found = asdict(bench(name, recipe.but(train=dict(batch_size=clips, accumulate=1)), steps))
            return {**found, "frames_per_second": frames_per_second(recipe, found["predict_seconds"])}
        except torch.OutOfMemoryError:
            clips //= 2
        gc.collect()  # out of the handler, which would keep what its frames hold
        torch.cuda.empty_cache()
    return predicted(recipe)


def predicted(recipe: Any) -> dict[str, Any]:
    """A prediction of a model too large for training, with weights of half the size where its config has a choice."""
    if hasattr(recipe.model, "dtype"):
        recipe = recipe.but(model=dict(dtype="bfloat16"))
    note = "training does not fit, not with one clip"
    try:
        with find_device(recipe.train.device):
            model = recipe.model.build(recipe.data.expects)
        seconds = time_prediction(model, recipe.train.dtype)
    except torch.OutOfMemoryError:
        return {"note": f"{note}; nor does a prediction"}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": runtime_of(model, recipe.train.dtype).format,
        "predict_seconds": seconds,
        "frames_per_second": frames_per_second(recipe, seconds),
        "note": note,
    }


def frames_per_second(recipe: Any, predict_seconds: float | None) -> float:
    """Of a prediction of one clip; of a tokenizer, of encoding and decoding one."""
    latent = recipe.data.expects.latent
    if predict_seconds is not None:
        return float(recipe.model.horizon * latent.stride / predict_seconds)
    with find_device(recipe.train.device):
        tokenizer = recipe.model.build(recipe.data.expects).eval()
    assert isinstance(tokenizer, Tokenizer)
    runtime = runtime_of(tokenizer, recipe.train.dtype)
    video = torch.rand(1, tokenizer.latent.frames(2), 3, *tokenizer.size, device=runtime.device)
    took = 0.0
    for _ in range(2):
        synchronize(runtime.device)
        start = time.perf_counter()
        with runtime.autocast():
            tokenizer.decode(tokenizer.encode(video))
        synchronize(runtime.device)
        took = time.perf_counter() - start
    return video.shape[1] / took


def one_row(a: Any) -> None:
    """Print the figures of a recipe as a line of JSON."""
    if a.threads:
        torch.set_num_threads(a.threads)
    recipe = tiny(a.row) if a.quick else make_recipe(a.row)
    recipe = recipe.but(train=dict(device=a.device, compile=a.compile))
    print(json.dumps(measured(a.row, recipe, a.steps)))


# ---------------------------------------------------------------------- the table
def run_row(name: str, compiled: bool, a: Any, seconds: float) -> dict[str, Any]:
    """A row's figures; a note in their place where it failed or took longer."""
    words = [sys.executable, __file__, "--row", name, "--device", a.device, "--steps", str(a.steps)]
    words += ["--compile"] * compiled + ["--quick"] * a.quick + ["--threads", str(a.threads)]
    row: dict[str, Any] = {"recipe": name, "compiled": compiled}
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {**row, "note": f"stopped after {seconds:.0f} s"}
    if done.returncode:
        return {**row, "note": f"failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}"}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), **row}


COLUMNS = {
    "recipe": "{}", "compiled": "{}", "parameters": "{:,}", "dtype": "{}", "batch_size": "{}", "seconds": "{:.3f}",
    "tokens_per_second": "{:,.0f}", "utilisation": "{:.0%}", "memory": "{:.1f}", "frames_per_second": "{:.2f}",
    "note": "{}",
}  # fmt: skip
HEADS = (
    "recipe", "blocks", "parameters", "format", "clips", "s a step", "tokens/s", "of the products", "GiB", "frames/s",
    "",
)  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    shown = {**row, "compiled": "compiled" if row["compiled"] else "eager"}
    shown |= {"memory": row["memory"] / 2**30} if "memory" in row else {}
    return f"| {' | '.join(form.format(shown[k]) if k in shown else '' for k, form in COLUMNS.items())} |"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table as a page of Markdown."""
    peaks = sorted({(r["dtype"], r["peak"]) for r in rows if "peak" in r})
    products = "; ".join(f"{dtype} {peak / 1e12:,.1f} TFLOP/s" for dtype, peak in dict(peaks).items())
    said = f"{device_name()}, PyTorch {torch.__version__}. A large matrix product, measured: {products or 'none yet'}."
    return "\n".join([said, "", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|", *map(line, rows), ""])


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"device": device_name(), "torch": torch.__version__, "cuda": torch.version.cuda, "rows": rows}
    (folder / "gpu.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    (folder / "gpu.md").write_text(page(rows), encoding="utf-8")


def table(wanted: Sequence[tuple[str, bool]], a: Any) -> list[dict[str, Any]]:
    """All rows, within the minutes."""
    end, rows = time.monotonic() + 60 * a.minutes, list[dict[str, Any]]()
    for name, compiled in wanted:
        left = end - time.monotonic()
        if left > 0:
            rows.append(run_row(name, compiled, a, min(left, PATIENCE)))
            print(line(rows[-1]), file=sys.stderr, flush=True)
        else:
            rows.append({"recipe": name, "compiled": compiled, "note": "no time was left: give more --minutes"})
        if a.out:
            write(a.out, rows)
    return rows


def main() -> None:
    p = parser(__doc__)
    p.add_argument("recipes", nargs="*", help="these recipes alone")
    p.add_argument("--device", default="auto", help="auto, cuda, cuda:1 or cpu")
    p.add_argument("--minutes", type=float, default=30.0, help="begin no row after so long")
    p.add_argument("--steps", type=int, default=4, help="training steps that are timed")
    p.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md")
    p.add_argument("--row", help="measure one recipe in this process, and print its figures")
    p.add_argument("--compile", action="store_true", help="of --row and of recipes that are named: compile the blocks")
    a = p.parse_args()
    try:
        find_device(a.device)
    except HwmError as error:
        raise SystemExit(str(error)) from None
    if a.row:
        return one_row(a)
    wanted = [(name, a.compile) for name in a.recipes] or (QUICK if a.quick else ROWS)
    rows = table(wanted, a)
    done = [row for row in rows if "flops" in row]
    if not done:
        raise SystemExit(f"nothing was measured:\n{page(rows)}")
    ours, products = sum(r["seconds"] for r in done), sum(r["flops"] / r["peak"] for r in done)
    report(a.json, ours=ours, baseline=products, unit="s of all rows' training steps, and of their products alone",
           **({"rows": rows} if a.json else {}))  # fmt: skip


if __name__ == "__main__":
    main()
