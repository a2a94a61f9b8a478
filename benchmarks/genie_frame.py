"""One frame of GENIE-35M out of 8 frames before it, two decoding steps, with a cache and without.

32 blocks x 256, batch 1, frames of 256 tokens, float32. Ours is a frame of a rollout: the first decoding step runs it
together with the newest frame before it, the second runs it alone, both against the keys and values of the frames
before. The baseline is the same model and the same kernels without a cache, as the released code runs it: each decoding
step runs all 16 frames of the window and the head on all of them. `recomputed` lies between: no cache from frame to
frame, but the 8 frames are run once for both steps. All three give the same tokens. Time is the median of the repeats
after the first; memory is the peak of a process of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from common import in_fresh_process, parser, report
from torch import Tensor

from hwm.data.onex.specs import onex_v1
from hwm.devices import peak_memory
from hwm.models.genie import Genie
from hwm.objectives import maskgit
from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import Batch

PARTS = ("cached", "recomputed", "uncached")
CONTEXT = 8


def make(quick: bool) -> tuple[Genie, Batch]:
    """The model, with random weights of a size that makes its choices clear, and eight frames."""
    torch.manual_seed(0)
    config = Genie.Config(dim=64, depth=2, heads=2) if quick else Genie.Config()
    model = config.build(onex_v1()).eval()
    torch.nn.init.normal_(model.position, std=0.5)
    ids = torch.randint(model.vocab, (1, CONTEXT, *model.spec.latent.grid))
    return model, Batch(ids, torch.zeros(1, CONTEXT + 1, 1, 1), "nobody")


def whole_window(model: Genie, batch: Batch, sampler: MaskGITSampler, generator: torch.Generator) -> Tensor:
    """The next frame, each decoding step a pass over all frames of the window: ids (1, 1, S)."""
    steps, past_BPS = len(model.position), model.tokens(batch.latents)
    later = past_BPS.new_zeros(1, steps - CONTEXT, past_BPS.shape[2])
    ids_BTS = torch.cat([past_BPS, later], 1)
    masked_BTS = torch.cat([torch.zeros_like(past_BPS), torch.ones_like(later)], 1).bool()
    nothing, frame = torch.zeros(1, steps, 1, 1), slice(CONTEXT, CONTEXT + 1)
    for count in sampler.counts(ids_BTS.shape[2]):
        window = model.observe(ids_BTS[:, :0], nothing, batch.embodiment, steps)
        logits = model.head(model.decoding_step(window, ids_BTS, masked_BTS))[:, frame]
        drawn = [maskgit.pick(part, sampler, generator) for part in model.head.draws(logits)]
        found, masked = model.head.join(tuple(ids for ids, _ in drawn)), masked_BTS[:, frame]
        ids_BTS[:, frame] = torch.where(masked, found, ids_BTS[:, frame])
        if count:
            logp = torch.cat([x for _, x in drawn], -1).sum(-1)
            masked_BTS[:, frame] = maskgit.remask(sampler.keep_score(logp, generator), masked, count)
    return ids_BTS[:, frame]


@torch.inference_mode()
def measure(part: str, repeats: int, threads: int, steps: int, quick: bool) -> dict[str, object]:
    """Median seconds of a frame, peak bytes, and the tokens."""
    if threads:
        torch.set_num_threads(threads)
    model, batch = make(quick)
    sampler, cache, seconds = MaskGITSampler(steps=steps, order="random"), None, []
    if part == "cached":  # what predicting the newest of the eight frames has left
        cache = model.predict(batch.window(0, CONTEXT - 1, CONTEXT), sampler=sampler).cache
    for _ in range(repeats + 1):
        generator, start = torch.Generator().manual_seed(0), time.perf_counter()
        if part == "uncached":
            ids = whole_window(model, batch, sampler, generator)
        else:
            ids = model.tokens(model.predict(batch, sampler=sampler, cache=cache, generator=generator).latents)
        seconds.append(time.perf_counter() - start)
    bytes_, tokens = peak_memory(torch.device("cpu")), ids.flatten().tolist()
    return {"seconds": statistics.median(seconds[1:]), "bytes": bytes_, "tokens": tokens}


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--steps", type=int, default=2)
    p.add_argument("--part", choices=PARTS, help="measure one part and print its JSON")
    a = p.parse_args()
    if a.part:
        print(json.dumps(measure(a.part, a.repeats, a.threads, a.steps, a.quick)))
        return
    options = ["--repeats", str(a.repeats), "--threads", str(a.threads), "--steps", str(a.steps)]
    options += ["--quick"] if a.quick else []
    cached, recomputed, uncached = (in_fresh_process(str(Path(__file__)), "--part", x, *options) for x in PARTS)
    if not cached["tokens"] == recomputed["tokens"] == uncached["tokens"]:
        raise SystemExit("the tokens differ: the cache is wrong")
    report(
        a.json,
        ours=cached["seconds"],
        baseline=uncached["seconds"],
        unit="seconds a frame",
        recomputed=recomputed["seconds"],
        memory_ours_mb=cached["bytes"] / 1e6,
        memory_baseline_mb=uncached["bytes"] / 1e6,
        tokens_equal=True,
        steps=a.steps,
    )


if __name__ == "__main__":
    sys.exit(main())
