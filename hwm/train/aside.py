"""Writing beside the training, one task at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from hwm.train.distributed import World


class Aside:
    """A thread beside the training, in which one checkpoint at a time is written while updates go on.

    All processes make one, and none may be left waiting for a checkpoint that others do not write.
    """

    def __init__(self, world: World) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.group = world.group("gloo")  # of its own: the training's must not see what is sent in between
        self.pending: Future[Any] | None = None

    def begin(self, task: Callable[[], Any]) -> None:
        self.wait()
        self.pending = self.pool.submit(task)

    def wait(self) -> None:
        """Until what was begun is done; raises what it raised."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()
