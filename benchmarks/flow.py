"""Flow-HWM: a training step and a full sample of each variant, and what running the context once saves.

At the paper's width, 1152; on a CPU with fewer blocks than the paper's 15 unless told otherwise. A training step is
forward, backward and AdamW over clips of three latent steps of 16 x 16 cells and 17 actions; a sample is Euler's steps
with guidance, both velocities in one pass. Utilisation is the share of the rate at which this machine multiplies
square matrices of that type, measured beside it; of floating-point operations only those are counted that a step
needs, not those that recomputing adds. Time is the median of the repeats after the first; memory is the peak of a
process of its own.

Ours and the baseline are a sample of "split" with `clean_context`: the context through the blocks once a prediction,
and at every step of the solver.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import in_fresh_process, parser, report

from hwm.data.clips import fake_batch
from hwm.devices import find_device, peak_flops, peak_memory, synchronize
from hwm.models.flow import FlowModel
from hwm.models.flow_hwm import VARIANTS, FlowHWM
from hwm.models.flow_hwm_uvit import FlowHWMUViT
from hwm.objectives.flow import FlowSampler
from hwm.recipes import find_recipe
from hwm.train.blocks import recompute
from hwm.train.flops import count_flops
from hwm.types import DataSpec

NAMES = (*VARIANTS, "uvit")
OPTIONS = {"plain": [], "bfloat16": ["--dtype", "bfloat16"], "recompute": ["--recompute"], "compile": ["--compile"]}


def build(name: str, a: Any) -> tuple[FlowModel, DataSpec, torch.device]:
    """A variant with random weights that let everything pass, as trained ones do."""
    if a.threads:
        torch.set_num_threads(a.threads)
    spec = find_recipe("flow_hwm_base")().data.expects
    assert spec is not None
    device = find_device()
    sizes = dict(dim=a.dim, depth=a.depth | 1 if name == "uvit" else a.depth, heads=a.heads)
    unshared = round(a.depth * 4 / 15)  # the paper's first four of fifteen blocks have weights for each stream
    shared = FlowHWM.Config(**sizes, variant=name, unshared_layers=unshared) if name in VARIANTS else None
    kind = shared or FlowHWMUViT.Config(**sizes)
    torch.manual_seed(0)
    with device:
        model: FlowModel = replace(kind, clean_context=a.clean_context).build(spec)
    return model, spec, device


def tokens_of(model: FlowModel, past: int, missing: int) -> int:
    """Tokens of a window, of all four streams."""
    tables = model.tables(past, past + missing, 8, torch.device("cpu"))
    return sum(len(cosine) for cosine, _ in tables.values())


def train_step(name: str, a: Any) -> dict[str, float]:
    """Seconds, tokens a second, utilisation and peak bytes of an update."""
    model, spec, device = build(name, a)
    batch = fake_batch(spec, a.batch, 3).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=a.dtype == "bfloat16")
    with count_flops() as flops, autocast:
        model(batch)[0].backward()
    model.zero_grad(set_to_none=True)
    if a.recompute:
        recompute(model, "full")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    run = torch.compile(model) if a.compile else model
    seconds = []
    for i in range(a.repeats + 1):
        torch.manual_seed(i)
        synchronize(device)
        start = time.perf_counter()
        with autocast:
            loss = run(batch)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    took = statistics.median(seconds[1:])
    return {
        "seconds": took,
        "tokens_per_second": a.batch * tokens_of(model, 2, 1) / took,
        "utilisation": flops.get_total_flops() / took / peak_flops(device, a.dtype),
        "gib": peak_memory(device) / 2**30,
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


def sample(name: str, a: Any) -> dict[str, float]:
    """Seconds, tokens a second over all evaluations of the field, utilisation and peak bytes of a prediction."""
    model, spec, device = build(name, a)
    model.eval()
    with torch.no_grad():
        for p in model.parameters():  # away from gates of zero, so that once and again may be compared
            p.add_(0.02 * torch.randn_like(p))
    if a.again:
        model.settled = False  # type: ignore[assignment]
    batch = fake_batch(spec, a.batch, 2, ahead=1).to(device)
    sampler = FlowSampler(steps=a.steps)
    if a.compile:
        model.velocity = torch.compile(model.velocity)  # type: ignore[method-assign]
    seconds, flops, total = [], count_flops(), 0.0
    for i in range(a.repeats + 2):
        generator = torch.Generator(device).manual_seed(0)
        synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=a.dtype == "bfloat16"):
            if i == 0 and not a.compile:  # counted on the first
                with flops:
                    out = model.predict(batch, sampler=sampler, generator=generator).latents
            else:
                out = model.predict(batch, sampler=sampler, generator=generator).latents
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        total = float(out.float().abs().mean())
    took = statistics.median(seconds[2:])
    return {
        "seconds": took,
        "tokens_per_second": 2 * a.steps * a.batch * tokens_of(model, 2, 1) / took,
        "utilisation": flops.get_total_flops() / took / peak_flops(device, a.dtype),
        "gib": peak_memory(device) / 2**30,
        "mean": total,
    }


PARTS = {"train": train_step, "sample": sample}


def main() -> None:
    gpu = find_device().type == "cuda"
    p = parser(__doc__ or "")
    p.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES))
    p.add_argument("--dim", type=int, default=1152)
    p.add_argument("--depth", type=int, default=15 if gpu else 2, help="blocks; the U-ViT has an odd number of them")
    p.add_argument("--heads", type=int, default=16)
    p.add_argument("--batch", type=int, default=16 if gpu else 2, help="clips")
    p.add_argument("--steps", type=int, default=50 if gpu else 4, help="of Euler's")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of matrix products")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--recompute", action="store_true", help="activation checkpointing")
    p.add_argument("--options", nargs="*", choices=OPTIONS, default=[], help="the step of the first variant with each")
    p.add_argument("--clean-context", action="store_true", help="tell the context the flow time of data")
    p.add_argument("--again", action="store_true", help="run the context at every step of the solver")
    p.add_argument("--part", choices=PARTS, help="measure one part of the first variant and print its JSON")
    a = p.parse_args()
    if a.quick:
        a.dim, a.depth, a.heads, a.batch, a.steps, a.repeats = 32, 2, 2, 1, 2, 1
        a.variants = a.variants[:1]
    if a.part:
        print(json.dumps(PARTS[a.part](a.variants[0], a)))
        return
    given = [
        f"--{k}={getattr(a, k)}" for k in ("dim", "depth", "heads", "batch", "steps", "repeats", "threads", "dtype")
    ]
    given += [f"--{k}" for k in ("compile", "recompute") if getattr(a, k)]

    def measured(part: str, name: str, *more: str) -> dict[str, Any]:
        return in_fresh_process(str(Path(__file__)), "--part", part, "--variants", name, *given, *more)

    variants = {name: {part: measured(part, name) for part in PARTS} for name in a.variants}
    options = {o: measured("train", a.variants[0], *OPTIONS[o]) for o in a.options}
    once, again = (measured("sample", "split", "--clean-context", *more) for more in ((), ("--again",)))
    if abs(once["mean"] - again["mean"]) > 1e-3 * again["mean"]:
        raise SystemExit(f"the samples differ: {once['mean']} and {again['mean']}")
    sizes = {k: getattr(a, k) for k in ("dim", "depth", "batch", "steps", "dtype", "compile", "recompute")}
    shown: dict[str, Any] = {"variants": variants, "options": options}
    if not a.json:
        rows = [(f"{name} {part}", v) for name, parts in variants.items() for part, v in parts.items()]
        rows += [(f"{a.variants[0]} train, {o}", v) for o, v in options.items()]
        shown = {
            name: f"{v['seconds']:.3f} s, {v['tokens_per_second']:,.0f} tokens/s, {v['utilisation']:.0%} of peak, "
            f"{v['gib']:.2f} GiB"
            for name, v in rows
        }
    report(a.json, ours=once["seconds"], baseline=again["seconds"], unit="seconds a sample", **sizes, **shown)


if __name__ == "__main__":
    sys.exit(main())
