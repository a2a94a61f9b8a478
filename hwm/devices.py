"""Where computing is done, and in which number format: the one place that chooses."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hwm.errors import HwmError, unknown

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CONTAINER = Path("/sys/fs/cgroup/memory.max")

FASTER = 1.2
"""By how much bfloat16 must be faster than float32 to be worth its rounding; measuring is less uncertain."""


@dataclass(frozen=True)
class Runtime:
    """A device and the number format of matrix products there. Weights stay as they are; products are cast to it.

    Attributes:
        cast: whether there is anything to cast; not where weights are of that format themselves.
    """

    device: torch.device
    format: str
    cast: bool = True

    @property
    def dtype(self) -> torch.dtype:
        return FORMATS[self.format]

    def autocast(self, cache: bool = True) -> AbstractContextManager[Any]:
        """What matrix products are computed in, for the code inside.

        Args:
            cache: keep cast weights until the end of a pass.
        """
        wanted = self.cast and self.format != "float32"
        return torch.autocast(self.device.type, self.dtype, enabled=wanted, cache_enabled=cache)

    def check(self, made: Tensor | None) -> None:
        """Raise `HwmError` where numbers were too large for float16, which ends at 65,504; other formats reach as far
        as float32."""
        if self.format == "float16" and made is not None and made.is_floating_point() and made.isnan().any():
            raise HwmError("what the model made is not finite in float16: take dtype bfloat16 or float32")

    def __str__(self) -> str:
        return f"{name_of(self.device)}, {self.format}"


class Late:
    """Numbers on their way from a device, for which nobody waits until they are read."""

    def __init__(self, values: Tensor) -> None:
        self.event = None
        self.values = values
        if values.device.type == "cuda":
            self.values = values.to("cpu", non_blocking=True)  # into page-locked memory, which PyTorch sees to
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        if self.event:
            self.event.synchronize()
        return self.values.tolist()


def open_runtime(device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", threads: int = 0) -> Runtime:
    """The device and the number format that are meant, with PyTorch set up for them.

    Args:
        device: as `find_device`; dtype: as `choose_format`; threads: of the CPU, 0 leaves torch's choice.

    Raises:
        HwmError: there is no such device, or it has no such format.
    """
    if threads:
        torch.set_num_threads(threads)
    where = find_device(device)
    return Runtime(where, choose_format(dtype, where))


def runtime_of(module: Any, dtype: str | torch.dtype = "auto") -> Runtime:
    """Where a module is, and the number format that it computes in there.

    A module whose weights are narrower than float32, as those of large models are, computes in their format: cast to
    another they would be no more exact, and take the room that they were meant to save.

    Args:
        dtype: as `choose_format`.

    Raises:
        HwmError: there is no such format, or it is another than that of such weights.
    """
    device, own = device_of(module, torch.device("cpu")), format_of(module)
    if own == "float32":
        return Runtime(device, choose_format(dtype, device))
    if _name(dtype) != "auto" and choose_format(dtype, device) != own:
        raise HwmError(f"these weights are in {own}, which is what they compute in: take dtype {own} or auto")
    return Runtime(device, own, cast=False)


@contextmanager
def exact() -> Iterator[None]:
    """Inside, an NVIDIA card computes float32 as float32 and not as TF32, which keeps ten bits of a number, as float16
    does: for what is kept as data, such as the ids of pictures."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def find_device(name: str | torch.device = "auto") -> torch.device:
    """A device by its name: auto, cpu, cuda, cuda:1, mps. On an NVIDIA card float32 products may use TF32.

    Raises:
        HwmError: this machine, or this build of PyTorch, has no such device.
    """
    wanted = str(name)
    if wanted == "auto":
        mps = not torch.cuda.is_available() and torch.backends.mps.is_available()
        wanted = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind, _, number = wanted.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
        raise unknown("device", wanted, ("auto", "cpu", "cuda", "mps"))
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise HwmError(f"device {wanted!r}: this machine or this build of PyTorch has no CUDA; take cpu or auto")
        if int(number or 0) >= (there := torch.cuda.device_count()):
            raise HwmError(f"device {wanted!r}: this machine has {there} cards, of numbers 0 to {there - 1}")
        torch.set_float32_matmul_precision("high")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise HwmError(f"device {wanted!r}: this machine or this build of PyTorch has no MPS; take cpu or auto")
    return torch.device(wanted)


def choose_format(wanted: str | torch.dtype, device: torch.device) -> str:
    """A number format's name: what is wanted (by name or as PyTorch's type), or for `auto` what suits the device.

    An NVIDIA card computes in bfloat16 where it has arithmetic for it, else in float16 (V100, T4). What a CPU or
    Apple's GPU is good at is measured: bfloat16 where its matrix products are at least `FASTER` times as fast.

    Raises:
        HwmError: there is no such format.
    """
    name = _name(wanted)
    if name != "auto":
        if name not in FORMATS:
            raise unknown("number format", name, ("auto", *FORMATS))
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return faster_format(device)


def _name(of: str | torch.dtype) -> str:
    return str(of).removeprefix("torch.")


@cache
def faster_format(device: torch.device) -> str:
    """bfloat16 or float32, by a comparison of matrix products."""
    try:
        half = peak_flops(device, "bfloat16", seconds=0.1)
    except (RuntimeError, TypeError):  # an Apple GPU or a version of macOS without it
        return "float32"
    return "bfloat16" if half > FASTER * peak_flops(device, "float32", seconds=0.1) else "float32"


def peak_flops(device: torch.device, dtype: str, size: int = 1024, seconds: float = 0.3) -> float:
    """Measured FLOP/s of a square matrix product, as a Linear does it: what utilisation is compared with."""
    size = 8192 if device.type == "cuda" else size
    a, b = (torch.randn(size, size, device=device, dtype=FORMATS[dtype]) for _ in range(2))
    linear(a, b)  # CPUs without bfloat16 arithmetic are twenty times slower at a @ b
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        linear(a, b)
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in bytes: of the GPU where one is used, else of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


@cache
def machine_memory() -> float:
    """Bytes of ordinary memory that this machine has, or that its container may take; 0 where nothing tells."""
    try:
        found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 0.0
    try:
        return min(found, float(CONTAINER.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no such file, or "max"
        return found


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def name_of(device: torch.device) -> str:
    """What a device is called in results: a card by its model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def format_of(thing: Any) -> str:
    """The number format of most of a module's weights; float32 for what has none."""
    sizes = Counter[torch.dtype]()
    for weight in thing.parameters() if isinstance(thing, nn.Module) else ():
        sizes[weight.dtype] += weight.numel()
    most = sizes.most_common(1)[0][0] if sizes else torch.float32
    return next((name for name, each in FORMATS.items() if each == most), "float32")


def device_of(thing: Any, default: torch.device) -> torch.device:
    """Where the weights of a module are; `default` for what has none."""
    if isinstance(thing, nn.Module):
        for tensor in [*thing.parameters(), *thing.buffers()]:
            return tensor.device
    return default
