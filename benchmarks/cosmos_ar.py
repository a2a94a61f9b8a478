"""Tokens a second of an autoregressive model that keeps keys and values, beside one that computes them again.

Ours is one more token after 1,024 tokens and after 3,072 (one and three latents of 32 x 32 of 1X v2.0), with keys and
values in place. The baseline computes all tokens again for it, as a model without a cache does; in both the head reads
the last one alone, and both pick the same token. `floor` is the speed at which the machine reads what one token must
read, its weights (but for the table of the embedding) and the keys and values before it, if it reads as fast as it
copies 256 MiB: nothing is faster at batch 1. All are medians, the two taken in turns; with one thread on a CPU of
processor time, which other work on the machine lengthens less.

The model has 8 blocks x 512 over 64,000 ids, in float32, with random weights.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import parser, report
from torch import Tensor

from hwm.models.cosmos_ar import CosmosAR, Decoder
from hwm.types import DataSpec, LatentSpec


def make(quick: bool, device: torch.device) -> CosmosAR:
    """The model, with random weights."""
    torch.manual_seed(0)
    side, vocab = (4, 60) if quick else (32, 64_000)
    spec = DataSpec(LatentSpec((side, side), vocab, stride=8), {})
    sizes: dict[str, Any] = dict(dim=32, depth=2, mlp_dim=64, heads=4, kv_heads=2, head_dim=8)
    if not quick:
        sizes = dict(dim=512, depth=8, mlp_dim=1536, heads=8, kv_heads=2, head_dim=64)
    return CosmosAR.Config(past=3, hop=1, **sizes).build(spec).eval().to(device)


def copy_speed(quick: bool, device: torch.device) -> float:
    """Bytes read and written a second when a large tensor is copied."""
    size = 2**20 if quick else 2**28
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / statistics.median(seconds(lambda: target.copy_(source), 5, device))


def clock(device: torch.device) -> float:
    """Seconds: of the processor where one thread does all the work, else of the wall."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


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
    """Median seconds a token after the context `ids_BL`: with what is kept, and with all computed again."""
    grid, context, device = model.grid(4), ids_BL.shape[1], ids_BL.device
    decoder = Decoder(model, grid, 1)
    first = model.output(decoder.feed(ids_BL)[:, -1]).argmax(-1)[:, None]

    def next_token(state_BLD: Tensor) -> Tensor:
        return model.output(state_BLD[:, -1]).argmax(-1)

    picked = []

    def cached() -> None:
        decoder.length = context
        for _ in range(count):
            picked.append(next_token(decoder.feed(first)))

    def recomputed() -> None:
        picked.append(next_token(model.hidden(torch.cat([ids_BL, first], 1), grid)))

    kept, again = [], []
    for _ in range(repeats):  # in turns, so that whatever else the machine does falls on both
        picked.clear()
        kept += [t / count for t in seconds(cached, 1, device)]
        one = picked[0]
        again += seconds(recomputed, 1, device)
        if not torch.equal(one, picked[-1]):
            raise SystemExit("the tokens differ: the cache is wrong")
    return {"cached": statistics.median(kept), "recomputed": statistics.median(again)}


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--tokens", type=int, default=16, help="tokens a repeat of the cached model")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make(a.quick, device)
    c, cells = model.config, model.spec.latent.cells
    weights = sum(x.nbytes for x in model.parameters()) - model.tok_embeddings.weight.nbytes
    speed, more = copy_speed(a.quick, device), {}
    for name, context in (("1024", cells), ("3072", 3 * cells)):
        ids_BL = torch.randint(model.vocab, (1, context), device=device)
        found = measure(model, ids_BL, 4 if a.quick else a.tokens, 1 if a.quick else a.repeats)
        read = weights + context * 2 * c.depth * c.kv_heads * c.head_dim * c.torch_dtype.itemsize
        more |= {f"{part}_{name}_tokens_per_s": 1 / value for part, value in found.items()}
        more |= {f"floor_{name}_tokens_per_s": speed / read, f"of_floor_{name}": read / speed / found["cached"]}
    report(
        a.json,
        ours=found["cached"],
        baseline=found["recomputed"],
        unit="seconds a token after 3,072",
        parameters=sum(x.numel() for x in model.parameters()),
        copied_gb_per_s=speed / 1e9,
        threads=torch.get_num_threads(),
        **more,
    )


if __name__ == "__main__":
    sys.exit(main())
