"""Progress of long work: a bar with throughput and time left on a terminal, a line now and then in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


class _Rate(ProgressColumn):
    def __init__(self, scale: float, unit: str) -> None:
        super().__init__()
        self.scale, self.unit = scale, unit

    def render(self, task: Task) -> Text:
        return Text(f"{(task.speed or 0) * self.scale:,.1f} {self.unit}/s")


def track(items: Iterable[T], total: int, what: str, scale: float = 1.0, unit: str = "items") -> Iterator[T]:
    """Pass items through and show how far they are; `scale` units an item."""
    if not sys.stdout.isatty():
        yield from _lines(items, total, what, scale, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, _Rate(scale, unit), TimeRemainingColumn()) as bar:
        yield from bar.track(items, total=total, description=what)


def _lines(items: Iterable[T], total: int, what: str, scale: float, unit: str) -> Iterator[T]:
    start = shown = time.monotonic()
    for i, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if i == total or now - shown > 15:
            rate = i / max(1e-9, now - start)
            print(f"{what}: {i}/{total}, {rate * scale:,.1f} {unit}/s, {(total - i) / rate:.0f} s left", flush=True)
            shown = now


@contextmanager
def bar(what: str, total: int, unit: str = "items", wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """A function that moves a bar on the terminal's error output on; there is none where that is no terminal.

    Args:
        total: how many units there are to do.
        wanted: False shows none in any case.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    hidden = not (wanted and console.is_terminal)
    shown = *columns, _Rate(1, unit), TimeRemainingColumn()
    with Progress(*shown, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)
