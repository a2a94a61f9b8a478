"""Work that a GPU is given once and repeats."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Captures:
    """Functions of no arguments that a CUDA device records the first time and replays from then on; elsewhere they are
    called.

    Such a function reads and writes tensors that stay where they are, makes the same calls each time, and waits for
    nothing. Replaying starts all its kernels at once: of hundreds of small ones a GPU is done with each sooner than
    Python has asked for the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Do what a function does, which is the same for every call with a key."""
        if self.device.type != "cuda":
            function()
            return
        if key not in self.graphs:
            self.graphs[key] = self.capture(function)
        self.graphs[key].replay()

    def capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Run it beside the main stream until all that it makes once is made, then record it."""
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(3):
                function()
        torch.cuda.current_stream(self.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None  # they run one after another
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # others may decode pictures
            function()
        return graph
