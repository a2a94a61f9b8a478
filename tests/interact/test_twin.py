"""The true simulator in the place of a start: it shows what the camera showed there, also from another process."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from hwm.assets import STORES
from hwm.data.store import Store
from hwm.errors import HwmError
from hwm.interact import twin as twins
from hwm.interact.starts import Gallery, spread
from hwm.interact.twin import TwinProcess
from hwm.pictures.video import read_video, to_uint8, to_video
from hwm.sim import twin as simulated_twins
from hwm.sim.twin import FINER, Origin, Twin, available
from hwm.sim.worlds import World

SIZE = 32

simulated = pytest.mark.skipif(not available(), reason="the extra `sim` or a way to draw is missing")


def episode(seed: int = 3, steps: int = 12, per_step: int = 3, world: World = "rooms") -> tuple[Origin, np.ndarray]:
    """An episode as it is recorded, but unrounded and unencoded: its origin, and the last frame."""
    from hwm.sim.episode import simulate_episode

    seconds = (1 + (steps - 1) * per_step) / 30
    frames, actions, _ = simulate_episode(seed, seconds, SIZE * FINER, per_step, world)
    head = np.repeat(actions[:1], per_step, 0)[None]
    origin = Origin(seed, np.concatenate([head, actions[1:].reshape(steps - 1, per_step, -1)]), world)
    return origin, frames[-1].reshape(SIZE, FINER, SIZE, FINER, 3).mean((1, 3)).round().astype(np.uint8)


@simulated
@pytest.mark.parametrize("world", ["rooms", "home"])
def test_with_all_digits_of_the_actions_it_is_the_recording(world: World) -> None:
    origin, last = episode(world=world)
    with Twin(origin, SIZE) as twin:
        assert np.array_equal(twin.frame(), last)
        twin.step(np.repeat(origin.actions[-1:, 0], 3, 0) + 0.3)
        assert not np.array_equal(twin.frame(), last)
    with Twin(replace(origin, actions=origin.actions[:-6]), SIZE) as earlier:
        assert not np.array_equal(earlier.frame(), last)


@simulated
def test_it_shows_the_cameras_that_were_recorded() -> None:
    origin, last = episode()
    with Twin(replace(origin, cameras=("head", "wrist")), SIZE) as twin:
        head, wrist = np.split(twin.frame(), 2)
    assert np.array_equal(head, last)
    assert np.abs(wrist.astype(int) - head).mean() > 10


@simulated
@pytest.mark.skipif(not STORES["mini_heldout"].exists(), reason="the shipped held-out store is absent")
def test_it_shows_what_the_camera_showed() -> None:
    """With actions of half precision, against video that went through a codec: the figures of `twin`'s docstring."""
    store, past, size = Store(STORES["mini_heldout"]), 6, 128
    gallery, psnr = Gallery(store, past), []
    for ((where, step),) in spread(store, past, 12):
        origin = gallery[f"{where.id}@{step}"].origin
        assert origin is not None
        number = (step + past - 1) * int(where.info["frames_per_step"])
        (camera,) = read_video(store.video(where), start=number, stop=number + 1)
        with Twin(origin, size) as twin:
            error = twin.frame().astype(float) - to_uint8(to_video(camera[None], (size, size)))[0]
        psnr.append(10 * np.log10(255**2 / np.mean(error**2)))
    assert min(psnr) > 25
    assert np.median(psnr) > 32


@simulated
def test_mistakes_of_the_caller() -> None:
    origin, last = episode(steps=2)
    with Twin(origin, SIZE) as twin:
        before = twin.frame()
        for wrong in (np.zeros((1, 7)), np.full((1, 25), np.nan)):
            with pytest.raises(HwmError, match="25 finite numbers"):
                twin.step(wrong)
        assert np.array_equal(twin.frame(), before)
    for wrong_origin in (
        Origin(-1, origin.actions),
        Origin(0, np.zeros((3, 2, 7))),
        replace(origin, world="garden"),  # type: ignore[arg-type]
    ):
        with pytest.raises(HwmError):
            Twin(wrong_origin, SIZE)
    origin, again = episode(steps=2)  # what failed left no context behind that spoils the next
    assert np.array_equal(again, last)


@simulated
def test_another_process_shows_the_same() -> None:
    origin, last = episode()
    action = np.repeat(origin.actions[-1:, 0], 3, 0) + 0.2
    with Twin(origin, SIZE) as twin:
        twin.step(action)
        later = twin.frame()

    async def play() -> None:
        one, other = await asyncio.gather(TwinProcess.start(origin, SIZE), TwinProcess.start(origin, SIZE))
        assert np.array_equal(await one.frame(), last)
        await one.step(action)
        with pytest.raises(HwmError, match="25 finite numbers"):
            await one.step(np.zeros((1, 7)))
        assert np.array_equal(await one.frame(), later)
        assert np.array_equal(await other.frame(), last)
        os.kill(one._process.pid, signal.SIGKILL)
        with pytest.raises(HwmError, match="has ended"):
            await one.frame()
        with pytest.raises(HwmError, match="has ended"):
            await one.step(action)
        assert np.array_equal(await other.frame(), last)  # nobody else suffers
        waiting = asyncio.create_task(other.step(np.repeat(action, 1000, 0)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(HwmError, match="has ended"):  # and no stale answer is taken for a frame
            await other.frame()
        for each in (one, other, one):
            await each.close()
            assert not each._process.is_alive()

    asyncio.run(play())


@simulated
def test_a_process_that_cannot_begin_says_why_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = twins.TwinProcess.__init__

    def spy(self: TwinProcess, process: object, pipe: object) -> None:
        real(self, process, pipe)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(TwinProcess, "__init__", spy)
    with pytest.raises(HwmError, match="25 finite numbers"):
        asyncio.run(TwinProcess.start(Origin(0, np.zeros((3, 2, 7))), SIZE))
    assert not made[0]._process.is_alive()
    monkeypatch.setattr(twins, "PATIENCE", 0.0)
    with pytest.raises(HwmError, match="did not answer"):
        asyncio.run(TwinProcess.start(Origin(0, np.zeros((1, 2, 25))), SIZE))
    assert not made[1]._process.is_alive()


def test_without_mujoco_or_a_way_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(0, np.zeros((1, 1, 25), np.float32))
    monkeypatch.setattr(twins, "available", lambda: False)
    monkeypatch.setattr(twins.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HwmError, match=r"\[sim\]"):
        asyncio.run(TwinProcess.start(origin, SIZE))
    assert not available.__wrapped__()
    monkeypatch.setattr(twins.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(HwmError, match="OpenGL"):
        asyncio.run(TwinProcess.start(origin, SIZE))

    def none() -> str:
        raise RuntimeError

    monkeypatch.setattr(simulated_twins, "choose_backend", none)
    assert not available.__wrapped__()
