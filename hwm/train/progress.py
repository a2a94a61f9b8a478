"""The progress line of a run: loss, tokens a second, FLOP utilisation, memory, time left."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hwm.devices import peak_memory, synchronize

RECENT = 9
"""Lines whose updates say how long further ones take: their median, for which one slow line is no news."""


class Meter:
    """Measures throughput between log lines and shows one line that renews itself on a terminal.

    Throughput is that of updates alone. The time left counts further updates as the recent ones went, and pauses for
    validation and checkpoints as often and as long as so far.

    Args:
        total, start: updates of the run, and how many are done.
        tokens: that an update sees.
        device: whose memory is reported.
        flops: of an update in this process.
        peak: FLOP/s that utilisation is compared with.
        show: whether to print; only one of several processes should.
    """

    def __init__(
        self,
        total: int,
        start: int,
        tokens: int,
        device: torch.device,
        flops: float = 0.0,
        peak: float = 1.0,
        show: bool = True,
    ) -> None:
        self.total, self.tokens, self.device, self.flops, self.peak, self.show = (
            total,
            tokens,
            device,
            flops,
            peak,
            show,
        )
        self.mark, self.mark_step, self.start = time.perf_counter(), start, start
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.pauses = 0.0
        self.terminal = show and sys.stdout.isatty()
        self.shown = 0.0

    def line(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """The values to log, with throughput since the last line; also shows them."""
        memory = peak_memory(self.device)
        if step == self.mark_step:  # all of it was left out
            self.note(f"update {step}/{self.total}  {loss_of(values)}")
            return values | {"memory_bytes": memory}
        now = time.perf_counter()
        seconds = (now - self.mark) / (step - self.mark_step)
        self.mark, self.mark_step = now, step
        out = values | {"seconds": seconds, "tokens_per_second": self.tokens / seconds, "memory_bytes": memory}
        if self.flops:
            out["utilisation"] = self.flops / seconds / self.peak
        self.recent.append(seconds)
        pauses = self.pauses / max(1, step - self.start)
        left = (self.total - step) * (statistics.median(self.recent) + pauses)
        text = (
            f"update {step}/{self.total}  {loss_of(values)}  {out['tokens_per_second']:,.0f} tokens/s  "
            f"{out.get('utilisation', 0):.0%} of peak  {memory / 2**30:.1f} GiB  {clock(left)} left"
        )
        if self.terminal:
            print(f"\r{text}\x1b[K", end="", flush=True)
        elif self.show and (now - self.shown > 20 or step == self.total):  # a file gets a line now and then
            print(text, flush=True)
            self.shown = now
        return out

    def note(self, text: str) -> None:
        if self.show:
            print(f"\r{text}\x1b[K" if self.terminal else text, flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside out of the throughput."""
        synchronize(self.device)  # what an update has still to do is its own
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        self.mark, self.pauses = self.mark + took, self.pauses + took

    def leave_out(self, step: int, what: str) -> None:
        """Tell how long it took to get to this update, and leave that out of the throughput."""
        synchronize(self.device)
        now = time.perf_counter()
        self.note(f"{what}: {now - self.mark:.0f} s")
        self.mark, self.mark_step = now, step

    def close(self) -> None:
        if self.terminal:
            print(flush=True)


def loss_of(values: dict[str, float]) -> str:
    """The loss of an update in words: that on true context, or that on own rollouts."""
    return f"loss {values['loss']:.4f}" if "loss" in values else f"loss on own rollouts {values['own_loss']:.4f}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    s = int(seconds)
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"
