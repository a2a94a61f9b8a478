"""Which model predicts which clips, and how: what evaluating, generating and their kin have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hwm.computing import Computing
from hwm.errors import HwmError

if TYPE_CHECKING:
    from hwm.data.clips import Clips
    from hwm.data.store import Header, Store
    from hwm.devices import Runtime
    from hwm.evaluate.metrics import Metric
    from hwm.evaluate.results import Further, Results
    from hwm.models.base import WorldModel
    from hwm.types import Tokenizer

SHIPPED = "masked_hwm_mini"


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(Computing):
    """Which model predicts which clips, and how.

    Attributes:
        checkpoint: a shipped model, a checkpoint folder or a run; without one the shipped model.
        model: the same by name.
        store: an encoded store, best with video, or a folder of 1X's.
        tokenizer: whose latents the store holds; by default the one that the store names.
        clips: how many clips, spread evenly over the store.
        prompt: context frames (latent steps) that predictions start from; by default all that the model looks back on.
        horizon: steps to predict.
        stride: distance between the steps of a clip (15 for 1X v1.1, which has 30 a second).
        rate: in its place, the longest that leaves so many steps a second, as `--data.rate` of training.
        split: of a held-out store, the part that training does not see (`test`: the second episode, the fourth and so
            on), that which its validation sees (`validation`), or all.
        filter_overlaps: choose among clips of which none shares a step with another, as 1X's evaluation does.
        scenario: autoregressive (the model sees its own predictions), temporally_teacher_forced (it sees the true
            steps before) or fully_teacher_forced (each token sees the true tokens before it; not for masked models).
        swaps: also predict under wrong actions, which takes three further predictions, and more clips than one.
        draws: predictions whose mean is judged and shown: the mean of samples scores higher than any of them.
        sampler: changes to the model's sampler as NAME=VALUE, such as steps=4 temperature=0.9 pick=sample.
        int8: keep the weights of linear layers as 8-bit integers (needs torchao).
        text: a file with an encoded text, for models that read one.
        batch_size: clips at once.
        seed: of action swaps and sampling.
    """

    checkpoint: tyro.conf.Positional[str | None] = None
    model: str | None = None
    store: Annotated[str, tyro.conf.arg(aliases=("--data",))] = "mini_heldout"
    tokenizer: str | None = None
    clips: int = 96
    prompt: Annotated[int | None, tyro.conf.arg(aliases=("--context", "--context-steps"))] = None
    horizon: int = 8
    stride: int = 1
    rate: float = 0.0
    split: Literal["test", "validation", "all"] = "test"
    filter_overlaps: bool = False
    scenario: tuple[Literal["autoregressive", "temporally_teacher_forced", "fully_teacher_forced"], ...] = (
        "autoregressive",
    )
    swaps: bool = True
    draws: int = 1
    sampler: tuple[str, ...] = ()
    int8: bool = False
    text: Path | None = None
    batch_size: int = 16
    seed: int = 0

    @property
    def weights(self) -> str:
        """The model that was named, in one way or the other."""
        if self.checkpoint and self.model:
            raise HwmError(f"name one model: {self.checkpoint} or --model {self.model}")
        return self.checkpoint or self.model or SHIPPED

    def windows(self, store: Store, prompt: int) -> Clips:
        """The clips to choose from."""
        from hwm.data.clips import Clips
        from hwm.data.mixture import stride_of

        stride = stride_of(store, self.stride, self.rate)
        return Clips(store, prompt + self.horizon, stride=stride, filter_overlaps=self.filter_overlaps, part=self.split)

    def model_for(self, header: Header, runtime: Runtime) -> WorldModel:
        """The model that is named, as wanted, for a store's data."""
        from hwm.loading import load

        return load(self.weights, runtime.device, int8=self.int8, text=self.text)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What the options of an evaluation name.

    Attributes:
        prompt, sampler: context frames (latent steps), and how the model samples.
        metrics: of pictures, besides the usual ones.
        progress: show how far it is.
    """

    model: WorldModel
    tokenizer: Tokenizer
    store: Store
    runtime: Runtime
    prompt: int
    sampler: Any
    metrics: Mapping[str, Metric]
    progress: bool


def run_evaluation(
    o: RolloutOptions,
    runtime: Runtime,
    command: str,
    examples: int = 4,
    progress: bool = True,
    extra_metrics: Mapping[str, Metric] | None = None,
    features: Any = None,
    further: Mapping[str, Callable[[Loaded], Further | None]] | None = None,
) -> Results:
    """Load what the options name, and evaluate it there.

    Args:
        further: what else to measure, by the key of its figures; what gives None is left out.
    """
    from hwm.data.readers import open_store
    from hwm.evaluate.evaluate import EvaluateConfig
    from hwm.evaluate.evaluate import evaluate as run
    from hwm.evaluate.swaps import SWAPS
    from hwm.loading import load_tokenizer

    store = open_store(o.store)
    model = o.model_for(store.header, runtime)
    tokenizer = load_tokenizer(o.tokenizer or store.header.tokenizer, runtime.device, views=store.header.views)
    prompt = o.prompt or model.config.past
    clips = o.windows(store, prompt)
    loaded = Loaded(
        model=model, tokenizer=tokenizer, store=store, runtime=runtime, prompt=prompt,
        sampler=model.sampler_with(o.sampler), metrics=extra_metrics or {}, progress=progress,
    )  # fmt: skip
    how = EvaluateConfig(
        clips=o.clips, prompt=prompt, horizon=o.horizon, scenarios=o.scenario,
        swaps=tuple(SWAPS) if o.swaps and o.clips > 1 else (), batch_size=o.batch_size, seed=o.seed,
        sampler=loaded.sampler, metrics=loaded.metrics, features=features or {}, draws=o.draws,
        checkpoint=o.weights, command=command,
        progress=progress, examples=examples, dtype=o.dtype,
    )  # fmt: skip
    made = {name: measure(loaded) for name, measure in (further or {}).items()}
    results = run(model, tokenizer, clips, how)
    results.further = {name: found for name, found in made.items() if found is not None}
    return results
