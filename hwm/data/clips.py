"""Windows over a store that never cross an episode, and the batches made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from hwm.data.arrays import moments
from hwm.data.far import FarArray
from hwm.data.store import Store
from hwm.errors import HwmError, unknown
from hwm.types import Batch, DataSpec

MOTION_STEPS = 4096
"""Steps that are compared at once."""
STATISTICS_STEPS = 256
"""Steps that statistics of continuous latents are taken of: a step has hundreds of cells, and a store may be large."""


PARTS = {"all": slice(None), "validation": slice(0, None, 2), "test": slice(1, None, 2)}
"""Which episodes of a held-out store a part has, in the store's order. Choices while training go by validation, so that
on the episodes of test nothing was chosen. Further episodes at the end of a store leave the others in their part."""


class Starts:
    """First steps of windows, computed when they are asked for: a store may have ten million windows.

    Within an episode windows begin in runs of `run` neighbouring steps, the runs `period` steps apart.

    Args:
        starts, stops: first step and end of each episode.
        span: steps from the first of a window to its last.
    """

    def __init__(self, starts: np.ndarray, stops: np.ndarray, span: int, run: int, period: int) -> None:
        places = np.maximum(stops - starts - span + 1, 0)
        counts = places // period * run + np.minimum(places % period, run)
        self.first, self.counts = starts[counts > 0], counts[counts > 0]
        self.ends, self.run, self.period = np.cumsum(self.counts), run, period

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray:
        wanted = np.asarray(index)
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"windows {wanted.min()} to {wanted.max()} of {len(self)}")
        episode = np.searchsorted(self.ends, wanted, side="right")
        within = wanted - (self.ends[episode] - self.counts[episode])
        return self.first[episode] + within // self.run * self.period + within % self.run


class Clips:
    """All windows of `length` steps of one store, `every` steps apart within each episode.

    Where a store was encoded in clips that do not know of each other, windows begin only where a clip does, and `every`
    counts clips.

    Args:
        store: an encoded store.
        length: steps of a window.
        every: distance between the starts of neighbouring windows.
        stride: distance between the steps of a window. Actions of the steps passed over are kept: a window of
            stride s has K*s actions a step, those that lead to it from the step kept before.
        filter_overlaps: leave out windows that share a step with an earlier one: windows of a stride s begin at s
            neighbouring steps, then at none until all of them have ended (as 1X's evaluation chooses them).
        episodes: the first so many alone, of which then the statistics are, too; 0 for all.
        part: `validation` or `test`, see `PARTS`: windows of every second episode alone; statistics remain the store's.

    Raises:
        HwmError: no episode is long enough, the store has fewer, the test part of one episode is wanted, or settings
            that exclude each other.
    """

    def __init__(
        self,
        store: Store,
        length: int,
        every: int = 1,
        stride: int = 1,
        *,
        filter_overlaps: bool = False,
        episodes: int = 0,
        part: str = "all",
    ) -> None:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
        if part == "test" and len(store.episodes) == 1:
            raise HwmError(
                f"{store.path} has one episode, which is for validation, and none for test: hold more out, or take all "
                "of it (--split all)"
            )
        if min(length, every, stride) < 1:
            raise HwmError(f"length {length}, every {every} and stride {stride} must be at least 1")
        if store.latents is None:
            store.header.latent_shape  # noqa: B018  raises the error that says what to do
        if episodes > len(store.episodes):
            raise HwmError(f"{store.path} has {len(store.episodes)} episodes, and the first {episodes} are wanted")
        self.store, self.length, self.every, self.stride, self.part = store, length, every, stride, part
        self.filter_overlaps, self.episodes = filter_overlaps, episodes
        self.steps = store.episodes[episodes - 1].stop if episodes else store.steps  # that windows are taken of
        span = (length - 1) * stride + 1
        begin = store.clip_steps
        if stride > 1 and begin > 1:
            raise HwmError(f"{store.path} was encoded in clips of {begin} steps, which do not lie evenly: use stride 1")
        if filter_overlaps and every > 1:
            raise HwmError(f"filter_overlaps decides where windows begin, and so does every={every}: give one of them")
        run, period = (stride, -(-length // begin) * begin * stride) if filter_overlaps else (1, every * begin)
        starts, stops = (edges[: episodes or None][PARTS[part]] for edges in store.bounds)
        self.starts = Starts(starts, stops, span, run, period)
        if not len(self.starts):
            longest = int(np.max(stops - starts, initial=0))
            of = "" if part == "all" else f" of the {len(starts)} of {len(store.episodes)} that are for {part}"
            raise HwmError(f"{store.path}: no episode{of} has the {span} steps of a window; the longest has {longest}")
        h = store.header
        self.embodiment = h.embodiment
        self.continuous = h.latent is not None and h.latent.channels is not None
        # uint8 pixels are kept as they are on disk and become values in [0, 1] here
        self.scale = 1 / 255 if h.dtype == "uint8" and self.continuous else None

    def __len__(self) -> int:
        return len(self.starts)

    def longer(self, steps: int) -> Clips:
        """Windows of so many steps more, chosen alike.

        Raises:
            HwmError: no episode has so many.
        """
        return Clips(
            self.store, self.length + steps, self.every, self.stride,
            filter_overlaps=self.filter_overlaps, episodes=self.episodes, part=self.part,
        )  # fmt: skip

    def spread(self, count: int) -> np.ndarray:
        """Indices of at most `count` windows, spread evenly over all."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))

    def spec(self) -> DataSpec:
        spec = self.store.data_spec()
        if self.steps < self.store.steps:
            mean, std = (tuple(x.tolist()) for x in moments(self.store.actions[: self.steps]))
            action = replace(spec.actions[self.embodiment], mean=mean, std=std)
            spec = replace(spec, actions={self.embodiment: action})
        if self.continuous:
            mean, std = self.channel_statistics
            spec = replace(spec, latent_mean=mean, latent_std=std)
        if self.stride == 1:
            return spec
        action = spec.actions[self.embodiment]
        wide = replace(action, per_step=action.per_step * self.stride)
        return replace(spec, actions={self.embodiment: wide}, fps=spec.fps / self.stride)

    @cached_property
    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of continuous latents, over steps spread over the data."""
        assert self.store.latents is not None
        steps = np.unique(np.linspace(0, self.steps - 1, STATISTICS_STEPS).round().astype(int))
        if isinstance(self.store.latents, FarArray):
            self.store.latents.fetch(steps)
        x = (self.store.latents[t].astype(np.float64) * (self.scale or 1) for t in steps)
        mean, square = np.mean([(each.mean((1, 2)), (each**2).mean((1, 2))) for each in x], 0)
        return tuple(mean.tolist()), tuple(np.sqrt((square - mean**2).clip(min=0)).tolist())

    def batch(self, indices: np.ndarray | list[int]) -> Batch:
        """The windows of these indices, in order, and the actions that follow each, where its episode goes on.

        Raises:
            HwmError: latents that no tokenizer makes: ids outside the vocabulary, values that are not finite.
        """
        latents, actions, following = [], [], []
        assert self.store.latents is not None
        starts = self.starts[np.asarray(indices)]
        self._fetch(starts)
        for start in starts:
            stop = start + (self.length - 1) * self.stride + 1
            latents.append(self.store.latents[start : stop : self.stride])
            actions.append(self._actions(int(start), int(stop)))
            following.append(self._following(int(stop)))
        values = torch.from_numpy(np.stack(latents).astype(np.float32 if self.continuous else np.int64))
        self._check(values, indices)
        if self.scale is not None:
            values *= self.scale
        after = None
        if any(found is not None for found in following):
            none = np.full_like(actions[0][0], np.nan)
            after = torch.from_numpy(np.stack([none if found is None else found for found in following]))
        return Batch(values, torch.from_numpy(np.stack(actions)), self.embodiment, after)

    def _fetch(self, starts: np.ndarray) -> None:
        """Have at hand what windows that begin here are made of, where it is far away."""
        steps = starts[:, None] + np.arange(1 - self.stride, self.length * self.stride + 1)
        steps = np.unique(steps.clip(0, self.store.steps - 1))
        for array in (self.store.segments, self.store.actions, self.store.latents):
            if isinstance(array, FarArray):
                array.fetch(steps)

    def _check(self, values: torch.Tensor, indices: np.ndarray | list[int]) -> None:
        """Raise `HwmError` for values that would do harm in silence: folders of others are read as they are."""
        latent = self.store.header.latent
        assert latent is not None
        low, high = (x.item() for x in values.aminmax())
        if latent.vocab is None:
            if math.isfinite(low) and math.isfinite(high):
                return
            bad, what = ~values.isfinite(), "values that are not finite"
        else:
            if low >= 0 and high < latent.vocab:
                return
            bad, what = (values < 0) | (values >= latent.vocab), f"ids outside the vocabulary of {latent.vocab:,}"
        row, step = bad.flatten(2).any(2).nonzero()[0].tolist()
        where = int(self.starts[np.asarray(indices)][row]) + step * self.stride
        raise HwmError(
            f"{self.store.path} has {what} in step {where}, such as {values[row, step][bad[row, step]][0].item()}: "
            "the file is damaged; write or fetch it again"
        )

    def _actions(self, start: int, stop: int) -> np.ndarray:
        if self.stride == 1:
            return np.asarray(self.store.actions[start:stop], np.float32)
        # those that lead to the window's first step lie before it; before the episode there are none: repeat its first
        first = self.store.episodes[self.store.segments[start]].start
        rows = np.arange(start - self.stride + 1, stop).clip(min=first)
        actions = np.asarray(self.store.actions[rows], np.float32)
        return actions.reshape(self.length, self.stride * actions.shape[1], actions.shape[2])

    def _following(self, stop: int) -> np.ndarray | None:
        """Actions (K, A) that lead from the last step of a window, before row `stop`, to the step after it."""
        after = stop + self.stride
        if after > self.store.episodes[self.store.segments[stop - 1]].stop:
            return None
        actions = np.asarray(self.store.actions[stop:after], np.float32)
        return actions.reshape(-1, actions.shape[-1])

    def motion(self) -> np.ndarray:
        """How much each window moves from step to step: for ids the share of cells whose id changes, in [0, 1]; for
        values the mean absolute change."""
        assert self.store.latents is not None
        change = np.zeros(self.store.steps, np.float32)
        for i in range(1, self.store.steps, MOTION_STEPS):
            x = np.asarray(self.store.latents[i - 1 : i + MOTION_STEPS])
            if self.continuous:
                d = np.abs(np.diff(x.astype(np.float32), axis=0)) * (self.scale or 1)
            else:
                d = (x[1:] != x[:-1]).astype(np.float32)
            change[i : i + MOTION_STEPS] = d.reshape(len(d), -1).mean(1)
        change[self.store.bounds[0]] = 0  # from one episode to the next is no movement
        total = np.concatenate([[0.0], np.cumsum(change, dtype=np.float64)])
        starts = self.starts[np.arange(len(self))]
        stop = starts + (self.length - 1) * self.stride + 1
        return (total[stop] - total[starts + 1]) / max(1, (self.length - 1) * self.stride)


def fake_batch(spec: DataSpec, size: int, steps: int, seed: int = 0, ahead: int = 0) -> Batch:
    """Random latents and actions of a spec, for tests and dry runs; actions run `ahead` steps past the latents."""
    g = torch.Generator().manual_seed(seed)
    embodiment, action = next(iter(spec.actions.items()))
    latent = spec.latent
    if latent.vocab is not None:
        x = torch.randint(latent.vocab, (size, steps, *latent.grid), generator=g)
    else:
        x = torch.randn((size, steps, latent.channels or 0, *latent.grid), generator=g)
    a = torch.randn((size, steps + ahead, action.per_step, action.dim), generator=g)
    return Batch(x, a * torch.tensor(action.std) + torch.tensor(action.mean), embodiment)
