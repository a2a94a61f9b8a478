"""The home: the same for every seed but for what stands about, passable, and gone about as a whole."""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import numpy as np
import pytest

if importlib.util.find_spec("mujoco") is None:  # not imported here: the OpenGL backend is chosen first
    pytest.skip("the extra `sim` is not installed", allow_module_level=True)

from hwm.sim import HumanoidSim, graphics, simulate_episode
from hwm.sim.behaviour import wrap
from hwm.sim.episode import behaviour
from hwm.sim.home import DOOR_HALF
from hwm.sim.plan import Home
from hwm.sim.robot import BASE_RADIUS
from hwm.sim.routes import Routes


def _opengl() -> bool:
    try:
        graphics.choose_backend()
    except RuntimeError:
        return False
    return True


drawn = pytest.mark.skipif(not _opengl(), reason="no headless OpenGL (libegl1 or libosmesa6)")


@pytest.fixture(scope="module")
def blind() -> HumanoidSim:
    """A home without a renderer, shared by the tests of this module."""
    return HumanoidSim(3, render=False, world="home")


@pytest.fixture(scope="module")
def home(blind: HumanoidSim) -> Home:
    assert isinstance(blind.room, Home)
    return blind.room


def test_another_world_is_refused() -> None:
    with pytest.raises(ValueError, match="no world 'house'; there are rooms, home"):
        HumanoidSim(0, render=False, world="house")  # type: ignore[arg-type]


def test_walls_stay_and_objects_vary(blind: HumanoidSim, home: Home) -> None:
    other = HumanoidSim(4, render=False, world="home")
    assert isinstance(other.room, Home)
    assert other.room.walls == home.walls
    assert other.room.furniture == home.furniture
    assert other.room.doorways == home.doorways
    assert all(np.array_equal(pixels, other.room.textures[name]) for name, pixels in home.textures.items())

    def things(sim: HumanoidSim) -> list[tuple[float, ...]]:
        return [tuple(sim.model.body(item.name).pos) for item in sim.room.objects]

    assert set(things(blind)).isdisjoint(things(other))
    assert things(blind) == things(HumanoidSim(3, render=False, world="home"))
    assert not np.array_equal(blind.model.light_diffuse, other.model.light_diffuse)
    assert not np.array_equal(blind._start, other._start)


def test_starts_are_free_and_in_all_rooms() -> None:
    """Nothing touches the robot at the start; the objects lie still, on the floor or on their table."""
    rooms = set()
    for seed in range(8):
        sim = HumanoidSim(seed, render=False, world="home")
        position, _ = sim.pose()
        assert sim.room.is_free(position, 0.45)
        assert np.abs(sim.state()[23:]).max() < 0.02
        for item in sim.room.objects:
            place = sim.object_position(item.name)
            assert np.hypot(*(place[:2] - position)) > BASE_RADIUS + 0.1
            assert abs(place[2] - sim.room.level(place)) < item.radius + 0.02
            assert (sim.room.level(place) > 0) == item.on_table
        assert isinstance(sim.room, Home)
        rooms.add(sim.room.space_of(position))
    assert rooms == {0, 1, 2}


def test_every_door_can_be_driven_through(blind: HumanoidSim, home: Home) -> None:
    """Straight ahead at full speed, from a metre before each doorway to a metre behind it, both ways."""
    for x0, x1, y0, y1 in home.doorways:
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        through = np.array([1.0, 0.0]) if x1 - x0 < y1 - y0 else np.array([0.0, 1.0])
        assert max(x1 - x0, y1 - y0) == pytest.approx(2 * DOOR_HALF)
        for way in (through, -through):
            blind.reset()
            blind.place(middle - way, float(np.arctan2(way[1], way[0])))
            before = home.space_of(blind.pose()[0])
            action = blind.home.copy()
            action[23] = 1.0
            for _ in range(66):
                blind.step(action)
            position, _ = blind.pose()
            assert (position - middle) @ way > 0.9
            assert home.space_of(position) != before


def test_walls_stop_the_base(blind: HumanoidSim, home: Home) -> None:
    """Beside the doorway there is no way through."""
    for x0, x1, y0, y1 in home.doorways:
        across = np.array([0.0, 1.0]) if x1 - x0 < y1 - y0 else np.array([1.0, 0.0])
        way = across[::-1]
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) - across * (DOOR_HALF + 0.3)
        blind.reset()
        blind.place(middle - 0.6 * way, float(np.arctan2(way[1], way[0])))
        action = blind.home.copy()
        action[23] = 1.0
        for _ in range(60):
            blind.step(action)
        assert (blind.pose()[0] - middle) @ way < 0


def test_placing_moves_the_base_alone(blind: HumanoidSim) -> None:
    blind.reset()
    action = blind.home.copy()
    action[6], action[23], action[24] = -0.8, 0.5, 1.0
    for _ in range(15):
        blind.step(action)
    before, moved = blind.state(), blind.data.qpos.copy()
    blind.place(np.array([0.3, 4.0]), 1.2)
    position, yaw = blind.pose()
    assert position == pytest.approx([0.3, 4.0])
    assert yaw == pytest.approx(1.2)
    after = blind.state()
    assert np.array_equal(after[:23], before[:23])
    assert after[23:] == pytest.approx([0, 0], abs=1e-6)
    assert np.flatnonzero(blind.data.qpos != moved).tolist() == blind._base_qpos.tolist()
    blind.reset()
    assert np.abs(blind.pose()[0] - blind._start).max() < 0.02


def test_routes_lead_through_the_doors(home: Home) -> None:
    routes = Routes(home, (-6.65, -2.1), (2.25, 6.5))
    way = routes.way(np.array([-5.5, 0.5]), np.array([-0.9, 5.0]))
    assert len(way) > 3
    points = [np.array([-5.5, 0.5]), *way]
    for a, b in pairwise(points):
        assert all(home.is_free(a + (b - a) * k / 20, 0.3) for k in range(1, 20))
    assert {home.space_of(point) for point in points} == {0, 1, 2}


def test_outside_nothing_is_free(home: Home) -> None:
    for point in ((5.0, 5.0), (-4.0, 4.0), (0.0, -2.15), (2.3, 0.0)):
        assert home.clearance(np.array(point)) == 0


def test_behaviour_goes_about_the_home() -> None:
    """Forty seconds: more than one room, all directions, whole turns, to and fro, and no wall is driven into."""
    sim = HumanoidSim(11, render=False, world="home")
    commands = behaviour(sim, 11)
    rooms, headings, turned, moved = set(), set(), 0.0, []
    _, before = sim.pose()
    for _ in range(40 * 30):
        action = next(commands)
        sim.step(action)
        position, yaw = sim.pose()
        turned += abs(wrap(yaw - before))
        before = yaw
        moved.append(action[23])
        headings.add(int(np.floor(yaw / (np.pi / 4))) % 8)
        assert isinstance(sim.room, Home)
        rooms.add(sim.room.space_of(position))
        assert sim.room.is_free(position, BASE_RADIUS)
    assert len(rooms) >= 2
    assert len(headings) == 8
    assert turned > 4 * np.pi
    assert min(moved) < -0.2
    assert max(moved) > 0.5


@drawn
def test_same_seed_same_pixels_and_other_seed_others() -> None:
    first = simulate_episode(7, 0.7, size=64, every=3, world="home")
    again = simulate_episode(7, 0.7, size=64, every=3, world="home")
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    assert first[0].std() > 20
    other = simulate_episode(8, 0.7, size=64, every=3, world="home")
    assert np.abs(other[0][0].astype(int) - first[0][0]).mean() > 5


@drawn
def test_rooms_can_be_told_apart_from_every_heading() -> None:
    """No view of one room is as like a view of another as to be taken for it, and light changes little by seed."""
    views = {}
    for seed in (0, 1):
        with HumanoidSim(seed, 64, world="home") as sim:
            assert isinstance(sim.room, Home)
            for k, space in enumerate(sim.room.spaces):
                for turn in range(8):
                    sim.place(np.array([space.x, space.y]), turn * np.pi / 4)
                    views[seed, k, turn] = sim.frame().astype(float)[:40]  # above the arms
    for (seed, k, turn), view in views.items():
        if seed == 0:
            others = {key: np.abs(view - other).mean() for key, other in views.items() if key[0] == 1}
            assert min(others, key=lambda key: others[key])[1:] == (k, turn)


@drawn
def test_shadows_lie_below_objects() -> None:
    with HumanoidSim(2, 64, world="home") as sim:
        thing = next(item for item in sim.room.objects if not item.on_table)
        place = sim.object_position(thing.name)[:2]
        sim.place(place - [0.0, 0.9], np.pi / 2)
        with_shadows = sim.frame().astype(int)
        sim.room.shadow = ""
        assert (sim.frame().astype(int) - with_shadows).max() > 20
