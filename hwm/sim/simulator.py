"""``HumanoidSim``: one robot in a random room or in the home, stepped by 25-dimensional actions at 30 Hz."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hwm.sim import robot
from hwm.sim.building import Place
from hwm.sim.graphics import NO_OPENGL, import_mujoco
from hwm.sim.home import add_home
from hwm.sim.robot import ACTION_NAMES, BASE_JOINTS, JOINT_NAMES, SIDES
from hwm.sim.room import add_room
from hwm.sim.worlds import HEAD, Camera, World

FPS = 30
SUBSTEPS = 6  # physics at 180 Hz
_GRASP_AT, _RELEASE_AT = 0.6, 0.4  # hand closure
_GRASP_REACH = 0.07  # metres from the grip point to the surface of the object's bounding sphere

_WORLDS: dict[World, Callable[[Any, np.random.Generator], Place]] = {"rooms": add_room, "home": add_home}


class HumanoidSim:
    """A simulated wheeled humanoid in one of two kinds of worlds.

    ``rooms`` is another room for each seed. ``home`` is one home of three rooms, in which loose objects,
    light and start vary by seed.

    Everything is a function of ``seed`` and of the actions: two simulators with the same seed that are
    given the same actions draw the same pixels. Call ``close`` (or use ``with``) before the next
    simulator of the process is made: an OpenGL context that is collected late spoils the next one.
    """

    action_names = ACTION_NAMES

    def __init__(
        self,
        seed: int,
        size: int = 256,
        render: bool = True,
        world: World = "rooms",
        cameras: Sequence[Camera] = HEAD,
    ) -> None:
        if world not in _WORLDS:
            raise ValueError(f"there is no world {world!r}; there are {', '.join(_WORLDS)}")
        if wrong := [camera for camera in cameras if camera not in robot.CAMERAS]:
            raise ValueError(f"there is no camera {wrong[0]!r}; there are {', '.join(robot.CAMERAS)}")
        self.seed, self.size, self.world, self.cameras = seed, size, world, tuple(cameras)
        self._mujoco: Any = import_mujoco(rendering=render)
        rng = np.random.default_rng([seed, 1])
        spec = self._empty_world(size)
        self.room = _WORLDS[world](spec, rng)
        position = self._start_position(spec, rng)
        robot.add_robot(spec, position)
        self._add_grasps(spec)
        self.model = spec.compile()
        self.room.fill_textures(self.model)
        self.data = self._mujoco.MjData(self.model)
        self._start = position
        self._start_yaw = rng.uniform(-np.pi, np.pi)
        self._index()
        self.renderer: Any = None
        if render:
            self._open_renderer()
        self.reset()

    # ------------------------------------------------------------------ building
    def _empty_world(self, size: int) -> Any:
        mujoco = self._mujoco
        spec = mujoco.MjSpec()
        spec.compiler.degree = False
        spec.option.timestep = 1.0 / (FPS * SUBSTEPS)
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.iterations, spec.option.ls_iterations = 20, 10
        spec.visual.quality.shadowsize, spec.visual.quality.offsamples = 0, 0
        spec.visual.map.znear = 0.01
        spec.visual.global_.offwidth = spec.visual.global_.offheight = max(size, 64)
        light = spec.visual.headlight
        light.ambient, light.diffuse, light.specular = [0.42] * 3, [0.3] * 3, [0.03] * 3
        spec.stat.extent, spec.stat.center = 4.0, [0, 0, 1]
        return spec

    def _start_position(self, spec: Any, rng: np.random.Generator) -> np.ndarray:
        """A floor point with room around it, or the last of many that have none."""
        places = [spec.body(item.name).pos[:2] for item in self.room.objects]
        for _, position in zip(range(51), self.room.starts(rng), strict=False):
            if self.room.is_free(position, 0.5) and all(np.hypot(*(place - position)) > 0.5 for place in places):
                break
        return position

    def _add_grasps(self, spec: Any) -> None:
        """One switched-off weld for each hand and object; closing a hand around an object turns it on."""
        mujoco = self._mujoco
        for side in SIDES:
            for item in self.room.objects:
                spec.add_equality(
                    name=f"{side}:{item.name}", type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_BODY,
                    name1=robot.hand_body(side), name2=item.name, active=False, solref=[0.04, 1],
                )  # fmt: skip

    def _index(self) -> None:
        """Addresses of joints, actuators and bodies in the compiled model."""
        model = self.model
        self.joint_qpos = np.array([model.joint(name).qposadr[0] for name in JOINT_NAMES])
        self.joint_dof = np.array([model.joint(name).dofadr[0] for name in JOINT_NAMES])
        self._joint_ctrl = np.array([model.actuator(name).id for name in JOINT_NAMES])
        self._base_qpos = np.array([model.joint(name).qposadr[0] for name in BASE_JOINTS])
        self._base_dof = np.array([model.joint(name).dofadr[0] for name in BASE_JOINTS])
        self._base_ctrl = np.array([model.actuator(name).id for name in BASE_JOINTS])
        self._fingers: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for side in SIDES:
            names = [model.joint(j).name for j in range(model.njnt) if f"{side}_hand_" in model.joint(j).name]
            closed = np.array([robot.finger_closure(name, model.joint(name).range) for name in names])
            ctrl = np.array([model.actuator(name).id for name in names])
            qpos = np.array([model.joint(name).qposadr[0] for name in names])
            self._fingers.append((ctrl, qpos, closed))
        self.hand_bodies = [model.body(robot.hand_body(side)).id for side in SIDES]
        self.grip_points = [robot.grip_point(side) for side in SIDES]
        self.action_limits = robot.action_limits(model)
        joints = robot.home_pose().clip(*self.action_limits[:21].T)
        self.home = np.concatenate([joints, np.zeros(4)])

    def _open_renderer(self) -> None:
        mujoco = self._mujoco
        try:
            self.renderer = mujoco.Renderer(self.model, self.size, self.size)
        except Exception as error:
            raise RuntimeError(
                f"MuJoCo could not open a renderer ({error}). If another module imported mujoco first, set "
                f"MUJOCO_GL=egl (or osmesa) before Python starts. Otherwise: {NO_OPENGL}"
            ) from error
        self._view = mujoco.MjvOption()
        self._view.geomgroup[:] = [1, 1, 1, 0, 0, 0]
        self._view.sitegroup[:] = 0
        flags = self.renderer.scene.flags
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
            flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False

    # ------------------------------------------------------------------ running
    def reset(self) -> np.ndarray:
        """Back to the start of this seed; returns the 25-dimensional state."""
        self._mujoco.mj_resetData(self.model, self.data)
        self.held: list[str | None] = [None, None]
        for item in self.room.objects:
            self._touch_robot(item.name, True)
        self.data.qpos[self.joint_qpos] = self.home[:21]
        self.data.qpos[self._base_qpos[2]] = self._start_yaw
        self._mujoco.mj_forward(self.model, self.data)
        for _ in range(10):
            state = self.step(self.home)
        return state

    def step(self, action: np.ndarray) -> np.ndarray:
        """Apply a 25-dimensional action for 1/30 s; returns the measured state in the same layout."""
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (25,) or not np.isfinite(command).all():
            raise ValueError(f"an action is 25 finite numbers, got shape {command.shape}: {command}")
        command = command.clip(*self.action_limits.T)
        data = self.data
        data.ctrl[self._joint_ctrl] = command[:21]
        for hand, (ctrl, _, closed) in enumerate(self._fingers):
            data.ctrl[ctrl] = command[21 + hand] * closed
            self._update_grasp(hand, command[21 + hand])
        for _ in range(SUBSTEPS):
            yaw = data.qpos[self._base_qpos[2]]
            forward = command[23]
            data.ctrl[self._base_ctrl] = (forward * np.cos(yaw), forward * np.sin(yaw), command[24])
            self._mujoco.mj_step(self.model, data)
        return self.state()

    def state(self) -> np.ndarray:
        """Measured joint angles, hand closures and base velocities, (25,) float32."""
        data = self.data
        hands = [float(np.dot(data.qpos[qpos], closed) / np.dot(closed, closed)) for _, qpos, closed in self._fingers]
        vx, vy, turn = data.qvel[self._base_dof]
        yaw = data.qpos[self._base_qpos[2]]
        forward = vx * np.cos(yaw) + vy * np.sin(yaw)
        return np.concatenate([data.qpos[self.joint_qpos], hands, [forward, turn]]).astype(np.float32)

    def pose(self) -> tuple[np.ndarray, float]:
        """Floor position of the base and its yaw angle."""
        base = self.data.qpos[self._base_qpos]
        return self._start + base[:2], float(base[2])

    def place(self, position_xy: np.ndarray, yaw: float) -> None:
        """Put the base anywhere, at rest; nothing else moves, and nothing is checked for being free.

        Args:
            position_xy: floor position in metres, (2,).
            yaw: heading in radians.
        """
        offset = np.asarray(position_xy, np.float64) - self._start
        self.data.qpos[self._base_qpos] = [offset[0], offset[1], yaw]
        self.data.qvel[self._base_dof] = 0.0
        self._mujoco.mj_forward(self.model, self.data)

    def object_position(self, name: str) -> np.ndarray:
        """World position of a loose object."""
        return np.array(self.data.body(name).xpos)

    def grip_position(self, hand: int, data: Any = None) -> np.ndarray:
        """World position between the thumb and the fingers of a hand (0 left, 1 right)."""
        data = self.data if data is None else data
        body = self.hand_bodies[hand]
        return data.xpos[body] + data.xmat[body].reshape(3, 3) @ self.grip_points[hand]

    # ------------------------------------------------------------------ grasping
    def _update_grasp(self, hand: int, closure: float) -> None:
        """A hand that closes near an object holds it until it opens."""
        held = self.held[hand]
        if held is not None:
            if closure < _RELEASE_AT:
                self.data.eq_active[self.model.equality(f"{SIDES[hand]}:{held}").id] = 0
                self._touch_robot(held, True)
                self.held[hand] = None
            return
        if closure < _GRASP_AT:
            return
        grip = self.grip_position(hand)
        best, best_gap = None, _GRASP_REACH
        for item in self.room.objects:
            gap = float(np.linalg.norm(self.object_position(item.name) - grip)) - item.radius
            if item.on_table and gap < best_gap and item.name not in self.held:
                best, best_gap = item.name, gap
        if best is not None:
            self._hold(hand, best)

    def _hold(self, hand: int, name: str) -> None:
        """Weld an object to a hand, drawn in softly until it lies between thumb and fingers."""
        mujoco, model, data = self._mujoco, self.model, self.data
        body, item = self.hand_bodies[hand], model.body(name).id
        rotation = data.xmat[body].reshape(3, 3)
        offset = rotation.T @ (data.xpos[item] - data.xpos[body]) - self.grip_points[hand]
        inverse, relative = np.zeros(4), np.zeros(4)
        mujoco.mju_negQuat(inverse, data.xquat[body])
        mujoco.mju_mulQuat(relative, inverse, data.xquat[item])
        weld = model.equality(f"{SIDES[hand]}:{name}").id
        model.eq_data[weld] = 0
        model.eq_data[weld, 3:6] = self.grip_points[hand] + offset.clip(-0.02, 0.02)
        model.eq_data[weld, 6:10] = relative
        model.eq_data[weld, 10] = 1.0
        data.eq_active[weld] = 1
        self._touch_robot(name, False)
        self.held[hand] = name

    def _touch_robot(self, name: str, touches: bool) -> None:
        """Whether an object collides with the robot: not while it is held."""
        geom = self.model.geom(name).id
        self.model.geom_conaffinity[geom] = robot.WORLD_BIT | (robot.ROBOT_BIT if touches else 0)

    # ------------------------------------------------------------------ drawing
    def frame(self, cameras: Sequence[Camera] = ()) -> np.ndarray:
        """What the robot sees now: uint8, (size, size, 3); of several cameras one below the other.

        Args:
            cameras: by default those that the simulator was made with.
        """
        if self.renderer is None:
            raise RuntimeError("this simulator is closed, or was made with render=False")
        pictures = []
        for camera in cameras or self.cameras:
            self.renderer.update_scene(self.data, robot.CAMERAS[camera], self._view)
            if self.room.shadow:
                self._add_shadows(self.renderer.scene)
            pictures.append(np.array(self.renderer.render()))
        return np.concatenate(pictures)

    def _add_shadows(self, scene: Any) -> None:
        """A soft dark spot below the base and each loose object, fainter the higher this is lifted."""
        base, _ = self.pose()
        material = self.model.material(self.room.shadow).id
        below = [(np.array([*base, 0.0]), 1.6 * robot.BASE_RADIUS)]
        below += [(self.object_position(item.name), 1.5 * item.radius) for item in self.room.objects]
        for point, radius in below:
            level = self.room.level(point)
            dark = 0.8 * np.exp(-max(point[2] - level - radius, 0.0) / 0.2)
            spot = scene.geoms[scene.ngeom]
            self._mujoco.mjv_initGeom(
                spot, self._mujoco.mjtGeom.mjGEOM_BOX, np.array([radius, radius, 5e-4]),
                np.array([point[0], point[1], level + 0.003]), np.eye(3).ravel(), np.array([1, 1, 1, dark], np.float32),
            )  # fmt: skip
            spot.matid = material
            scene.ngeom += 1

    def close(self) -> None:
        """Free the OpenGL context."""
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None

    def __enter__(self) -> HumanoidSim:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
