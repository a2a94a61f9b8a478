"""Many sessions on one model: a thread that computes steps, a thread that makes pictures of them.

While the pictures of one step are made the next is computed. Jobs are taken in the order they came, and those of one
session stay in order. Sessions whose steps wait at the same time are computed as one batch of at most `batch`.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.interact.limits import Action
from hwm.interact.session import Session, World, advance
from hwm.pictures.files import jpeg
from hwm.pictures.stack import side_by_side


@dataclass(frozen=True)
class Shown:
    """What came of a job.

    Attributes:
        pictures: JPEG files of the frames, in order; of several cameras side by side.
        last: the last frame, (H, W, 3) uint8, of several cameras one below the other.
        n: steps since the start.
        applied: (A,) the command in force.
        actions: (G, K, A) of the step, none at a reset.
        hash: checksum of the step's latents.
        queue_ms, step_ms, decode_ms: time waited, in the model, and for pictures.
        batch: sessions that were computed together.
    """

    pictures: list[bytes]
    last: np.ndarray
    n: int
    applied: np.ndarray
    actions: np.ndarray
    hash: int
    queue_ms: float
    step_ms: float
    decode_ms: float
    batch: int


@dataclass
class Job:
    """A step towards a command, or (`change`) anything else that is done to a session and then shown."""

    session: Session
    quality: int
    action: Action = field(default_factory=dict)
    ramp: bool = True
    change: Callable[[Session], Any] | None = None
    queued: float = field(default_factory=time.perf_counter)
    future: Future[Shown] = field(default_factory=Future)


@dataclass
class Counters:
    """Totals since the start, for `/metrics`."""

    steps: int = 0
    jobs: int = 0
    errors: int = 0
    step_seconds: float = 0.0
    queue_seconds: float = 0.0
    decode_seconds: float = 0.0


class Engine:
    """Computes jobs.

    Args:
        world: model, tokenizer and starts.
        batch: most sessions computed together. With 1 a step's bits do not depend on who else plays, so replays are
            exact; on a CPU larger batches gain little. 0: 1 on a CPU, 16 on a GPU.
        threads: CPU threads of the model; 0 leaves a core for pictures, server and browser.
    """

    def __init__(self, world: World, batch: int = 0, threads: int = 0) -> None:
        self.world = world
        self.batch = batch or (1 if world.device.type == "cpu" else 16)
        torch.set_num_threads(threads or max(1, torch.get_num_threads() - 1))
        self.counters = Counters()
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._pictures = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._thread = threading.Thread(target=self._work, name="steps", daemon=True)
        self._thread.start()

    def step(self, session: Session, action: Action, ramp: bool = True, quality: int = 85) -> Future[Shown]:
        """One step of a session; the future raises `HwmError` where the command cannot be taken."""
        return self._submit(Job(session, quality, action=action, ramp=ramp))

    def change(self, session: Session, change: Callable[[Session], Any], quality: int = 85) -> Future[Shown]:
        """Do anything else to a session (reset, undo), in its turn, and show it."""
        return self._submit(Job(session, quality, change=change))

    def close(self) -> None:
        """End; jobs that wait are refused."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._pictures.shutdown()

    def _submit(self, job: Job) -> Future[Shown]:
        with self._wake:
            if self._closed:
                raise HwmError("the server is shutting down")
            self._waiting.append(job)
            self._wake.notify()
        return job.future

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                jobs = self._take()
            self._compute([job for job in jobs if job.future.set_running_or_notify_cancel()])
        for job in self._waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(HwmError("the server is shutting down"))

    def _take(self) -> list[Job]:
        """The first job; if it is a step, also steps of other sessions, none before an earlier job of its session."""
        jobs, passed, seen = [self._waiting.popleft()], deque[Job](), set[int]()
        seen.add(id(jobs[0].session))
        while self._waiting and len(jobs) < self.batch and jobs[0].change is None:
            job = self._waiting.popleft()
            alone = job.change is not None or id(job.session) in seen
            seen.add(id(job.session))
            (passed if alone else jobs).append(job)
        self._waiting.extendleft(reversed(passed))
        return jobs

    def _compute(self, jobs: list[Job]) -> None:
        begun = time.perf_counter()
        ready: list[tuple[Job, np.ndarray]] = []
        for job in jobs:
            try:
                if job.change is not None:
                    job.change(job.session)
                    ready.append((job, np.zeros((0, 0, 0), np.float32)))
                else:
                    ready.append((job, job.session.plan(job.action, job.ramp)))
            except Exception as error:
                self._fail(job, error)
        steps = [(job, actions) for job, actions in ready if job.change is None]
        try:
            if steps:
                advance([job.session for job, _ in steps], [actions for _, actions in steps])
        except Exception as error:
            for job, _ in steps:
                self._fail(job, error)
            ready = [(job, actions) for job, actions in ready if job.change is not None]
        seconds = time.perf_counter() - begun
        c = self.counters
        c.jobs, c.steps, c.step_seconds = c.jobs + len(jobs), c.steps + len(steps), c.step_seconds + seconds
        for job, actions in ready:
            s, waited = job.session, begun - job.queued
            c.queue_seconds += waited
            known = (s.steps, s.last, actions, s.hashes[-1] if s.hashes else 0, waited, seconds, len(jobs))
            self._pictures.submit(self._show, job, s.shown(), known)

    def _show(self, job: Job, latents: Tensor, known: tuple[Any, ...]) -> None:
        n, applied, actions, digest, waited, seconds, batch = known
        begun = time.perf_counter()
        try:
            frames = self.world.show(latents)
            pictures = [jpeg(frame, job.quality) for frame in side_by_side(frames, self.world.views)]
        except Exception as error:
            self._fail(job, error)
            return
        took = time.perf_counter() - begun
        self.counters.decode_seconds += took
        job.future.set_result(
            Shown(pictures, frames[-1], n, applied, actions, digest, 1e3 * waited, 1e3 * seconds, 1e3 * took, batch)
        )

    def _fail(self, job: Job, error: Exception) -> None:
        self.counters.errors += 1
        if not isinstance(error, HwmError):  # of the model's own code: whole in this terminal, in a line to the player
            traceback.print_exception(error)
            error = HwmError(f"the model failed: {type(error).__name__}: {error}")
        job.future.set_exception(error)
