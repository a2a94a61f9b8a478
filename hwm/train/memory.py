"""How much memory a training step takes, without taking it: the step is run on tensors that have sizes and no values.

Every block of memory that the forward and backward pass ask for is counted from the operation that makes it to the
moment when nothing refers to it any more; weights, gradients and optimizer follow from the parameter count. On a CPU a
step takes more where there is room, and computes less again (`hwm.nn.layers.roomy`), which is not foretold. What the
allocator wastes, kernels' workspaces and the program itself (on a GPU about 0.5 GiB) are not counted.
"""

from __future__ import annotations

import gc
import re
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwm.config import Trainable
from hwm.data.clips import fake_batch
from hwm.devices import FORMATS, Runtime
from hwm.errors import HwmError
from hwm.nn.layers import sparing
from hwm.train.blocks import arithmetic, recompute
from hwm.train.config import TrainConfig
from hwm.train.halves import Halves
from hwm.train.lora import choose
from hwm.train.muon import Muon
from hwm.train.optim import optimizers
from hwm.types import Batch, DataSpec

GIB = 2**30

USABLE, OVERHEAD = 0.9, GIB / 2
"""Share of a card's free memory that can be counted on, as the allocator wastes some, and what kernels' code takes."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process at the peak of a training step.

    Attributes:
        parameters: how many there are.
        weights, gradients, optimizer, average: what each of them takes; a share of it where they are divided.
        activations: what else is alive at the peak of a forward and backward pass.
    """

    parameters: int
    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def _all_cells(index: Tensor | None) -> list[Tensor | None]:
    """What picks every cell of a mask, in its place: how many it would pick depends on chance."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [index.new_empty(index.numel(), dtype=torch.int64) for _ in range(index.dim())]


class _Live(TorchDispatchMode):
    """Counts bytes that are alive, and the most that ever were. Blocks in `known` do not count."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.now, self.peak = known, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self.call(func, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return out

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or not size:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class _Simulated(_Live):
    """The same over tensors without values: what depends on values is taken for the largest that it may be."""

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            return args[0].dtype.is_floating_point and 0.0  # what is only looked at to be checked
        if func is aten.nonzero.default:
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            args = (args[0], [i for x in args[1] for i in _all_cells(x)], *args[2:])
        return func(*args, **kwargs)


def training_memory(config: Any, spec: DataSpec, steps: int, train: TrainConfig, processes: int = 1) -> Memory:
    """Memory of one process that trains a model.

    Args:
        config: of the model; spec: of the data; steps: of a clip.
        train: its `batch_size`, `dtype`, `optimizer`, `ema`, `activation_checkpoint`, `shard`, `only` and `lora`
            matter.
        processes: that train together.
    """
    with torch.device("meta"):
        module: Trainable = config.build(spec)
        choose(module, train.only, train.lora)
        made = optimizers(module, train.optimizer, train.lr, train.weight_decay, train.betas)
    count = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    moments = sum(_moments(optimizer, p) for optimizer in made for g in optimizer.param_groups for p in g["params"])
    ways = (train.shard or processes) if processes > 1 else 1
    gathered = 0.0
    if ways > 1:  # two units at a time are put together, one in use and one on its way
        size, units = FORMATS[_format(train)].itemsize, list(module.units()) or [module]
        gathered = 2 * size * max(sum(p.numel() for p in unit.parameters()) for unit in units)
    return Memory(
        parameters=count,
        weights=4 * count / ways,
        gradients=4 * trained / ways,
        optimizer=4 * moments / ways,
        average=4 * count / ways if train.ema else 0.0,
        activations=_activations(config, spec, steps, train, processes) + gathered,
    )


def _format(train: TrainConfig) -> str:
    """The number format that is foretold: `auto` is bfloat16, as on the graphics cards that this is asked about."""
    return "bfloat16" if train.dtype == "auto" else train.dtype


def _moments(optimizer: torch.optim.Optimizer, p: Tensor) -> int:
    """How many numbers an optimizer keeps of a parameter."""
    if isinstance(optimizer, torch.optim.Adafactor):
        return p.numel() // p.shape[-1] + p.numel() // p.shape[-2]
    return p.numel() * (1 if isinstance(optimizer, Muon) else 2)


def _activations(config: Any, spec: DataSpec, steps: int, train: TrainConfig, processes: int) -> float:
    """Most bytes alive in a forward and backward pass beside weights and gradients."""
    with torch.device("meta"):
        module: Trainable = config.build(spec)
        choose(module, train.only, train.lora)
    with _without_traces(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _fake(module)
        clips = fake_batch(spec, train.batch_size, steps)
        batch = Batch(mode.from_tensor(clips.latents), mode.from_tensor(clips.actions), clips.embodiment)
        recompute(module, train.activation_checkpoint)
        for p in (p for p in module.parameters() if p.requires_grad):
            p.grad = torch.empty_like(p)  # as if a pass had been before: then what is added to it is temporary
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        kept = [*module.parameters(), *module.buffers(), *gradients, batch.latents, batch.actions]
        live = _Simulated({t.untyped_storage()._cdata for t in kept})
        runtime = Runtime(torch.device("cpu"), _format(train))
        with live:
            halves = Halves(module, runtime, train.activation_checkpoint, processes)
            with halves.used():
                with sparing(), arithmetic(runtime, train.activation_checkpoint):
                    loss, _ = module(batch)
                loss.backward()
                halves.collect()
        return float(live.peak)


@contextmanager
def _without_traces() -> Iterator[None]:
    """Forget the constants that functions of this package keep: those made before would not be counted, and those made
    inside have no values."""
    _forget_constants()
    try:
        yield
    finally:
        _forget_constants()


def _forget_constants() -> None:
    kind = type(lru_cache(len))
    for each in gc.get_objects():
        if type(each) is kind and str(each.__module__).startswith("hwm."):
            each.cache_clear()


def _fake(module: Trainable) -> None:
    """Replace weights on the meta device by fake ones on an ordinary device, whose code paths are those of training."""
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty_strided(p.shape, p.stride(), dtype=p.dtype), p.requires_grad))
        for name, x in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty_strided(x.shape, x.stride(), dtype=x.dtype))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A way to train in less memory, and what it takes."""

    train: TrainConfig
    memory: Memory

    def options(self, before: TrainConfig) -> str:
        """What to add to the command `hwm train`."""
        words = []
        for field in ("batch_size", "accumulate", "dtype", "ema", "optimizer", "activation_checkpoint"):
            value = getattr(self.train, field)
            if value != getattr(before, field):
                name = "--train." + field.replace("_", "-")
                words.append(f"{name} {value}")
        return " ".join(words)


def fit(config: Any, spec: DataSpec, steps: int, train: TrainConfig, limit: float) -> Fit | None:
    """The recipe's training, changed as little as it takes to stay below so many bytes; None where nothing helps.

    The size of an update stays, in as few passes as there is room for: more of the recipe's, or fewer. Tried in this
    order: other batches, activations computed again, both; then bfloat16; then no moving average; then Adafactor, in
    one process.
    """
    with torch.device("meta"):
        module: Trainable = config.build(spec)
        choose(module, train.only, train.lora)
    if limit < sum(4 * p.numel() * (1 + p.requires_grad) for p in module.parameters()):
        return None  # weights and their gradients alone, which all options keep
    half: dict[str, Any] = {"dtype": "bfloat16"} if _format(train) == "float32" else {}
    less: dict[str, Any] = {**half, "ema": 0.0}
    ways = ({}, *([half] if half else []), less, {**less, "optimizer": "adafactor"})
    for changes in ways:
        for again in dict.fromkeys((train.activation_checkpoint, "selective", "full")):
            tried = replace(train, activation_checkpoint=again, **changes)  # type: ignore[arg-type]
            found = fewest_passes(config, spec, steps, tried, limit)
            if found:
                return found
    return None


def fewest_passes(
    config: Any, spec: DataSpec, steps: int, train: TrainConfig, limit: float, processes: int = 1
) -> Fit | None:
    """The clips of an update, `batch_size` x `accumulate`, in as few passes as take no more than so many bytes; None
    where a pass of one clip takes more."""
    clips = train.batch_size * train.accumulate
    sizes = [n for n in range(1, clips + 1) if clips % n == 0]

    @cache
    def taken(size: int) -> Memory:
        return training_memory(config, spec, steps, replace(train, batch_size=size), processes)

    # not from the memory of a few clips: with these the peak may come when weights are cast, with more in the middle
    fitting = bisect_right(sizes, limit, key=lambda size: taken(size).total)
    if not fitting:
        return None
    size = sizes[fitting - 1]
    return Fit(train=replace(train, batch_size=size, accumulate=clips // size), memory=taken(size))


def free_memory(device: torch.device) -> float | None:
    """Bytes of a card that training can count on; None where nobody knows, as on a CPU that others use too."""
    if device.type != "cuda":
        return None
    return USABLE * torch.cuda.mem_get_info(device)[0] - OVERHEAD


def read_size(text: str) -> float:
    """Bytes of a size such as 24GB, 40 GiB or 512MB, of 1024 each as graphics cards count.

    Raises:
        HwmError: it is none.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([MGT])i?B?\s*", text, re.IGNORECASE)
    try:
        assert found is not None
        return float(found[1]) * 1024 ** {"M": 2, "G": 3, "T": 4}[found[2].upper()]
    except (AssertionError, ValueError):
        raise HwmError(f"{text!r} is no size of memory; write for example 24GB") from None
