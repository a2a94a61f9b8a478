"""What can be asked for when something is computed: device, number format, threads. Imports no PyTorch, as options
are shown without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from hwm.errors import HwmError

if TYPE_CHECKING:
    from hwm.devices import Runtime

Format = Literal["auto", "float32", "bfloat16", "float16"]
"""A number format by name; `auto` is what suits the device (`hwm.devices.choose_format`)."""


@dataclass(frozen=True, kw_only=True)
class Computing:
    """Where to compute, and how: what every command that computes asks for.

    Attributes:
        device: auto (an NVIDIA card, Apple's GPU or else the CPU), cpu, cuda, one card by number (cuda:1), or mps.
        dtype: number format of matrix products; auto takes bfloat16 where the device is faster at it.
        threads: CPU threads; 0 leaves torch's choice.
    """

    device: str = "auto"
    dtype: Format = "auto"
    threads: int = 0

    def start(self) -> Runtime:
        """The device and the number format that are meant, with PyTorch set up for them.

        Raises:
            HwmError: there is no such device, it has no such format, or `threads` is negative.
        """
        from hwm.devices import open_runtime

        if self.threads < 0:
            raise HwmError(f"threads must not be negative, got {self.threads}")
        return open_runtime(self.device, self.dtype, self.threads)


@dataclass(frozen=True, kw_only=True)
class ExactComputing(Computing):
    """The same for what makes data or is compared with data, whose results are not to depend on the machine.

    Attributes:
        dtype: number format; auto is float32, on every device. In a narrower one ids of pictures become others.
    """

    def start(self) -> Runtime:
        return Computing.start(replace(self, dtype="float32") if self.dtype == "auto" else self)
