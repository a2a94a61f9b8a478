"""The simulator and its behaviour: physics, grasping, keep-out, identifiable commands."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("mujoco") is None:  # not imported here: the OpenGL backend is chosen first
    pytest.skip("the extra `sim` is not installed", allow_module_level=True)

from hwm.sim.behaviour import ANGULAR_STEP, HAND_STEP, JOINT_STEP, LINEAR_STEP, Behaviour, wrap
from hwm.sim.robot import CAMERA_NAME, HIDDEN_GROUP, index_of
from hwm.sim.simulator import FPS, HumanoidSim

LINEAR, ANGULAR = index_of("LINEAR_VELOCITY"), index_of("ANGULAR_VELOCITY")


@pytest.fixture(scope="module")
def blind() -> HumanoidSim:
    """A simulator without a renderer, shared by the tests of this module; each resets it."""
    return HumanoidSim(3, render=False)


def test_reset_and_rest(blind: HumanoidSim) -> None:
    state = blind.reset()
    assert state.shape == (25,)
    assert state.dtype == np.float32
    assert blind.action_limits.shape == (25, 2)
    assert len(blind.action_names) == 25
    for _ in range(30):
        state = blind.step(blind.home)
    assert np.abs(state - blind.home).max() < 0.03


def test_every_action_moves_its_own_state(blind: HumanoidSim) -> None:
    low, high = blind.action_limits.T
    for k, name in enumerate(blind.action_names):
        blind.reset()
        action = blind.home.copy()
        action[k] = np.clip(action[k] + 0.3, low[k], high[k])
        for _ in range(20):
            state = blind.step(action)
        assert state[k] == pytest.approx(action[k], abs=0.06), name
        others = np.delete(np.abs(state - action), [k, LINEAR, ANGULAR])
        assert others.max() < 0.1, name


def test_base_reaches_its_speed_quickly(blind: HumanoidSim) -> None:
    blind.reset()
    action = blind.home.copy()
    action[LINEAR], action[ANGULAR] = 0.3, 1.2
    for _ in range(5):
        state = blind.step(action)
    assert state[LINEAR] == pytest.approx(0.3, abs=0.05)
    assert state[ANGULAR] == pytest.approx(1.2, abs=0.05)


def test_wrong_actions_are_refused(blind: HumanoidSim) -> None:
    with pytest.raises(ValueError, match="25"):
        blind.step(np.zeros(24))
    with pytest.raises(ValueError, match="finite"):
        blind.step(np.full(25, np.nan))
    with pytest.raises(RuntimeError, match="render=False"):
        blind.frame()


def test_a_closed_hand_holds_and_an_open_one_lets_go(blind: HumanoidSim) -> None:
    blind.reset()
    name = next(item.name for item in blind.room.objects if item.on_table)
    address = blind.model.joint(name).qposadr[0]
    blind.data.qpos[address : address + 3] = blind.grip_position(0)
    action = blind.home.copy()
    action[21] = 1.0
    action[6] = -0.8
    for _ in range(20):
        blind.step(action)
    assert blind.held == [name, None]
    assert np.linalg.norm(blind.object_position(name) - blind.grip_position(0)) < 0.05
    action[21] = 0.0
    for _ in range(20):
        blind.step(action)
    assert blind.held == [None, None]
    assert np.linalg.norm(blind.object_position(name) - blind.grip_position(0)) > 0.1


def test_walls_stop_the_base(blind: HumanoidSim) -> None:
    blind.reset()
    action = blind.home.copy()
    action[LINEAR] = 1.0
    for _ in range(8 * FPS):
        blind.step(action)
    position, _ = blind.pose()
    assert abs(position[0]) < blind.room.half_x
    assert abs(position[1]) < blind.room.half_y


def test_the_robot_is_complete(blind: HumanoidSim) -> None:
    model = blind.model
    assert model.camera(CAMERA_NAME).fovy[0] == 85
    shown = model.geom_group != HIDDEN_GROUP
    for side in ("left", "right"):
        palm = model.body(f"g1_{side}_wrist_yaw_link").id
        assert (shown & (model.geom_bodyid == palm)).any()
    assert 9 <= len(blind.room.objects) <= 13
    assert 2 <= len(blind.room.furniture) <= 4


@pytest.fixture(scope="module")
def commands() -> tuple[np.ndarray, np.ndarray, list[np.ndarray], HumanoidSim]:
    """Forty seconds of behaviour in one room: commands, states, positions, the simulator."""
    sim = HumanoidSim(5, render=False)
    behaviour = Behaviour(sim, 5)
    actions, states, places = [], [], []
    for _ in range(40 * FPS):
        actions.append(next(behaviour).copy())
        states.append(sim.step(actions[-1]))
        places.append(sim.pose()[0])
    return np.array(actions), np.array(states), places, sim


def test_commands_never_jump(commands) -> None:
    actions, _, _, sim = commands
    change = np.abs(np.diff(actions, axis=0)).max(0)
    assert change[:21].max() <= JOINT_STEP + 1e-5
    assert change[21:23].max() <= HAND_STEP + 1e-5
    assert change[LINEAR] <= LINEAR_STEP + 1e-5
    assert change[ANGULAR] <= ANGULAR_STEP + 1e-5
    low, high = sim.action_limits.T
    assert (actions >= low - 1e-5).all()
    assert (actions <= high + 1e-5).all()


def test_commands_are_lively(commands) -> None:
    actions, states, _, _ = commands
    assert np.percentile(actions[:, ANGULAR], 10) < -0.4
    assert np.percentile(actions[:, ANGULAR], 90) > 0.4
    assert actions[:, LINEAR].max() > 0.5
    assert actions[:, LINEAR].min() < -0.2
    assert actions[:, :23].std(0)[[0, 2, 3, 6, 9, 13, 16, 20, 21, 22]].min() > 0.08
    still = (np.abs(np.diff(actions, axis=0)).max(1) < 1e-3) & (np.abs(actions[1:, 23:]).max(1) < 0.05)
    assert still.mean() < 0.15
    assert np.abs(states[:, 23:] - actions[:, 23:]).mean() < 0.06


def test_the_base_keeps_out_of_furniture(commands) -> None:
    _, _, places, sim = commands
    assert all(sim.room.is_free(place, 0.15) for place in places)


def test_scripts_lift_objects() -> None:
    """Most scripted fetches end with an object in the air."""
    lifts = fetches = 0
    for seed in (0, 1, 2):
        sim = HumanoidSim(seed, render=False)
        behaviour = Behaviour(sim, seed, random_share=0.1)
        for _ in range(20 * FPS):
            sim.step(next(behaviour))
        lifts, fetches = lifts + behaviour.lifts, fetches + behaviour.fetches
    assert fetches >= 2
    assert lifts >= fetches / 2


def test_wrap() -> None:
    assert wrap(3 * np.pi / 2) == pytest.approx(-np.pi / 2)


def test_cameras_see_the_same_moment_from_elsewhere() -> None:
    """One simulator with several cameras draws what simulators with one each draw, and the head's is the usual."""
    try:
        with HumanoidSim(3, 64, cameras=("head", "wrist", "chest")) as sim:
            together = np.split(sim.frame(), 3)
            assert np.array_equal(sim.frame(("wrist",)), together[1])
            action = sim.home.copy()
            action[index_of("RIGHT_ELBOW_PITCH")] += 0.5
            for _ in range(20):
                sim.step(action)
            later = np.split(sim.frame(), 3)
    except RuntimeError as error:
        pytest.skip(str(error))
    with HumanoidSim(3, 64) as sim:
        assert np.array_equal(sim.frame(), together[0])
    assert all(picture.std() > 5 for picture in together)
    change = [np.abs(a.astype(int) - b).mean() for a, b in zip(together, later, strict=True)]
    assert change[1] > 2 * change[0], "the wrist moves with the arm"
    with pytest.raises(ValueError, match="no camera 'foot'; there are head, chest, wrist"):
        HumanoidSim(3, 64, render=False, cameras=("foot",))  # type: ignore[arg-type]
