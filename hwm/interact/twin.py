"""The true simulator in the place of a start, to be shown or measured beside the model's dream.

The simulator is put into the room of a recording and goes through all its actions again, without drawing. Where a store
keeps its actions in half precision, that is not quite what was recorded. Against the camera of the shipped held-out
rooms, `tests/interact/test_twin.py` finds 28 to 37 dB PSNR (median 34) at its twelve starts, of which the video codec
is the larger part: beside a simulator with the unrounded actions it is 40 to 49 dB at eleven starts, and 29 dB at one
where the robot had touched furniture.

An OpenGL context belongs to one thread, and two simulators of a process can spoil each other's. So `Twin` is for
scripts that use one at a time, and `TwinProcess` for servers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import signal
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from hwm.errors import HwmError
from hwm.interact.starts import Origin
from hwm.sim.graphics import NO_MUJOCO, NO_OPENGL, choose_backend

FINER = 2
"""Drawn so many times finer and averaged, as tokenizers see recordings: edges are smooth in both."""

PATIENCE = 60.0
"""Seconds after which a simulator that does not answer is given up."""


@cache
def available() -> bool:
    """Whether a simulator could run here: MuJoCo is installed, and a way to draw was found."""
    if importlib.util.find_spec("mujoco") is None:
        return False
    try:
        choose_backend()
    except RuntimeError:
        return False
    return True


class Twin:
    """The simulator at a start. Close it, or use `with`, before the next one of the process is made.

    Args:
        origin: room and actions so far (`Start.origin`).
        size: side of its frames in pixels.

    Raises:
        HwmError: MuJoCo or a way to draw is missing (the message names the packages), or the actions are not of this
            robot.
    """

    def __init__(self, origin: Origin, size: int) -> None:
        from hwm.sim.simulator import HumanoidSim

        self.size = size
        try:
            self._sim = HumanoidSim(origin.seed, size * FINER)
        except (ImportError, RuntimeError, ValueError) as error:
            raise HwmError(str(error)) from error
        try:
            for actions in origin.actions[1:]:  # row 0 is the command in force at the beginning: the simulator has it
                self.step(actions)
        except HwmError:
            self.close()
            raise

    def step(self, actions_KA: np.ndarray) -> None:
        """Apply the K actions that lead to the next step.

        Raises:
            HwmError: actions of another width, or values that are not finite.
        """
        try:
            for action in actions_KA:
                self._sim.step(action)
        except ValueError as error:
            raise HwmError(f"true simulator: {error}") from error

    def frame(self) -> np.ndarray:
        """What the robot sees now, (size, size, 3) uint8."""
        fine = self._sim.frame().reshape(self.size, FINER, self.size, FINER, 3)
        return fine.mean((1, 3)).round().astype(np.uint8)

    def close(self) -> None:
        """Free the OpenGL context."""
        self._sim.close()

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
