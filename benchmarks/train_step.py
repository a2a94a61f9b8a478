"""A training step of Masked-HWM base at the paper's size, against a straightforward one of the same model.

24 layers x 512, batch 1, 3 latent steps x 1024 tokens, vocabulary 64,000. Ours takes the head and the cross-entropy
only at masked positions, in chunks, and attention by a fused kernel; the baseline computes float32 logits of all
positions of all three steps, as the released code does, and writes its attention scores out, in float32 and with AdamW
whatever ours does. `--fused` leaves the baseline the fused kernel. `--checkpoint`, `--dtype` and `--optimizer` are the
trainer's options. Time is the median of the steps after the first; memory is the peak of a process of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import in_fresh_process, parser, report
from torch import Tensor

from hwm.data.clips import fake_batch
from hwm.models.masked_hwm import MaskedHWM
from hwm.recipes import find_recipe
from hwm.train.optim import optimizers
from hwm.train.progress import peak_memory
from hwm.train.trainer import recompute
from hwm.types import Batch


def loss_with_full_logits(model: MaskedHWM, batch: Batch) -> Tensor:
    """The same objective, with logits of every position of every step."""
    ids_BTS = batch.latents.flatten(2)
    past_BPS, shown_BHS, masked_BHS = model.corrupt_and_mask(ids_BTS)
    window = model.observe(past_BPS, batch.actions, batch.embodiment, shown_BHS.shape[1])
    hidden = model.look(window, shown_BHS, masked_BHS)
    # the released model also runs its head over the past steps, whose logits nobody reads
    everything = torch.cat([torch.zeros_like(hidden).expand(-1, past_BPS.shape[1], -1, -1), hidden], 1)
    logits = model.head(everything).float()[:, past_BPS.shape[1] :]
    nll = F.cross_entropy(logits.flatten(0, 2), model.split(ids_BTS)[1].flatten(), reduction="none")
    return (nll * masked_BHS.flatten()).sum() / masked_BHS.sum()


def scores_written_out(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, scale: float | None = None) -> Tensor:
    """Attention as its formula says it."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1) @ v


def measure(
    full_logits: bool,
    repeats: int,
    threads: int,
    dtype: str,
    quick: bool,
    fused: bool,
    checkpoint: bool,
    optimizer: str,
) -> dict[str, float]:
    """Median seconds of a step, and peak bytes."""
    if not fused:
        F.scaled_dot_product_attention = scores_written_out
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = find_recipe("masked_hwm_base")()
    assert recipe.data.expects is not None
    torch.manual_seed(0)
    if quick:
        recipe = recipe.but(model=dict(dim=64, depth=2, heads=2))
    model = recipe.model.build(recipe.data.expects).to(device)
    if checkpoint:
        recompute(model)
    made = optimizers(model, optimizer, 1e-5, 0.01, (0.9, 0.95))
    batch = fake_batch(recipe.data.expects, 1, 3).to(device)
    seconds = []
    for i in range(repeats + 1):
        torch.manual_seed(i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_with_full_logits(model, batch) if full_logits else model(batch)[0]
        loss.backward()
        for each in made:
            each.step()
            each.zero_grad(set_to_none=True)
        value = float(loss)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "bytes": peak_memory(device), "loss": value}


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of ours")
    p.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw", help="of ours")
    p.add_argument("--checkpoint", action="store_true", help="ours computes activations again")
    p.add_argument("--fused", action="store_true", help="the baseline has the fused attention too")
    p.add_argument("--part", choices=["ours", "full"], help=argparse_hidden)
    a = p.parse_args()
    if a.part:
        ours = a.part == "ours"
        found = measure(not ours, a.repeats, a.threads, a.dtype, a.quick, ours or a.fused, a.checkpoint, a.optimizer)
        print(json.dumps(found))
        return
    common = ["--repeats", str(a.repeats), "--threads", str(a.threads)] + ["--quick"] * a.quick
    options = ["--dtype", a.dtype, "--optimizer", a.optimizer] + ["--checkpoint"] * a.checkpoint
    here = str(Path(__file__))
    ours = in_fresh_process(here, "--part", "ours", *common, *options)
    full = in_fresh_process(here, "--part", "full", *common, *(["--fused"] * a.fused))
    report(
        a.json,
        ours=ours["seconds"],
        baseline=full["seconds"],
        unit="seconds a training step",
        memory_ours_gib=ours["bytes"] / 2**30,
        memory_baseline_gib=full["bytes"] / 2**30,
        memory_ratio=full["bytes"] / ours["bytes"],
        loss_ours=ours["loss"],
        loss_baseline=full["loss"],
        dtype=a.dtype,
        optimizer=a.optimizer,
        checkpoint=a.checkpoint,
    )


argparse_hidden = "measure one part and print its JSON; used by this script itself"

if __name__ == "__main__":
    sys.exit(main())
