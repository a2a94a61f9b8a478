"""Tokens a second of an autoregressive model that keeps keys and values, beside one that computes them again.

Ours is one more token after 1,024 tokens and after 3,072 (one and three latents of 32 x 32 of 1X v2.0), with keys and
values in place. The baseline computes all tokens again for it, as a model without a cache does; in both the head reads
the last one alone, and all give the same logits. `floor` is the speed at which the machine reads what one token must
read, its weights (but for the table of the embedding) and the keys and values before it, if it reads as fast as it
copies 256 MiB: nothing is faster at batch 1. `fixed` is the same pass in fixed shapes, which attends over places in
multiples of 512; on a GPU it is captured and replayed, and it is what ours is there. All are medians, taken in turns;
with one thread on a CPU of processor time, which other work on the machine lengthens less.

The model has 8 blocks x 512 over 64,000 ids, in float32, with random weights; on a GPU it is that of 4 billion
parameters in bfloat16, and `of_bandwidth` is the share of the memory's bandwidth by its clock and width ("n/a" without
a GPU).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import clock, parser, report
from torch import Tensor

from hwm.devices import find_device
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.cosmos_decoder import Decoder
from hwm.recipes.specs import onex_v2
from hwm.types import DataSpec, LatentSpec


def make(quick: bool, device: torch.device) -> CosmosAR:
    """The model, with random weights."""
    torch.manual_seed(0)
    if device.type == "cuda" and not quick:
        with device:
            return (
                CosmosAR.Config(past=3, window_stride=1, dtype="bfloat16").build(DataSpec(onex_v2().latent, {})).eval()
            )
    side, vocab = (4, 60) if quick else (32, 64_000)
    spec = DataSpec(LatentSpec((side, side), vocab, stride=8), {})
    sizes: dict[str, Any] = dict(dim=32, depth=2, mlp_dim=64, heads=4, kv_heads=2, head_dim=8)
    if not quick:
        sizes = dict(dim=512, depth=8, mlp_dim=1536, heads=8, kv_heads=2, head_dim=64)
    return CosmosAR.Config(past=3, window_stride=1, **sizes).build(spec).eval().to(device)


def copy_speed(quick: bool, device: torch.device) -> float:
    """Bytes read and written a second when a large tensor is copied."""
    size = 2**20 if quick else 2**28
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / statistics.median(seconds(lambda: target.copy_(source), 5, device))


def seconds(work: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """What each repeat after the first takes."""
    taken = []
    for _ in range(repeats + 1):
        start = clock(device)
        work()
        taken.append(clock(device) - start)
    return taken[1:]


@torch.inference_mode()
def measure(model: CosmosAR, ids_BL: Tensor, count: int, repeats: int) -> dict[str, float]:
    """Median seconds a token after the context `ids_BL`: with what is kept, twice, and with all computed again."""
    grid, context, device = model.grid(4), ids_BL.shape[1], ids_BL.device
    decoders = {name: Decoder(model, grid, 1, fixed=name == "fixed") for name in ("cached", "fixed")}
    first = [d.next_logits(ids_BL).argmax(-1)[:, None] for d in decoders.values()].pop()
    told: dict[str, Tensor] = {}
    taken: dict[str, list[float]] = {"cached": [], "fixed": [], "recomputed": []}

    def go_on(name: str) -> None:
        decoders[name].rewind(context)
        for i in range(count):
            logits_BV = decoders[name].next_logits(first)
            if i == 0:
                told[name] = logits_BV

    def recomputed() -> None:
        told["recomputed"] = model.output(model.hidden(torch.cat([ids_BL, first], 1), grid)[:, -1])

    for _ in range(repeats):  # in turns, so that whatever else the machine does falls on all
        for name in decoders:
            taken[name] += [t / count for t in seconds(partial(go_on, name), 1, device)]
        taken["recomputed"] += seconds(recomputed, 1, device)
    whole, near = told["recomputed"].float(), 0.05 if model.config.dtype == "bfloat16" else 1e-3
    if max((one - whole).abs().max() for one in told.values()) > near * whole.abs().max():
        raise SystemExit("the logits differ: what is kept is wrong")
    return {name: statistics.median(values) for name, values in taken.items()}


def bandwidth(device: torch.device) -> float | None:
    """Bytes a second between a GPU's memory and its processors: two transfers a clock over the whole width."""
    if device.type != "cuda":
        return None
    card = torch.cuda.get_device_properties(device)
    return 2 * card.memory_clock_rate * 1e3 * card.memory_bus_width / 8


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--tokens", type=int, default=16, help="tokens a repeat of the cached model")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    device = find_device()
    model = make(a.quick, device)
    c, cells = model.config, model.spec.latent.cells
    weights = sum(x.nbytes for x in model.parameters()) - model.tok_embeddings.weight.nbytes
    speed = copy_speed(a.quick, device)
    more: dict[str, Any] = {}
    limit = bandwidth(device)
    kept = "fixed" if device.type == "cuda" else "cached"
    for name, context in (("1024", cells), ("3072", 3 * cells)):
        ids_BL = torch.randint(model.vocab, (1, context), device=device)
        found = measure(model, ids_BL, 4 if a.quick else a.tokens, 1 if a.quick else a.repeats)
        read = weights + context * 2 * c.depth * c.kv_heads * c.head_dim * c.torch_dtype.itemsize
        more |= {f"{part}_{name}_tokens_per_s": 1 / value for part, value in found.items()}
        more |= {f"floor_{name}_tokens_per_s": speed / read, f"of_floor_{name}": read / speed / found[kept]}
        more |= {f"of_bandwidth_{name}": "n/a" if limit is None else read / limit / found[kept]}
    report(
        a.json,
        ours=found[kept],
        baseline=found["recomputed"],
        unit="seconds a token after 3,072",
        parameters=sum(x.numel() for x in model.parameters()),
        copied_gb_per_s=speed / 1e9,
        bandwidth_gb_per_s="n/a" if limit is None else limit / 1e9,
        threads=torch.get_num_threads(),
        **more,
    )


if __name__ == "__main__":
    sys.exit(main())
