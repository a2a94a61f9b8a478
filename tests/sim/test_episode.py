"""Rendered episodes: shapes, determinism, checks."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("mujoco") is None:  # not imported here: the OpenGL backend is chosen first
    pytest.skip("the extra `sim` is not installed", allow_module_level=True)

from hwm.sim import HumanoidSim, episode, graphics, simulate_episode


def _opengl() -> bool:
    try:
        graphics.choose_backend()
        with HumanoidSim(0, size=16) as sim:
            return sim.frame().shape == (16, 16, 3)
    except (RuntimeError, ImportError):
        return False


pytestmark = pytest.mark.skipif(not _opengl(), reason="no headless OpenGL (libegl1 or libosmesa6)")


@pytest.fixture(scope="module")
def recorded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return simulate_episode(7, 1.5, size=64)


def test_shapes(recorded) -> None:
    frames, actions, states = recorded
    assert frames.shape == (45, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert actions.shape == states.shape == (45, 25)
    assert actions.dtype == states.dtype == np.float32
    assert frames.std() > 5
    assert np.isfinite(actions).all()
    assert np.isfinite(states).all()


def test_same_seed_same_pixels(recorded) -> None:
    again = simulate_episode(7, 1.5, size=64)
    for first, second in zip(recorded, again, strict=True):
        assert np.array_equal(first, second)


def test_replaying_the_actions_gives_the_frames(recorded) -> None:
    """Frame t shows the world after ``actions[t]``, also after a reset."""
    frames, actions, states = recorded
    with HumanoidSim(7, size=64) as sim:
        for _ in range(2):
            sim.reset()
            for t in range(1, 12):
                state = sim.step(actions[t])
            assert np.array_equal(state, states[11])
            assert np.array_equal(sim.frame(), frames[11])


def test_fewer_frames_of_the_same_episode(recorded) -> None:
    frames, actions, states = simulate_episode(7, 1.5, size=64, every=3)
    assert np.array_equal(frames, recorded[0][::3])
    assert np.array_equal(actions, recorded[1])
    assert np.array_equal(states, recorded[2])


def test_seeds_differ(recorded) -> None:
    other = simulate_episode(8, 0.2, size=64)[0]
    assert np.abs(other[0].astype(int) - recorded[0][0].astype(int)).mean() > 5


def test_turning_moves_the_picture() -> None:
    with HumanoidSim(9, size=64) as sim:
        before = sim.frame().astype(int)
        action = sim.home.copy()
        action[24] = 1.5
        for _ in range(15):
            sim.step(action)
        assert np.abs(sim.frame().astype(int) - before).mean() > 8


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        simulate_episode(0, 1.0, every=0)
    with pytest.raises(ValueError, match="no frame"):
        simulate_episode(0, 0.0)


def test_useless_episodes_are_refused() -> None:
    frames = np.full((4, 8, 8, 3), 17, np.uint8)
    numbers = np.zeros((4, 25), np.float32)
    with pytest.raises(RuntimeError, match="almost uniform"):
        episode._check(1, frames, numbers, numbers)
    frames[::2] = 200
    episode._check(1, frames, numbers, numbers)
    with pytest.raises(RuntimeError, match="unstable"):
        episode._check(1, frames, numbers, numbers + np.nan)
