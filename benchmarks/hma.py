"""A frame of HMA at width 256, by MaskGIT and by MAR: with what does not change kept, and with nothing kept.

32 blocks x 256 with random weights, batch 1, 12 frames of 256 cells (or patches) and 64 action tokens, two steps,
float32. `cached` is a frame of a rollout out of 11 before it: keys and values of those frames are there, but for the
newest, which is run too. Every sixth frame the window moves, and 6 frames are run anew; `ours` counts that in. The
baseline is the same model and the same kernels as the released code runs them: each step runs all 12 frames, and each
diffusion step of the head embeds the step and the condition anew for each patch. Both draw the same frame. Figures
without a prefix are MaskGIT's. Time is the median of the repeats.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import in_fresh_process, parser, report
from torch import Tensor

from hwm.models.hma_continuous import HMAContinuous, MARSampler
from hwm.models.hma_discrete import HMADiscrete
from hwm.nn.causal import CausalCache, CausalWindow
from hwm.objectives import diffusion, maskgit
from hwm.objectives.draws import uniform_like
from hwm.objectives.maskgit import MaskGITSampler, masked_counts, remask
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec

PAST, HOP = 11, 6
ROBOT = {"robot": ActionSpec(1, ("x", "y"), (0.0, 0.0), (1.0, 1.0))}


def discrete(quick: bool) -> tuple[Any, Batch]:
    side = 4 if quick else 16
    config = HMADiscrete.Config(sampler=MaskGITSampler(steps=2, order="random"))
    spec = DataSpec(LatentSpec((side, side), 2**18, levels=(512, 512)), ROBOT)
    small = replace(config, dim=64, depth=2, heads=2, action_tokens=4)
    model = (small if quick else config).build(spec).eval()
    torch.nn.init.normal_(model.trunk.position, std=0.5)  # so that choices are clear
    ids = torch.randint(model.vocab, (1, PAST, side, side))
    return model, Batch(ids, torch.randn(1, PAST + 1, 1, 2), "robot")


def continuous(quick: bool) -> tuple[Any, Batch]:
    side = 8 if quick else 32
    config = HMAContinuous.Config(sampler=MARSampler(steps=2, diffusion_steps=4 if quick else 100))
    small = replace(config, dim=64, depth=2, heads=2, action_tokens=4, head_depth=1, head_width=64)
    model = (small if quick else config).build(DataSpec(LatentSpec((side, side), channels=4), ROBOT)).eval()
    return model, Batch(torch.randn(1, PAST, 4, side, side), torch.randn(1, PAST + 1, 1, 2), "robot")


def nothing_kept(model: Any, batch: Batch) -> CausalWindow:
    return CausalWindow(CausalCache(), model.condition(batch.actions, "robot", batch.actions.shape[1]), "robot")


def whole_windows(model: HMADiscrete, batch: Batch, generator: torch.Generator) -> Tensor:
    """The next frame, each decoding step a pass over all frames of the window: ids (1, 1, S)."""
    past_BPS, sampler = model.tokens(batch.latents), model.config.sampler
    ids_BTS = torch.cat([past_BPS, torch.zeros_like(past_BPS[:, :1])], 1)
    masked_BTS = torch.zeros_like(ids_BTS, dtype=torch.bool)
    masked_BTS[:, -1] = True
    for count in sampler.counts(ids_BTS.shape[2]):
        states, _ = model.run(nothing_kept(model, batch), ids_BTS, masked_BTS)
        drawn = [
            maskgit.pick(part, sampler, generator) for part in model.head.draws(model.head(model.out(states[-1:])))
        ]
        found = model.head.join(tuple(ids for ids, _ in drawn))
        ids_BTS[:, -1:] = torch.where(masked_BTS[:, -1:], found, ids_BTS[:, -1:])
        if count:
            logp = torch.cat([x for _, x in drawn], -1).sum(-1)
            masked_BTS[:, -1:] = remask(sampler.keep_score(logp, generator), masked_BTS[:, -1:], count)
    return ids_BTS[:, -1:]


def whole_windows_and_head(model: HMAContinuous, batch: Batch, generator: torch.Generator) -> Tensor:
    """The next frame's patches (1, 1, S, E); of what the head is asked, nothing is kept either."""
    past_BPSE, sampler = model.tokens(batch.latents), model.config.sampler
    x_BTSE = torch.cat([past_BPSE, torch.zeros_like(past_BPSE[:, :1])], 1)
    masked_B1S, left = torch.ones_like(x_BTSE[:, -1:, :, 0], dtype=torch.bool), x_BTSE.shape[2]
    for count in masked_counts(sampler.steps, left):
        shown = torch.cat([x_BTSE[:, :-1], model.hidden(x_BTSE[:, -1:], masked_B1S[..., None])], 1)
        condition = model.run(nothing_kept(model, batch), shown)[0][:, -1:]
        score = uniform_like(x_BTSE[:, -1:, :, 0], generator) if count else x_BTSE[:, -1:, :, 0]
        still = remask(score, masked_B1S, count)
        where = (masked_B1S & ~still).int().argsort(dim=-1, descending=True, stable=True)[..., : left - count]
        chosen = model.taken(condition, where)
        noise = partial(sampler.normal, (*chosen.shape[:-1], x_BTSE.shape[-1]), chosen.device, generator)

        def denoiser(x_D: Tensor, step: Tensor, chosen: Tensor = chosen) -> Tensor:
            return model.head(x_D, step.expand(x_D.shape[:-1]), chosen)

        new = diffusion.draw(
            noise(), noise, denoiser, steps=sampler.diffusion_steps, temperature=1.0, clamp=sampler.clamp
        )
        x_BTSE[:, -1:] = x_BTSE[:, -1:].scatter(2, where[..., None].expand_as(new), new)
        masked_B1S, left = still, count
    return x_BTSE[:, -1:]


KINDS: dict[str, tuple[Callable[[bool], tuple[Any, Batch]], Callable[..., Tensor]]] = {
    "maskgit": (discrete, whole_windows),
    "mar": (continuous, whole_windows_and_head),
}


@torch.inference_mode()
def measure(kind: str, repeats: int, threads: int, quick: bool) -> dict[str, float]:
    """Median seconds of a frame in each way; the ways take turns, so that whatever else runs disturbs all alike."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    make, uncached = KINDS[kind]
    model, batch = make(quick)
    cache = model.predict(batch.window(0, PAST - 1, PAST), generator=torch.Generator().manual_seed(1)).cache

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    ways: dict[str, Callable[[], Tensor]] = {
        "cached": lambda: model.tokens(model.predict(batch, cache=cache, generator=seeded()).latents),
        "moved": lambda: model.tokens(model.predict(batch.window(0, HOP, HOP + 1), generator=seeded()).latents),
        "uncached": lambda: uncached(model, batch, seeded()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    made = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            made[name] = way()
            seconds[name].append(time.perf_counter() - start)
    apart = float((made["cached"] - made["uncached"]).abs().max())
    if apart > (1e-3 if kind == "mar" else 0):
        raise SystemExit(f"the frames of {kind} differ by up to {apart}: the cache is wrong")
    return {name: statistics.median(values) for name, values in seconds.items()} | {"apart": apart}


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--part", choices=KINDS, help="measure one part and print its JSON")
    a = p.parse_args()
    if a.part:
        print(json.dumps(measure(a.part, a.repeats, a.threads, a.quick)))
        return
    options = ["--repeats", str(a.repeats), "--threads", str(a.threads), *(["--quick"] if a.quick else [])]
    found = {kind: in_fresh_process(str(Path(__file__)), "--part", kind, *options) for kind in KINDS}
    ours = {kind: ((HOP - 1) * f["cached"] + f["moved"]) / HOP for kind, f in found.items()}
    git, mar = found["maskgit"], found["mar"]
    report(
        a.json,
        ours=ours["maskgit"],
        baseline=git["uncached"],
        unit="seconds a frame",
        frames_per_second=1 / ours["maskgit"],
        baseline_frames_per_second=1 / git["uncached"],
        cached=git["cached"],
        moved=git["moved"],
        mar_ours=ours["mar"],
        mar_baseline=mar["uncached"],
        mar_ratio=mar["uncached"] / ours["mar"],
        mar_frames_per_second=1 / ours["mar"],
        mar_baseline_frames_per_second=1 / mar["uncached"],
        mar_cached=mar["cached"],
        mar_moved=mar["moved"],
        mar_largest_difference=mar["apart"],
    )


if __name__ == "__main__":
    sys.exit(main())
