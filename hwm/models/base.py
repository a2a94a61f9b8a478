"""The one interface of every world model: a loss on a batch, and a prediction of the steps a batch is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hwm.config import Config as AnyConfig
from hwm.config import Trainable, from_json, parse_changes, to_json
from hwm.config import replace as changed
from hwm.errors import HwmError
from hwm.models.caches import split, stack
from hwm.types import Batch, DataSpec, Generator, Prediction


@dataclass(frozen=True)
class Way:
    """A way to sample that a family offers to those who play its models.

    Attributes:
        label: what it is called.
        about: what it trades for what, in one sentence.
        sampler: fields of the model's sampler that differ from its config's.
    """

    label: str
    about: str
    sampler: Mapping[str, Any]


class WorldModel(Trainable):
    """Predicts latent steps from the steps before them and the actions that lead to them.

    A family with a public name gives a `Config`, which subclasses this one, `loss` and `predict`; all else that others
    ask of a model is declared here and has an answer.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(AnyConfig):
        """
        Attributes:
            past: most context frames (latent steps) that the model predicts from.
            horizon: steps that one `predict` fills in at once.
            window_stride: how far a rollout moves the window when it is full; 1 keeps it full, more lets a cache live
                on.
        """

        past: int = 2
        horizon: int = 1
        window_stride: int = 1
        renamed: ClassVar[Mapping[str, str]] = {"hop": "window_stride"}

    config: Any
    #: by name, beside the config's own sampler
    ways: ClassVar[Mapping[str, Way]] = {}
    group = 1  # latent steps that are predicted together at least
    #: the batch's axis in every tensor of a cache (any, where there are no caches). None, in a model that does not
    #: override `stack_caches` and `split_cache` either: each rollout is computed by itself.
    cache_axis: int | None = None
    #: whether `loss` leaves `Batch.prompt` out of what it learns from: what training on own rollouts needs
    heeds_prompt = False

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        if name is not None:
            cls._check_declared(name)
        super().__init_subclass__(name=name, **kwargs)

    @classmethod
    def _check_declared(cls, name: str) -> None:
        """Raise `HwmError` where a family lacks what every one must say itself."""
        for method, shared in (("loss", Trainable.loss), ("predict", WorldModel.predict)):
            if getattr(cls, method) is shared:
                raise HwmError(f"the model {name!r} ({cls.__module__}.{cls.__qualname__}) must define `{method}`")
        if not issubclass(cls.Config, WorldModel.Config):
            raise HwmError(
                f"{cls.__qualname__}.Config of the model {name!r} must subclass WorldModel.Config, which declares "
                "`past`, `horizon` and `window_stride`"
            )

    def predict(
        self,
        batch: Batch,
        *,
        sampler: Any = None,
        logits: bool = False,
        cache: object | None = None,
        generator: Generator = None,
    ) -> Prediction:
        """Fill in the `batch.missing` steps, at most `config.horizon` of them.

        Args:
            batch: latents of at most `config.past` steps, and actions of those and of the missing steps.
            sampler: how to sample, in the model family's own terms; None is the config's.
            logits: also return token logits of the first decoding step of each missing step, where the model has them.
            cache: `Prediction.cache` of an earlier call whose window began at the same step.
            generator: source of randomness, or one for each row of the batch; None is torch's global one.
        """
        raise NotImplementedError

    @property
    def sampler(self) -> Any:
        """How `predict` samples unless a call says otherwise, a frozen dataclass: the config's field of this name; None
        where there is none, of a model that has nothing to choose."""
        return getattr(self.config, "sampler", None)

    def sampler_with(self, changes: Mapping[str, Any] | Sequence[str]) -> Any:
        """The model's sampler with some fields changed; no changes suit every model.

        Args:
            changes: plain values by field, or words `NAME=VALUE`.

        Raises:
            HwmError: unknown fields, values of other types, or changes of a model without a sampler.
        """
        if not changes:
            return self.sampler
        if self.sampler is None:
            raise HwmError(
                f"{self.name} has no sampler to change: a model that has one declares it in its Config, as a field "
                "`sampler` that is a frozen dataclass"
            )
        if isinstance(changes, Mapping):
            return from_json(type(self.sampler), {**to_json(self.sampler), **changes})
        return changed(self.sampler, parse_changes(self.sampler, changes))

    @property
    def joins_caches(self) -> bool:
        """Whether caches of several rollouts can be joined: along `cache_axis`, or in a way of the model's own."""
        return self.cache_axis is not None or type(self).stack_caches is not WorldModel.stack_caches

    def stack_caches(self, caches: Sequence[Any]) -> Any:
        """Caches of single rollouts, whose windows are of one length, as the cache of one batch.

        Raises:
            HwmError: the model does not say how (`cache_axis`), or they are not alike.
        """
        return stack(caches, self._axis())

    def split_cache(self, cache: Any, count: int) -> list[Any]:
        """The cache of a batch of `count` rollouts as one of each, which share no memory: `stack_caches` undone.

        Raises:
            HwmError: the model does not say how (`cache_axis`), or the cache is of another number.
        """
        return [None] * count if cache is None else split(cache, count, self._axis())

    def _axis(self) -> int:
        if self.cache_axis is None:
            raise HwmError(
                f"{self.name} does not say how caches of several rollouts are joined: it declares `cache_axis`, the "
                "batch's axis in all their tensors, or overrides `stack_caches` and `split_cache`"
            )
        return self.cache_axis

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if not 1 <= config.window_stride <= config.past:
            raise HwmError(
                f"window_stride={config.window_stride} must be between 1 and past={config.past}: a window keeps one "
                "step at least"
            )

    def window_start(self, done: int) -> int:
        """First step of the window that predicts step `done` of a rollout: a function of `done` alone, so that a
        rollout with a cache sees exactly what one without sees."""
        overflow = done - self.config.past
        return max(0, -(-overflow // self.config.window_stride) * self.config.window_stride)

    @torch.inference_mode()
    def rollout(
        self,
        batch: Batch,
        *,
        sampler: Any = None,
        logits: bool = False,
        use_cache: bool = True,
        generator: Generator = None,
        watch: Callable[[int], None] | None = None,
    ) -> Prediction:
        """Predict every missing step, `horizon` at a time, each from the model's own earlier predictions.

        Args:
            watch: told, at each, how many steps were predicted.
        """
        return self._roll_out(
            batch, sampler=sampler, logits=logits, use_cache=use_cache, generator=generator, watch=watch
        )

    def _roll_out(
        self,
        batch: Batch,
        *,
        sampler: Any = None,
        logits: bool = False,
        use_cache: bool = True,
        generator: Generator = None,
        watch: Callable[[int], None] | None = None,
    ) -> Prediction:
        done, total = batch.latents.shape[1], batch.actions.shape[1]
        latents, parts, cache, cached_start = batch.latents, [], None, -1
        while done < total:
            start, stop = self.window_start(done), min(done + self.config.horizon, total)
            window = replace(batch, latents=latents).window(start, done, stop)
            cache = cache if use_cache and start == cached_start else None
            part = self.predict(window, sampler=sampler, logits=logits, cache=cache, generator=generator)
            cache, cached_start, part.cache = part.cache, start, None  # each is as large as its window: one is kept
            if watch is not None:
                watch(stop - done)
            latents, done = torch.cat([latents, part.latents], 1), stop
            parts.append(part)
        return join(parts)

    @torch.no_grad()
    def with_own_steps(self, batch: Batch, count: int, *, sampler: Any = None, generator: Generator = None) -> Batch:
        """A training clip that looks back on what the model makes of it, as play does: the last `count` steps before
        the `horizon` that are learned from are a rollout's, which those before them begin.

        Weights, mode and random numbers are those of now, but for dropout, which a rollout has none of.

        Args:
            batch: a true clip, `count` steps longer than those that the model trains on.
            count: of steps to make, a multiple of `group`; none leave the clip as it is.
            sampler: as of `predict`.

        Returns:
            the clip without its first `count` steps, of the usual length: true steps, if any are left, own steps, and
            the true ones to learn from, before which all is its prompt.

        Raises:
            HwmError: the clip has no step to begin from.
        """
        if not count:
            return batch
        total = batch.latents.shape[1]
        stop = total - self.config.horizon
        start = stop - count
        if start < 1 or count % self.group:
            raise HwmError(
                f"a clip of {total} steps is too short for {self.name} to make {count} steps, in multiples of "
                f"{self.group}, before its horizon of {self.config.horizon}"
            )
        training = self.training
        self.eval()
        try:
            own = self._roll_out(batch.window(0, start, stop), sampler=sampler, generator=generator).latents
        finally:
            self.train(training)
        latents = torch.cat([batch.latents[:, :start], own, batch.latents[:, stop:]], 1)
        return replace(batch, latents=latents, prompt=stop).window(count, total, total)

    def teacher_forced(self, batch: Batch, prompt: int) -> Prediction:
        """The most likely token of each cell of the steps from `prompt` on, and its logits, given all the truth before.

        For models whose tokens have an order: before a token come the true tokens of earlier steps, and of its own step
        those that the order puts before it. A model that settles a block in one pass has no tokens before others in it.
        Of clips longer than the model's window, each step is predicted from the window that a rollout would use.

        Args:
            batch: latents and actions of all steps (B, T, H, W); nothing is missing.
            prompt: how many steps are only looked back on, at least 1.

        Returns:
            latents (B, T - prompt, H, W), the argmax of the logits, and the logits.

        Raises:
            HwmError: the tokens of this model have no order.
        """
        raise HwmError(
            f"{self.name} fills in the tokens of a step together and in no order, so there are no logits of a token "
            "given the tokens before it; its scenarios are autoregressive and temporally_teacher_forced"
        )

    def read_text(self, path: Path) -> None:
        """Read an encoded text from a file, for all later calls; of models that read texts.

        Raises:
            HwmError: this one does not.
        """
        raise HwmError(f"{self.name} reads no text, and {path} is one")

    def check(self, batch: Batch) -> None:
        """Raise `HwmError` when the batch does not fit the spec this model was built for."""
        self.check_actions(batch)
        spec = self.spec.latent
        cell = () if spec.channels is None else (spec.channels,)
        if batch.latents.dim() != 4 + len(cell) or tuple(batch.latents.shape[2:]) != (*cell, *spec.grid):
            wanted = ", ".join(map(str, ("B", "T", *cell, "H", "W")))
            raise HwmError(f"latents are ({wanted}) with a grid of {spec.grid}, got shape {tuple(batch.latents.shape)}")
        if batch.missing < 0:
            raise HwmError(f"{batch.latents.shape[1]} latent steps but only {batch.actions.shape[1]} steps of actions")
        if batch.prompt > max(0, batch.latents.shape[1] - self.config.horizon):
            raise HwmError(
                f"a prompt of {batch.prompt} of {batch.latents.shape[1]} steps leaves none of the last "
                f"horizon = {self.config.horizon} to learn from"
            )

    def check_window(self, past: int, missing: int) -> None:
        """Raise `HwmError` where this model does not predict `missing` steps from `past`."""
        c = self.config
        if not (1 <= past <= c.past and 1 <= missing <= c.horizon) or past % self.group:
            groups = f", in multiples of {self.group}" if self.group > 1 else ""
            raise HwmError(
                f"{self.name} predicts 1 to {c.horizon} steps from 1 to {c.past}{groups}, not {missing} from {past}; "
                f"use rollout for more, and train on clips of past + horizon = {c.past + c.horizon} steps"
            )

    def check_clip(self, steps: int) -> None:
        """Raise `HwmError` where a model that learns of all steps of a clip but the first does not take so many."""
        longest = self.config.past + self.config.horizon
        if not 2 <= steps <= longest:
            raise HwmError(f"{self.name} trains on clips of 2 to past + horizon = {longest} steps, not {steps}")

    def check_actions(self, batch: Batch) -> None:
        """The part of `check` that is about actions, for a model that takes none to leave out."""
        if batch.embodiment not in self.spec.actions:
            raise HwmError(f"the model knows the embodiments {sorted(self.spec.actions)}, not {batch.embodiment!r}")
        action = self.spec.actions[batch.embodiment]
        if tuple(batch.actions.shape[2:]) != (action.per_step, action.dim):
            raise HwmError(
                f"actions of {batch.embodiment!r} have {action.per_step} x {action.dim} values a step, "
                f"got shape {tuple(batch.actions.shape)}"
            )
        if batch.following is not None and batch.following.shape != batch.actions[:, 0].shape:
            raise HwmError(
                f"the actions that follow are those of one step, {tuple(batch.actions[:, 0].shape)}, "
                f"got shape {tuple(batch.following.shape)}"
            )


def join(parts: list[Prediction]) -> Prediction:
    """Predictions of consecutive steps as one."""
    logits = [p.logits for p in parts]
    joined = torch.cat([x for x in logits if x is not None], 1) if all(x is not None for x in logits) else None
    latents: Tensor = torch.cat([p.latents for p in parts], 1)
    return Prediction(latents, joined, parts[0].levels)
