"""The environment: Gymnasium's own check, and that its steps are a session's."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")
import gymnasium
from gymnasium.utils.env_checker import check_env

from hwm.errors import HwmError
from hwm.interact import env as envs
from hwm.interact.env import ID, WorldModelEnv, register
from hwm.interact.session import Session, World
from hwm.interact.starts import Gallery
from hwm.interact.tasks import distance
from tests.conftest import make_store
from tests.interact.conftest import a_start, build_world
from tests.models.toys import toy_spec


@pytest.fixture
def toy(tmp_path: Path) -> World:
    """A toy world with a gallery of four starts."""
    world = build_world("masked_hwm", past=3, window_stride=2, learned_steps=1)
    arm = {"embodiment": "arm", "action_names": ("shoulder", "elbow", "wrist"), "latent": toy_spec().latent}
    world.gallery = Gallery(make_store(tmp_path / "store", [12, 9], **arm, tokenizer=""), 3, count=4)
    return world


@pytest.fixture
def opened(toy: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """`gymnasium.make` opens the toy world; what it was asked to open."""
    asked: list[tuple[object, ...]] = []

    def open_world(model: str, *, store: str, device: str, dtype: str) -> World:
        asked.append((model, store, device, dtype))
        return toy

    monkeypatch.setattr(envs, "_open", open_world)
    return asked


def test_gymnasiums_check_passes(opened: list[tuple[object, ...]]) -> None:
    env = gymnasium.make(ID, render_mode="rgb_array", max_steps=5).unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env)
    # commands are in the units of the robot; `gymnasium.wrappers.RescaleAction` is there for who wants [-1, 1]
    assert all("symmetric and normalized" in str(w.message) for w in caught), [str(w.message) for w in caught]
    assert opened == [("masked_hwm_mini", "mini_heldout", "auto", "auto")] * len(opened)
    assert opened


def test_its_steps_are_a_sessions(toy: World) -> None:
    env, own = WorldModelEnv(toy, max_steps=3, render_mode="rgb_array"), Session(toy)
    frame, info = env.reset(seed=7, options={"start": "start:2"})
    assert np.array_equal(frame, own.reset("start:2", env.session.seed)[-1])
    assert (info["step"], info["start"]) == (0, "start:2")
    action = np.array([1.0, -2.0, 0.5], np.float32)
    for step in (1, 2, 3):
        frame, reward, terminated, truncated, info = env.step(action)
        assert np.array_equal(frame, own.step(action, ramp=True)[-1])
        assert np.array_equal(frame, env.render())
        assert (info["step"], info["hash"], truncated) == (step, own.hashes[-1], step == 3)
        assert np.array_equal(info["applied"], own.last)
        assert (reward, terminated) == (0.0, False)
    at_once = WorldModelEnv(toy, ramp=False)
    at_once.reset(seed=7)
    assert at_once.step(action)[4]["applied"] == pytest.approx(toy.limits["arm"].vector(action, action))


def _range(env: WorldModelEnv) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    return env.action_space.low, env.action_space.high


def test_seeds_choose_starts_and_randomness(toy: World) -> None:
    env = WorldModelEnv(toy)

    def episode(seed: int | None) -> tuple[object, ...]:
        _, info = env.reset(seed=seed)
        env.action_space.seed(0)
        return info["start"], env.session.seed, *(env.step(env.action_space.sample())[4]["hash"] for _ in range(4))

    assert episode(1) == episode(1)
    assert len({episode(seed)[0] for seed in range(12)}) == 4
    episode(1)
    assert len({episode(None)[1] for _ in range(4)}) == 4
    assert WorldModelEnv(toy, start="start:3").reset()[1]["start"] == "start:3"


def test_rewards(toy: World) -> None:
    goal = np.full((*toy.tokenizer.size, 3), 9, np.uint8)
    env = WorldModelEnv(toy, goal=goal)
    env.reset(seed=0)
    frame, reward, _, _, info = env.step(env.action_space.sample())
    assert reward == -info["distance"] == -distance(frame, goal)
    assert reward < 0
    own = WorldModelEnv(toy, reward=lambda frame, info: 10 * info["step"] + float(frame.mean()))
    own.reset(seed=0)
    for step in (1, 2):
        frame, reward, *_ = own.step(own.action_space.sample())
        assert reward == 10 * step + frame.mean()


def test_what_never_moves_still_has_a_width(toy: World) -> None:
    limits = toy.limits["arm"]
    assert limits.low[2] == limits.high[2]
    low, high = _range(WorldModelEnv(toy))
    assert (high > low).all()
    scaled = gymnasium.wrappers.RescaleAction(WorldModelEnv(toy, ramp=False), -1.0, 1.0)
    for at, edge in ((1, limits.high), (-1, limits.low)):
        scaled.reset(seed=0)
        assert scaled.step(np.full(3, at, np.float32))[4]["applied"] == pytest.approx(edge)


def test_it_is_registered_once_and_comes_in_numbers(opened: list[tuple[object, ...]]) -> None:
    register()
    assert gymnasium.make(f"hwm.interact.env:{ID}", max_steps=2).reset(seed=0)[0].dtype == np.uint8
    vector = gymnasium.make_vec(ID, num_envs=3, max_steps=2)
    frames, info = vector.reset(seed=5)
    assert frames.shape == (3, 16, 16, 3)
    assert len({*info["start"]}) > 1
    truncated = [vector.step(vector.action_space.sample())[3].all() for _ in range(4)]
    assert truncated == [False, True, False, False]  # the step after an episode's end begins the next
    vector.close()


def test_mistakes(toy: World) -> None:
    env = WorldModelEnv(toy)
    with pytest.raises(HwmError, match="reset"):
        env.step(np.zeros(3))
    with pytest.raises(HwmError, match="strat"):
        env.reset(options={"strat": "start:1"})
    with pytest.raises(HwmError, match="start:99"):
        env.reset(options={"start": "start:99"})
    env.reset()
    for action in (np.zeros(2), np.full(3, np.nan)):
        with pytest.raises(HwmError):
            env.step(action)
    for wrong in ({"goal": np.zeros((4, 4, 3), np.uint8)}, {"max_steps": 0}, {"render_mode": "human"}):
        with pytest.raises(HwmError):
            WorldModelEnv(toy, **wrong)
    own = a_start(toy)
    toy.gallery = None
    with pytest.raises(HwmError, match="gallery"):
        WorldModelEnv(toy)
    assert WorldModelEnv(toy, start=own).reset()[1]["start"] == own.name
