"""`hwm evaluate cosmos-ar CHECKPOINT`: steps of a clip from those before, token by token: given the truth, and free.

What was done with Cosmos-Predict1 on 1X v2.0: the third map of 32 x 32 ids of each clip of 17 frames, from the first
two.

Shape suffixes: N clips, B batch, T steps to predict.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro

from hwm.commands.rollouts import RolloutOptions, run_evaluation
from hwm.errors import HwmError

if TYPE_CHECKING:
    import torch

    from hwm.data.clips import Clips
    from hwm.data.store import Header
    from hwm.devices import Runtime
    from hwm.evaluate.results import Results
    from hwm.evaluate.uncertainty import Estimate
    from hwm.models.base import WorldModel
    from hwm.types import DataSpec

Means: TypeAlias = "dict[str, Estimate]"
"""Figure -> its mean over clips, with its standard error."""

GIVEN = {
    "fully_teacher_forced": "each token given all true tokens before it",
    "temporally_teacher_forced": "each token given the true steps before it, and the model's own tokens of its step",
    "autoregressive": "each token given the model's own before it",
}
"""What a figure of a scenario is the figure of."""


@dataclass(frozen=True, kw_only=True)
class NextTokenOptions(RolloutOptions):
    """Measure an autoregressive model as published for Cosmos: fully teacher-forced, and generating freely.

    Attributes:
        checkpoint: a checkpoint folder, a run, or a published folder or file (model.pt, safetensors).
        only_eval: figures of tokens alone: nothing is decoded, no tokenizer is needed, nothing is written.
        out: folder for an mp4 and a GIF of each shown clip (context and what was generated from it, beside the truth),
            and figures.json.
        examples: clips to show.
        json: print one JSON object instead.
        prompt: context frames (latent steps) that predictions start from.
        clips: how many clips, spread evenly over all shards; 0 takes every one.
        split: by default all, of which the published figures are.
    """

    prompt: Annotated[int, tyro.conf.arg(aliases=("--context", "--context-steps"))] = 2  # type: ignore[assignment]
    horizon: int = 1
    clips: int = 96
    batch_size: int = 4
    split: Literal["test", "validation", "all"] = "all"
    scenario: tuple[Literal["autoregressive", "temporally_teacher_forced", "fully_teacher_forced"], ...] = (
        "autoregressive",
        "fully_teacher_forced",
    )
    swaps: bool = False
    only_eval: bool = False
    out: Path = Path("generated")
    examples: int = 8
    json: bool = False

    def model_for(self, header: Header, runtime: Runtime) -> WorldModel:
        """The model for the grid of the data: none of its weights depends on it."""
        from hwm.loading import as_wanted, find_model, load
        from hwm.models.cosmos_ar import CosmosAR
        from hwm.train.checkpoint import is_checkpoint
        from hwm.types import DataSpec

        if not (self.checkpoint or self.model):
            raise HwmError("name a checkpoint: hwm evaluate cosmos-ar CHECKPOINT --data val_v2.0")
        path = find_model(self.weights)
        if is_checkpoint(path):
            model = load(path)
        else:
            from hwm.convert.cosmos_ar import read

            model = read(path)
        if not isinstance(model, CosmosAR):
            raise HwmError(f"{self.weights} is a {model.name!r}, not a {CosmosAR.name!r}; leave out cosmos-ar")
        if header.latent is None:
            raise HwmError(f"{self.store} holds no latents: encode it first")
        before, spec = model.spec, DataSpec(header.latent, {}, header.tokenizer, header.fps)
        model.fit(spec)
        if (before.latent.grid, before.tokenizer) != (spec.latent.grid, spec.tokenizer) and before.tokenizer:
            print(f"{self.weights} was made for {shown(before)}, and is shown {shown(spec)}", file=sys.stderr)
        return as_wanted(model, runtime.device, int8=self.int8, text=self.text)


def shown(spec: DataSpec) -> str:
    """Tokenizer and grid."""
    return f"{' x '.join(map(str, spec.latent.grid))} ids of {spec.tokenizer or 'a tokenizer that is not recorded'}"


def evaluate_next_token(args: list[str]) -> None:
    """`hwm evaluate cosmos-ar CHECKPOINT [--data S] [--context N] [--only-eval] [--out DIR]`."""
    o = tyro.cli(NextTokenOptions, args=args, prog="hwm evaluate cosmos-ar")
    from hwm.data.readers import open_store

    command = "hwm evaluate cosmos-ar " + " ".join(args)
    runtime = o.start()
    o = replace(o, clips=o.clips or open_store(o.store).steps)
    if o.only_eval:
        about, means = tokens_alone(o, runtime)
        figures = {**about, "command": command, "by_scenario": {name: plain(found) for name, found in means.items()}}
    else:
        results = run_evaluation(o, runtime, command, o.examples, progress=not o.json)
        about, means, figures = {**results.json(), "tokens": tokens_of(o)}, means_of(results), results.json()
    print(json.dumps(figures, indent=1) if o.json else "\n".join(lines(about, means)))
    if not o.only_eval:
        for path in pictures(o.out, results):
            if not o.json:
                print(path)


def pictures(folder: Path, results: Results) -> list[Path]:
    from hwm.evaluate.show import save_pairs

    return [*save_pairs(folder, results), results.save(folder / "figures.json")]


def tokens_of(o: NextTokenOptions) -> int:
    """How many tokens of a clip are predicted."""
    from hwm.data.readers import open_store

    latent = open_store(o.store).header.latent
    return 0 if latent is None else latent.cells * o.horizon


def means_of(results: Results) -> dict[str, Means]:
    """Of an evaluation that also decoded."""
    names = ("ce", "accuracy", "accuracy_copy", "psnr", "psnr_copy_reconstruction", "psnr_copy")
    return {
        scenario: {name: mean for name in names if (mean := results.overall(name, scenario=scenario)) is not None}
        for scenario in results.figures
    }


def tokens_alone(o: NextTokenOptions, runtime: Runtime) -> tuple[dict[str, Any], dict[str, Means]]:
    """Load what the options name, and score the tokens of its predictions there."""
    from hwm.config import to_json
    from hwm.data.readers import open_store
    from hwm.devices import name_of, runtime_of
    from hwm.evaluate.camera import episode_of
    from hwm.evaluate.uncertainty import estimate

    store = open_store(o.store)
    clips = o.windows(store, o.prompt)
    model = o.model_for(store.header, runtime)
    runtime = runtime_of(model, o.dtype)
    sampler = model.sampler_with(o.sampler)
    indices = clips.spread(o.clips)
    scores = score_tokens(model, clips, indices, o.prompt, o.scenario, sampler, o.batch_size, o.seed, runtime)
    about = {
        "model": model.name, "parameters": sum(p.numel() for p in model.parameters()), "checkpoint": o.weights,
        "store": clips.store.path.name, "split": o.split, "prompt": o.prompt, "horizon": o.horizon,
        "clips": len(indices),
        "sampler": to_json(sampler), "seed": o.seed, "batch_size": min(o.batch_size, len(indices)),
        "device": name_of(runtime.device), "dtype": runtime.format,
        "tokens": model.spec.latent.cells * o.horizon,
    }  # fmt: skip
    episodes = [episode_of(clips, int(i)).id for i in indices]
    about["episodes"] = len(set(episodes))
    return about, {name: {k: estimate(v, episodes) for k, v in found.items()} for name, found in scores.items()}


def score_tokens(
    model: WorldModel,
    clips: Clips,
    indices: np.ndarray,
    prompt: int,
    scenarios: Sequence[str],
    sampler: Any,
    batch_size: int,
    seed: int,
    runtime: Runtime,
) -> dict[str, dict[str, np.ndarray]]:
    """Cross-entropy and accuracy of each clip (N,), by scenario, with the random numbers of `evaluate`."""
    import torch

    from hwm.evaluate import metrics
    from hwm.evaluate.scenarios import SCENARIOS
    from hwm.progress import track

    where, parts = runtime.device, {name: list[dict[str, np.ndarray]]() for name in scenarios}
    firsts = range(0, len(indices), batch_size)
    with torch.inference_mode():
        for first in track(firsts, len(firsts), "evaluate", batch_size, "clips") if sys.stderr.isatty() else firsts:
            batch = clips.batch(indices[first : first + batch_size]).to(where)
            target_BTHW = batch.latents[:, prompt:]
            copied_BT = metrics.accuracy(batch.latents[:, prompt - 1 : prompt].expand_as(target_BTHW), target_BTHW)
            for name in scenarios:
                generator = torch.Generator(where).manual_seed(seed * 1_000_003 + first)
                with runtime.autocast():
                    made = SCENARIOS[name](model, batch, prompt, sampler=sampler, logits=True, generator=generator)
                found = {
                    "ce": metrics.cross_entropy(made, target_BTHW),
                    "accuracy": metrics.accuracy(made.latents, target_BTHW),
                    "accuracy_copy": copied_BT,
                }
                parts[name].append({k: by_clip(v) for k, v in found.items() if v is not None})
    return {name: {k: np.concatenate([p[k] for p in found]) for k in found[0]} for name, found in parts.items()}


def by_clip(values_BT: torch.Tensor) -> np.ndarray:
    return np.asarray(values_BT.cpu().double().mean(1).numpy())


def plain(means: Means) -> dict[str, float | None]:
    """As `Results.json` gives figures."""
    out: dict[str, float | None] = {}
    for name, found in means.items():
        out |= {name: found.mean, f"{name}_stderr": found.known_error}
    return out


def lines(about: Mapping[str, Any], means: Mapping[str, Means]) -> list[str]:
    """What is printed: of every figure, which scenario it is of."""
    a, s = about, about["sampler"] or {}
    out = [
        f"{a['model']}, {a['parameters']:,} parameters: {a['clips']} clips of {a['store']}, {a['tokens']:,} tokens "
        f"each, from {a['prompt']} steps before, on {a['device']} in {a['dtype']}"
    ]
    drawn = ", ".join(f"{k.replace('_', '-')} {s[k]}" for k in ("temperature", "top_p", "top_k") if s.get(k))
    for scenario, found in means.items():
        how = "" if scenario == "fully_teacher_forced" else f" ({drawn or 'the likeliest token'})"
        out.append(f"{scenario.replace('_', ' ')}{how}: {GIVEN[scenario]}")
        for name, label, unit, digits, rivals in (
            ("ce", "cross-entropy", " nats a token", 4, {}),
            ("accuracy", "accuracy", "", 4, {"accuracy_copy": "copying the step before"}),
            ("psnr", "PSNR", " dB", 2, {"psnr_copy_reconstruction": "the last step repeated"}),
        ):
            if name in found:
                mean = found[name]
                error = "n/a (one episode)" if mean.known_error is None else f"{mean.error:.{digits}f}"
                beside = "".join(f"; {what} {found[n].mean:.{digits}f}" for n, what in rivals.items() if n in found)
                out.append(f"  {label} {mean.mean:.{digits}f} +- {error}{unit}{beside}")
    return out
