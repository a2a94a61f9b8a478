"""The true simulator (`hwm.sim.twin`) in a process of its own, for servers."""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import signal
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from hwm.errors import HwmError
from hwm.sim.graphics import NO_MUJOCO, NO_OPENGL
from hwm.sim.twin import Origin, Twin, available

PATIENCE = 60.0
"""Seconds after which a simulator that does not answer is given up."""


class TwinProcess:
    """A `Twin` in a process of its own, for asyncio: `await TwinProcess.start(origin, size)`, then as a `Twin`.

    Every call raises `HwmError` where the simulator cannot do what it is asked, died, or does not answer within
    `PATIENCE`; after the latter two, only `close` is left to do.
    """

    def __init__(self, process: Any, pipe: Connection) -> None:
        self._process, self._pipe = process, pipe
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, origin: Origin, size: int) -> TwinProcess:
        """Start the process and put its simulator at a start: a few seconds, most of them imports."""
        if not available():
            raise HwmError(NO_OPENGL if importlib.util.find_spec("mujoco") else NO_MUJOCO)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), name="twin", daemon=True)
        process.start()
        there.close()
        twin = cls(process, here)
        try:
            await twin._ask("start", origin, size)
        except BaseException:
            await twin.close()
            raise
        return twin

    async def step(self, actions_KA: np.ndarray) -> None:
        """Apply the K actions that lead to the next step."""
        await self._ask("step", actions_KA)

    async def frame(self) -> np.ndarray:
        """What the robot sees now, (size, size, 3) uint8."""
        seen: np.ndarray = await self._ask("frame")
        return seen

    async def close(self) -> None:
        """End the process; more than once is no mistake."""
        self._process.kill()  # it owns nothing that a kill could damage
        await asyncio.to_thread(self._process.join)
        self._pipe.close()

    async def _ask(self, what: str, *given: Any) -> Any:
        async with self._turn:
            try:
                error, answer = await asyncio.to_thread(self._exchange, what, given)
            except asyncio.CancelledError:
                self._process.kill()  # or its answer would be taken for that of the next question
                raise
        if error is not None:
            raise HwmError(error)
        return answer

    def _exchange(self, what: str, given: tuple[Any, ...]) -> tuple[str | None, Any]:
        try:
            self._pipe.send((what, given))
            if not self._pipe.poll(PATIENCE):
                self._process.kill()
                return f"the true simulator did not answer within {PATIENCE:g} seconds", None
            answer: tuple[str | None, Any] = self._pipe.recv()
        except (EOFError, OSError):
            return "the true simulator's process has ended; turn it on again", None
        return answer


def _serve(pipe: Connection) -> None:
    """What the process does: answer until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe
    twin: Any = None
    while True:
        try:
            what, given = pipe.recv()
        except EOFError:
            return
        try:
            if what == "start":
                twin = Twin(*given)
                answer = None
            else:
                answer = getattr(twin, what)(*given)
            pipe.send((None, answer))
        except HwmError as error:
            pipe.send((str(error), None))
