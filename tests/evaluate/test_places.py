"""Places are found by what is seen from them, and looking changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwm.evaluate.drift import FLOOR, floor_of
from hwm.evaluate.places import Locator, Map, Search, apart, rotation, squared
from hwm.sim.twin import Origin, Twin, available
from hwm.sim.views import FACES, Views, fovy_of, rays, texels

SIDE = 32
pytestmark = pytest.mark.skipif(not available(), reason="the extra `sim` or a way to draw is missing")


def origin(steps: int = 8) -> Origin:
    """A robot that turns and lowers its head a little, so that body and world are both in view."""
    from hwm.sim.robot import index_of
    from hwm.sim.simulator import HumanoidSim

    with HumanoidSim(3, render=False) as sim:
        command = np.array(sim.home, np.float32)
    command[index_of("ANGULAR_VELOCITY")], command[index_of("NECK_PITCH")] = 1.0, 0.3
    return Origin(3, np.tile(command, (steps, 3, 1)))


@pytest.fixture(scope="module")
def twin():
    with Twin(origin(), SIDE) as twin:
        yield twin


def picture(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1).float() / 255


def test_looking_changes_nothing(twin) -> None:
    begin = origin()
    views, before = Views(twin), twin.pose()
    twin.step(begin.actions[-1])
    seen = views.seen_from(np.stack([twin.pose(), before + np.array([0.5, 0.5, 1.0])]))
    views.body()
    views.surroundings(np.array([[0.0, 0.0, 1.2]]), 8)
    assert np.abs(seen[0].astype(float) - twin.frame()).mean() < 2, "from where it is it sees what it sees"
    assert np.abs(seen[1].astype(float) - twin.frame()).mean() > 10
    twin.step(begin.actions[-1])
    here = twin.pose(), twin.sim.data.qpos.copy()
    # the context of the twin of the fixture is that of this thread: a second simulator draws nothing
    from hwm.sim.simulator import HumanoidSim

    with HumanoidSim(3, render=False) as undisturbed:
        for action in np.concatenate([*begin.actions[1:], begin.actions[-1], begin.actions[-1]]):
            undisturbed.step(action)
        assert np.allclose(undisturbed.data.qpos, here[1], atol=1e-9)


@pytest.mark.parametrize("yaw", [2.0, -0.7])
def test_surroundings_turned_are_what_the_camera_sees(twin, yaw: float) -> None:
    """All conventions at once: the cube's faces, the camera's axes and field of view, and the robot's own body."""
    views, face, pose = Views(twin), 32, np.array([0.4, -0.5, yaw])
    offset, axes = views.camera()
    body, true = views.body(), views.seen_from(pose[None])[0].astype(float)
    around = views.surroundings((rotation(yaw) @ offset + [*pose[:2], 0])[None], face).reshape(-1, 3)

    def seen(heading: float) -> np.ndarray:
        looks = rays(SIDE, fovy_of(twin)) @ axes.T @ rotation(heading).T
        return around[texels(looks, face)].astype(float)

    def like(heading: float) -> float:
        return float(np.corrcoef(seen(heading)[~body].ravel(), true[~body].ravel())[0, 1])

    assert 0.02 < body.mean() < 0.6
    assert like(yaw) > 0.85, "what lights the world comes from the camera, so that shades differ a little"
    assert like(-yaw) < 0.5
    assert all(like(yaw + wrong) < like(yaw) for wrong in (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4))
    error = np.abs(seen(yaw) - true).mean(-1)
    assert error[body].mean() > 2 * error[~body].mean(), "the robot is not in the map, and nothing else is missing"


def test_texels_of_the_faces() -> None:
    directions = np.array([[1, 0.01, 0.01], [0.01, 1, 0.01], [-1, 0.01, 0.01], [0.01, -1, 0.01], [0.01, 0.01, -1]])
    assert (texels(directions, 8) // 64).tolist() == list(range(len(FACES)))
    up_and_right = texels(np.array([1.0, -0.9, 0.9]), 8)
    assert up_and_right == 7, "the first face looks along x: to its right is -y; rows go down"
    assert 0 <= texels(np.array([0.1, 0.1, 1.0]), 8) < len(FACES) * 64, "nobody looks there, and nothing breaks"


def test_the_floor_has_its_furniture(twin) -> None:
    floor, corner = floor_of(twin, Map.of(twin, Search()))
    free = np.argwhere(floor)[:, ::-1] * FLOOR + corner
    assert len(free) > 500
    for piece in twin.sim.room.furniture:
        inside = np.abs(free - [piece.x, piece.y]) < [piece.half_x, piece.half_y]
        assert not inside.all(1).any()


def test_places_are_found(twin) -> None:
    search = Search(grid=0.6, turn=15, candidates=12, moved=4, finest=0.1, side=32)
    known = Map.of(twin, search)
    assert all(not twin.sim.room.is_free(p, 0.7) or apart(np.r_[p, 0], np.zeros(3))[0] < 5 for p in known.points)
    locator, views = Locator(twin, known, squared, search), Views(twin)
    true = np.array([0.4, -0.5, 2.0])
    seen = picture(views.seen_from(true[None])[0])
    for shown in (seen, F.avg_pool2d(seen, 3, 1, 1) * 0.8 + 0.1):  # blurred, paler: as dreams are
        metres, degrees = apart(locator.find(shown), true)
        assert metres < 0.3
        assert degrees < 8
    assert len(known.drawn) == 1, "the world is drawn once for one height of the camera"
