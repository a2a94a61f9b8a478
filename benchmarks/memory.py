"""The memory that `hwm recipes --memory` computes for a training step, against what a process of its own takes.

Computed: weights, gradients, optimizer, and every block of memory that a forward and backward pass hold at their peak.
Measured: the peak of a process that takes two steps, less what it had before the model was built; on a CPU the
allocator's waste is in it. `--table` computes the table of docs/scaling.md: recipes at one clip and at as many as they
train on, for each `activation_checkpoint`, in bfloat16 with AdamW and no average.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import in_fresh_process, parser, report

from hwm.data.clips import fake_batch
from hwm.devices import Runtime, find_device, peak_memory
from hwm.nn.layers import sparing
from hwm.recipes import find_recipe
from hwm.train.blocks import arithmetic, recompute
from hwm.train.config import TrainConfig
from hwm.train.memory import GIB, training_memory
from hwm.train.optim import optimizers

TABLE = (
    *("masked_hwm_base", "masked_hwm_modality", "masked_hwm_full", "masked_hwm_split", "masked_hwm_shared"),
    *("flow_hwm_base", "flow_hwm_full", "flow_hwm_uvit", "diffusion_lab", "genie_35m", "genie_138m"),
    *("hma_discrete_base", "hma_discrete_xl", "hma_continuous_base", "cosmos_ar_100m", "cosmos_ar_4b", "cosmos_ar_12b"),
    *("cosmos_dv8x8x8_finetune",),
)
MODES = ("none", "selective", "full")


def given(name: str, quick: bool) -> tuple[Any, Any, int, TrainConfig]:
    """A recipe's model, data, steps of a clip, and training with the options of this benchmark."""
    recipe = find_recipe(name)()
    if quick:
        recipe = recipe.but(model=dict(dim=64, depth=2, heads=2))
    assert recipe.data.expects is not None
    plain = replace(recipe.train, dtype="bfloat16", ema=0.0, optimizer="adamw", activation_checkpoint="none")
    return recipe.model, recipe.data.expects, recipe.data.steps, plain


def measured(name: str, mode: str, threads: int, quick: bool) -> float:
    """Bytes that two steps with one clip add to this process."""
    torch.set_num_threads(threads or 1)
    device = find_device()
    model, spec, steps, train = given(name, quick)
    torch.nn.Linear(8, 8).to(device)(torch.zeros(1, 8, device=device))
    before = peak_memory(device)
    module = model.build(spec).to(device)
    recompute(module, mode)
    made = optimizers(module, train.optimizer, train.lr, train.weight_decay, train.betas)
    batch = fake_batch(spec, 1, steps).to(device)
    for _ in range(2):
        with sparing(), arithmetic(Runtime(device, "bfloat16"), mode):
            loss, _ = module(batch)
        loss.backward()
        for each in made:
            each.step()
            each.zero_grad(set_to_none=True)
    return peak_memory(device) - before


def table(names: tuple[str, ...]) -> None:
    """GiB by recipe, clips and mode; weights, gradients and optimizer in a column of their own."""
    print("| recipe | parameters | weights, gradients, AdamW | clips | none | selective | full |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        model, spec, steps, train = given(name, False)
        for clips in dict.fromkeys((1, train.batch_size)):
            changes = [dict(batch_size=clips, activation_checkpoint=m) for m in MODES]
            found = [training_memory(model, spec, steps, replace(train, **c)) for c in changes]  # type: ignore[arg-type]
            one = found[0]
            static = (one.weights + one.gradients + one.optimizer) / GIB
            cells = " | ".join(f"{m.total / GIB:.1f}" for m in found)
            print(f"| `{name}` | {one.parameters / 1e6:,.0f} M | {static:.1f} | {clips} | {cells} |", flush=True)


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--recipe", default="masked_hwm_base")
    p.add_argument("--mode", choices=MODES, default="none", help="activation_checkpoint")
    p.add_argument("--table", action="store_true", help="compute the table alone")
    p.add_argument("--measure", action="store_true", help="measure here and print it; used by this script itself")
    a = p.parse_args()
    if a.table:
        table(TABLE)
        return
    if a.measure:
        print(json.dumps({"bytes": measured(a.recipe, a.mode, a.threads, a.quick)}))
        return
    model, spec, steps, train = given(a.recipe, a.quick)
    computed = training_memory(model, spec, steps, replace(train, batch_size=1, activation_checkpoint=a.mode))
    options = ["--recipe", a.recipe, "--mode", a.mode, "--threads", str(a.threads)] + ["--quick"] * a.quick
    found = in_fresh_process(str(Path(__file__)), "--measure", *options)
    report(
        a.json,
        ours=computed.total / GIB,
        baseline=found["bytes"] / GIB,
        unit="GiB of a training step, computed and measured",
        recipe=a.recipe,
        mode=a.mode,
    )


if __name__ == "__main__":
    sys.exit(main())
