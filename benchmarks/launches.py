"""What a GPU is asked to do, counted on one that is not there: kernels, casts, copies and waits of a training step
and of a predicted frame.

A step is forward, backward, clipping and the recipe's optimizer, the second of two; a frame is a step of a rollout of
one clip, the first prediction apart, with a cache and without. The baseline is the straightforward model of
`train_step.py`. All of a recipe's blocks are run, narrow ones on a small grid: kernels are counted, and not what is in
them. Nothing is compiled, so what `torch.compile` would join is counted one by one; a captured pass that is replayed is
one. Counts of one version can be compared with those of another: `--top N` says which operations they are, and which
lines ask for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import parser, report
from train_step import PLAIN, STEPS, own_loss, savings_taken_out, volumes

from hwm.config import Trainable
from hwm.data.clips import fake_batch
from hwm.devices import FORMATS, Runtime
from hwm.models.base import WorldModel
from hwm.recipes import find_recipe
from hwm.train.halves import Halves
from hwm.train.optim import MovingAverage, gradient_norm, optimizers
from hwm.types import Batch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.pretend.device import pretending
from tests.pretend.tensors import Card

KINDS = ("step", PLAIN, "frame", "frame without a cache")
DEPTHS = ("depth", "head_depth")
CAST = "aten._to_copy.default"


def build(name: str, quick: bool, card: Card) -> tuple[Trainable, Batch]:
    """A narrow model of all the recipe's blocks, and a random clip."""
    step, recipe = STEPS[name], find_recipe(name)()
    spec = recipe.data.expects
    assert spec is not None
    side = 32 if step.baseline is volumes else 8
    spec = replace(spec, latent=replace(spec.latent, grid=(side, side)))
    deep = {key: getattr(recipe.model, key) for key in DEPTHS if hasattr(recipe.model, key) and not quick}
    torch.manual_seed(0)
    model = recipe.but(model=step.changes | step.quick | deep).model.build(spec)
    model.to(card.device)
    return model, fake_batch(spec, 1, recipe.data.steps).to(card.device)


def counted(card: Card, work: Callable[[], Any]) -> dict[str, float]:
    """Counts of the second run of some work."""
    work()
    card.forget()
    work()
    totals = {"kernels": card.kernels, "copies": card.uploads, "waits": card.waits}
    found = {key: float(sum(counter.values())) for key, counter in totals.items()}
    return {**found, "casts": float(card.kernels[CAST])}


def training(card: Card, name: str, plain: bool, a: Any) -> dict[str, float]:
    model, batch = build(name, a.quick, card)
    train, runtime = find_recipe(name)().train, Runtime(card.device, a.dtype)
    loss_of, kind = (STEPS[name].baseline, "adamw") if plain else (own_loss, train.optimizer)
    made = optimizers(model, kind, 1e-5, 0.01, (0.9, 0.95), runtime.dtype)
    average = MovingAverage(model, train.ema) if train.ema else None
    halves = Halves(model, runtime, "none", processes=2 if plain else 1)  # among several processes there are none

    def step() -> None:
        with halves.used():
            with runtime.autocast():
                loss = loss_of(model, batch)
            loss.backward()
            halves.collect()
        gradient_norm(model, 1.0)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
        if average:
            average.update(model, 1)

    with savings_taken_out() if plain else nullcontext():
        return counted(card, step)


def predicting(card: Card, name: str, use_cache: bool, a: Any) -> dict[str, float] | None:
    """None for a tokenizer."""
    model, _ = build(name, a.quick, card)
    if not isinstance(model, WorldModel):
        return None
    c = model.config
    span = max(c.horizon, model.group)  # steps of a prediction
    prompt = max(model.group, (c.past - 2 * span) // model.group * model.group)

    def roll(predictions: int) -> Callable[[], None]:
        length = prompt + predictions * span
        clip = fake_batch(model.spec, 1, length).to(card.device).window(0, prompt, length)

        def run() -> None:
            with Runtime(card.device, a.dtype).autocast():
                model.rollout(clip, use_cache=use_cache)

        return run

    model.eval()
    one, three = counted(card, roll(1)), counted(card, roll(3))
    return {key: (three[key] - one[key]) / (2 * span) for key in one}


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("name", nargs="?", choices=STEPS, default="masked_hwm_base", help="a recipe")
    p.add_argument("--kind", choices=("cuda", "mps"), default="cuda")
    p.add_argument("--dtype", choices=FORMATS, default="bfloat16")
    p.add_argument("--top", type=int, default=0, help="also print so many operations and lines of each count")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    found: dict[str, Any] = {}
    for kind in KINDS:
        with pretending(a.kind) as card:
            card.follow = a.top > 0
            training_step = kind in ("step", PLAIN)
            measure = training if training_step else predicting
            found[kind] = measure(card, a.name, kind == (PLAIN if training_step else "frame"), a)
            for (operation, lines), times in card.sites.most_common(a.top):
                print(f"{kind:>28}  {times:6}  {operation}  {lines}", file=sys.stderr)
            for lines, times in card.waits.most_common(a.top):
                print(f"{kind:>28}  {times:6}  wait  {lines}", file=sys.stderr)
    shown = {kind: counts if a.json or not counts else _words(counts) for kind, counts in found.items()}
    report(
        a.json, ours=found["step"]["kernels"], baseline=found[PLAIN]["kernels"], unit="kernels a training step",
        recipe=a.name, device=f"{a.kind}, not there", dtype=a.dtype, **shown,
    )  # fmt: skip


def _words(counts: dict[str, float]) -> str:
    return ", ".join(f"{value:,.0f} {key}" for key, value in counts.items())


if __name__ == "__main__":
    main()
