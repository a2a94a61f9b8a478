"""The engine: jobs in order, sessions together, mistakes only to whom they belong."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from hwm.errors import HwmError
from hwm.interact.engine import Engine
from hwm.interact.session import Session, World
from hwm.pictures.files import jpeg
from tests.interact.conftest import a_start, build_world


@pytest.fixture
def world() -> World:
    return build_world()


@pytest.fixture(params=[1, 4])
def engine(request: pytest.FixtureRequest, world: World) -> Iterator[Engine]:
    engine = Engine(world, batch=request.param, threads=1)
    yield engine
    engine.close()


def test_sessions_at_once_give_what_they_give_alone(engine: Engine, world: World) -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(5, 8, 3))
    sessions, futures = [Session(world) for _ in range(5)], []
    for i, session in enumerate(sessions):
        futures.append([engine.change(session, lambda s, i=i: s.reset(a_start(world, i), seed=i))])
    for t in range(8):
        for i, session in enumerate(sessions):
            futures[i].append(engine.step(session, wanted[i, t], ramp=False))
    for i, each in enumerate(futures):
        shown = [f.result(30) for f in each]
        alone = Session(world)
        alone.reset(a_start(world, i), seed=i)
        for t in range(8):
            alone.step(wanted[i, t])
        assert [s.n for s in shown] == list(range(9))
        assert [s.hash for s in shown] == [0, *alone.hashes]
        picture = np.asarray(Image.open(io.BytesIO(shown[-1].pictures[-1])))
        assert np.array_equal(picture, np.asarray(Image.open(io.BytesIO(jpeg(alone.frames()[-1])))))
        assert max(s.batch for s in shown) <= engine.batch
    assert engine.counters.steps == 40


def test_waiting_steps_are_computed_together(world: World) -> None:
    engine, go = Engine(world, batch=4, threads=1), threading.Event()
    sessions = [Session(world) for _ in range(4)]
    for i, session in enumerate(sessions):
        engine.change(session, lambda s, i=i: s.reset(a_start(world, i))).result(30)
    held = engine.change(Session(world), lambda s: (go.wait(30), s.reset(a_start(world))))
    steps = [engine.step(session, [0.0, 0.0, 0.0]) for session in sessions for _ in range(2)]
    go.set()
    assert held.result(30).n == 0
    assert [f.result(30).batch for f in steps] == [4] * 8
    assert [f.result(30).n for f in steps] == [1, 2] * 4
    engine.close()


def test_a_mistake_is_its_own_sessions(engine: Engine, world: World) -> None:
    good, bad = Session(world), Session(world)
    engine.change(good, lambda s: s.reset(a_start(world))).result(30)
    futures = [engine.step(bad, [0.0] * 3), engine.step(good, [0.0] * 2), engine.step(good, [0.0] * 3)]
    with pytest.raises(HwmError, match="reset the session"):
        futures[0].result(30)
    with pytest.raises(HwmError, match="3 values"):
        futures[1].result(30)
    assert futures[2].result(30).n == 1
    assert engine.counters.errors == 2


def test_closing_refuses_what_waits(world: World) -> None:
    engine, go, began = Engine(world, threads=1), threading.Event(), threading.Event()
    held = engine.change(Session(world), lambda s: (began.set(), go.wait(30), s.reset(a_start(world))))
    waiting = engine.step(Session(world), [0.0] * 3)
    assert began.wait(30)
    closing = threading.Thread(target=engine.close)
    closing.start()
    go.set()
    closing.join(30)
    assert held.result(30).n == 0
    with pytest.raises(HwmError, match="shutting down"):
        waiting.result(30)
    with pytest.raises(HwmError, match="shutting down"):
        engine.step(Session(world), [0.0] * 3)


def test_threads_are_left_as_asked(world: World) -> None:
    before = torch.get_num_threads()
    engine = Engine(world, threads=1)
    assert torch.get_num_threads() == 1
    engine.close()
    torch.set_num_threads(before)
