"""Many stores as one stream of batches, in an order that is a pure function of (seed, step).

Because nothing is remembered from batch to batch, resuming at step n needs only n: the stream of a run that was
killed and resumed is that of a run that was not. It does not change with the number of ranks either: a step's
global batch is drawn first, and each rank takes its part.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import torch
import tyro
from torch.utils.data import DataLoader, IterableDataset

from hwm.data.ahead import ahead
from hwm.data.clips import Clips
from hwm.data.statistics import Statistics, pooled, warning
from hwm.data.store import Store
from hwm.errors import HwmError, unknown
from hwm.far import is_far
from hwm.types import ActionSpec, Batch, DataSpec

SPLITS = Path(__file__).with_name("splits")
"""Lists of data sets that come with the package, a file each: a name a line."""
AHEAD = 4
"""Batches that are made ahead where they are fetched from a server."""
HELD_OUT = "_heldout"
"""What the name of a data set's held-out store ends in."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data a run sees.

    Attributes:
        stores: folders of encoded stores to train on, or addresses such as s3://bucket/train (extra `remote`); `mini`
            is the set shipped with the package.
        val_stores: held-out stores, of which the validation part is seen: every second episode, from the first on.
        split: a list of data sets, each a store in `root`, to add to these: `openx_1`, `openx_5`, `openx_10`,
            `openx_20`, `openx_30`, `openx_40`, `language_table`, a text file with a name a line, or a YAML file whose
            `domains` they are. Their held-out stores, where there are any, have the same names with `_heldout` behind.
        root: the folder in which the stores of a split are.
        episodes: use the first so many episodes of each training store, and their statistics; 0 uses all.
        steps: latent steps of a window.
        stride: distance between the steps of a window; actions of the steps between are kept.
        rate: in place of one stride for all, the longest of each store that leaves so many steps a second; a store that
            has fewer gives all. 0 goes by `stride`.
        filter_overlaps: leave out windows that share a step with an earlier one, as 1X's evaluation does.
        reader: read the stores as this, a name out of `hwm.data.readers.READERS`; empty goes by what is in the folder.
        exponent: a store of n windows is drawn with a weight of n to this power (1/3 keeps small sets in sight).
        motion: how strongly windows that move are preferred: weight (0.05 + movement) to this power; 0 draws all alike.
        workers: processes that read ahead; 0 reads in the training process.
        expects: the spec that the recipe is written for, which is enough to count parameters before any data is there.
    """

    stores: tuple[str, ...] = ()
    val_stores: tuple[str, ...] = ()
    split: str = ""
    root: str = "."
    episodes: int = 0
    steps: int = 3
    stride: int = 1
    rate: float = 0.0
    filter_overlaps: bool = False
    reader: str = ""
    exponent: float = 1 / 3
    motion: float = 0.0
    workers: int = 0
    expects: Annotated[DataSpec | None, tyro.conf.Suppress] = None

    def paths(self, validation: bool = False) -> tuple[str, ...]:
        """The training (or held-out) stores, those of the split included.

        Raises:
            HwmError: a data set of the split has no store.
        """
        names, root = split_names(self.split) if self.split else (), Path(self.root)
        if validation:
            held_out = [root / f"{name}{HELD_OUT}" for name in names]
            return (*self.val_stores, *(str(path) for path in held_out if path.exists()))
        if absent := [name for name in names if not (root / name).exists()]:
            raise HwmError(
                f"{len(absent)} of the {len(names)} data sets of {self.split!r} are not in {root}: "
                f"{', '.join(absent)}. Encode them there, say where they are with --data.root, or name those that "
                "you have with --data.stores"
            )
        return (*self.stores, *(str(root / name) for name in names))

    def open(self, validation: bool = False) -> Mixture:
        """Open the training stores, or the validation part of the held-out ones."""
        from hwm.data.readers import open_store

        if self.episodes < 0:
            raise HwmError(f"data.episodes must not be negative, got {self.episodes}")
        paths = self.paths(validation)
        if not paths:
            raise HwmError(
                f"no {'held-out ' if validation else ''}stores given: --data.{'val-' if validation else ''}stores"
            )
        stores = [open_store(p, self.reader) for p in paths]
        episodes = 0 if validation else self.episodes
        clips = [
            Clips(
                s,
                self.steps,
                stride=stride_of(s, self.stride, self.rate),
                filter_overlaps=self.filter_overlaps,
                episodes=episodes,
                part="validation" if validation else "all",
            )
            for s in stores
        ]
        return Mixture(clips, self.exponent, 0.0 if validation else self.motion, self.workers)


def stride_of(store: Store, stride: int, rate: float) -> int:
    """The stride that is given, or the longest that leaves `rate` steps a second.

    Raises:
        HwmError: both are given, or a rate that is none.
    """
    if rate < 0 or (rate and stride != 1):
        raise HwmError(f"rate {rate:g} is a number of steps a second, and takes the place of stride {stride}: give one")
    return max(1, int(store.header.fps / rate + 1e-6)) if rate else stride


def split_names(split: str) -> tuple[str, ...]:
    """The data sets of a split: one of `SPLITS` by name, or a text file with a name a line; `#` begins a remark. A YAML
    file has them under `domains`, as a list or, as HMA's have, with commas between.

    Raises:
        HwmError: there is no such split, or it names none, or one twice.
    """
    path = SPLITS / f"{split}.txt"
    if not path.is_file():
        path = Path(split)
    if not path.is_file():
        raise unknown("split", split, (p.stem for p in SPLITS.glob("*.txt")))
    text = path.read_text(encoding="utf-8-sig")
    plain = path.suffix not in (".yaml", ".yml")
    lines = [line.partition("#")[0] for line in text.splitlines()] if plain else _domains(path, text)
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise HwmError(f"{path} names {', '.join(twice) + ' twice' if twice else 'no data set'}")
    return names


def _domains(path: Path, text: str) -> list[str]:
    """The data sets that a split in YAML names."""
    import yaml

    try:
        about = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HwmError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    domains = about.get("domains") if isinstance(about, dict) else None
    if isinstance(domains, str):
        return domains.split(",")
    if not isinstance(domains, list) or not all(isinstance(name, str) for name in domains):
        raise HwmError(f"{path} has no `domains`: a list of names, or names with commas between")
    return domains


class Mixture:
    """Several `Clips` with weights; one embodiment a batch.

    Its spec has the statistics of all stores together, of actions those of each embodiment: every step counts once,
    however often its store is drawn.

    Args:
        clips: windows of each store.
        exponent, motion, workers: see `DataConfig`.

    Raises:
        HwmError: the stores differ in latents or tokenizer, or one embodiment has two kinds of action.
    """

    def __init__(self, clips: list[Clips], exponent: float = 1 / 3, motion: float = 0.0, workers: int = 0) -> None:
        if not clips:
            raise HwmError("a mixture of no stores")
        self.clips, self.exponent, self.motion, self.workers = clips, exponent, motion, workers
        weights = np.array([len(c) for c in clips], np.float64) ** exponent
        self.weights = weights / weights.sum()
        self.cumulative = [np.cumsum((0.05 + c.motion()) ** motion) if motion else None for c in clips]
        self.spec = self._spec()

    @property
    def far(self) -> bool:
        """Whether some of it is not on this disk."""
        return any(is_far(c.store.path) for c in self.clips)

    def describe(self) -> str:
        """What there is, in words."""
        steps = sum(c.steps for c in self.clips)
        minutes = sum(c.store.seconds * c.steps / c.store.steps for c in self.clips) / 60
        windows = sum(map(len, self.clips))
        return f"{steps:,} steps ({minutes:.1f} minutes) in {len(self.clips)} stores, {windows:,} windows"

    def _spec(self) -> DataSpec:
        specs = [c.spec() for c in self.clips]
        first, actions = specs[0], dict[str, ActionSpec]()
        for c, s in zip(self.clips, specs, strict=True):
            if (s.latent, s.tokenizer) != (first.latent, first.tokenizer):
                raise HwmError(
                    f"{c.store.path} was encoded with {s.tokenizer!r} and {self.clips[0].store.path} with "
                    f"{first.tokenizer!r}: one model reads one tokenizer; encode them alike"
                )
            for name, action in s.actions.items():
                kind = (action.per_step, action.names)
                known = actions.setdefault(name, action)
                if (known.per_step, known.names) != kind:
                    raise HwmError(
                        f"{c.store.path}: embodiment {name!r} has other actions than in the stores before it"
                    )
        pool = {name: self._pooled(name, specs) for name in actions}
        actions = {name: replace(a, mean=pool[name][0], std=pool[name][1]) for name, a in actions.items()}
        if not first.latent_mean:
            return replace(first, actions=actions)
        mean, std = pooled([(c.steps, s.latent_mean, s.latent_std) for c, s in zip(self.clips, specs, strict=True)])
        return replace(first, actions=actions, latent_mean=mean, latent_std=std)

    def _pooled(self, embodiment: str, specs: list[DataSpec]) -> Statistics:
        """Statistics of one embodiment's actions over all of its stores: every action counts once."""
        return pooled(
            [
                (c.steps * c.store.header.actions_per_step, s.actions[embodiment].mean, s.actions[embodiment].std)
                for c, s in zip(self.clips, specs, strict=True)
                if embodiment in s.actions
            ]
        )

    def warnings(self, spec: DataSpec) -> list[str]:
        """What there is to say of stores whose actions the statistics of a spec, this mixture's or another, do not
        suit: a store each."""
        known = [(c.store, spec.actions[c.embodiment]) for c in self.clips if c.embodiment in spec.actions]
        found = (warning(store, (action.mean, action.std)) for store, action in known)
        return [text for text in found if text]

    def longer(self, steps: int) -> Mixture:
        """The same mixture of windows of so many steps more.

        Raises:
            HwmError: a store has no episode of so many.
        """
        return Mixture([c.longer(steps) for c in self.clips], self.exponent, self.motion, self.workers)

    def draw(self, seed: int, step: int, size: int) -> tuple[int, np.ndarray]:
        """Which store, and which of its windows, make up the global batch of a step."""
        rng = np.random.default_rng((seed, step))
        which = int(rng.choice(len(self.clips), p=self.weights))
        clips, cumulative = self.clips[which], self.cumulative[which]
        if cumulative is None:
            return which, rng.integers(len(clips), size=size)
        return which, np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right").clip(
            max=len(clips) - 1
        )

    def batch(self, seed: int, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """This rank's part of the batch of a step; `size` is the global batch size."""
        if size % world:
            raise HwmError(f"a batch of {size} does not divide among {world} processes")
        which, windows = self.draw(seed, step, size)
        part = size // world
        return self.clips[which].batch(windows[rank * part : (rank + 1) * part])

    def examples(self) -> Iterator[Batch]:
        """A clip of each embodiment."""
        for c in {c.embodiment: c for c in self.clips}.values():
            yield c.batch(np.array([0]))

    def fixed(self, size: int, batches: int) -> Iterator[Batch]:
        """Batches that are the same at every call, spread evenly over the data: for validation.

        `batches` of each store, all of `size` clips; where a store has fewer windows than that, some come again.
        """
        for c in self.clips:
            windows = np.linspace(0, len(c) - 1, size * batches).round().astype(int)
            for part in np.array_split(windows, batches):
                yield c.batch(part)


class Batches(Protocol):
    """What batches are drawn from: a `Mixture`, or what draws from several.

    Attributes:
        far: whether making one may have to wait for a server.
    """

    @property
    def far(self) -> bool: ...

    def batch(self, seed: int, step: int, size: int, rank: int = 0, world: int = 1) -> Batch: ...


class Stream(IterableDataset):  # type: ignore[type-arg]
    """The batches of a mixture from a step on, for a dataloader whose workers take turns.

    Those that are fetched from a server are made ahead of their turn, in a thread.
    """

    def __init__(self, mixture: Batches, seed: int, start: int, size: int, rank: int, world: int) -> None:
        self.mixture, self.seed, self.start, self.size, self.rank, self.world = mixture, seed, start, size, rank, world

    def __iter__(self) -> Iterator[Batch]:
        return ahead(self._batches(), AHEAD) if self.mixture.far else self._batches()

    def _batches(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        step = self.start + first
        while True:
            yield self.mixture.batch(self.seed, step, self.size, self.rank, self.world)
            step += stride


def loader(
    mixture: Batches,
    *,
    seed: int,
    start: int,
    size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pinned: bool = False,
) -> Iterator[Batch]:
    """An endless iterator over the batches of steps start, start + 1, ..., read ahead by `workers` processes.

    Args:
        pinned: put them into page-locked memory, from which a GPU takes them while the program goes on.
    """
    stream = Stream(mixture, seed, start, size, rank, world)
    made: DataLoader[Batch] = DataLoader(
        stream, batch_size=None, num_workers=workers, worker_init_fn=_leave_signals_to_parent, pin_memory=pinned
    )
    return iter(made)


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl-C and Slurm's warning reach the whole process group; the trainer finishes its update, and needs its batches.
    # SIGTERM stays: it is how a parent that ends ends its workers.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
