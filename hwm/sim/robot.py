"""The simulated humanoid: a wheeled base, a leg column, the Unitree G1 upper body, a neck with a camera.

Its 25 actions have the layout of the 1X world-model data: 21 joint angles in radians, two hand closures
in 0..1, the forward speed of the base in m/s and its yaw rate in rad/s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwm.sim.graphics import import_mujoco
from hwm.sim.worlds import Camera

if TYPE_CHECKING:
    import mujoco

ASSETS = Path(__file__).parent / "assets"

ACTION_NAMES: tuple[str, ...] = (
    "HIP_YAW", "HIP_ROLL", "HIP_PITCH", "KNEE_PITCH", "ANKLE_ROLL", "ANKLE_PITCH",
    "LEFT_SHOULDER_PITCH", "LEFT_SHOULDER_ROLL", "LEFT_SHOULDER_YAW", "LEFT_ELBOW_PITCH",
    "LEFT_ELBOW_YAW", "LEFT_WRIST_PITCH", "LEFT_WRIST_ROLL",
    "RIGHT_SHOULDER_PITCH", "RIGHT_SHOULDER_ROLL", "RIGHT_SHOULDER_YAW", "RIGHT_ELBOW_PITCH",
    "RIGHT_ELBOW_YAW", "RIGHT_WRIST_PITCH", "RIGHT_WRIST_ROLL",
    "NECK_PITCH", "LEFT_HAND_CLOSURE", "RIGHT_HAND_CLOSURE", "LINEAR_VELOCITY", "ANGULAR_VELOCITY",
)  # fmt: skip
"""The 25 actions, in the order of the 1X world-model data."""

PREFIX = "g1_"
SIDES = ("left", "right")
_ARM = ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow", "wrist_roll", "wrist_pitch", "wrist_yaw")
JOINT_NAMES: tuple[str, ...] = (
    f"{PREFIX}waist_yaw_joint", f"{PREFIX}waist_roll_joint", f"{PREFIX}waist_pitch_joint",
    "knee_pitch", "ankle_roll", "ankle_pitch",
    *(f"{PREFIX}{side}_{joint}_joint" for side in SIDES for joint in _ARM),
    "neck_pitch",
)  # fmt: skip
"""The MuJoCo joint of each of the first 21 actions."""
BASE_JOINTS = ("base_x", "base_y", "base_yaw")

HOME_POSE = {
    "LEFT_SHOULDER_PITCH": -0.25, "LEFT_SHOULDER_ROLL": 0.2, "LEFT_ELBOW_PITCH": 0.25,
    "RIGHT_SHOULDER_PITCH": -0.25, "RIGHT_SHOULDER_ROLL": -0.2, "RIGHT_ELBOW_PITCH": 0.25,
    "NECK_PITCH": 0.25,
}  # fmt: skip
LINEAR_LIMITS = (-0.6, 1.0)
ANGULAR_LIMITS = (-1.6, 1.6)

BASE_RADIUS = 0.2
ANKLE_HEIGHT, SHANK, THIGH, PELVIS = 0.16, 0.32, 0.32, 0.06
CAMERA_NAME = "ego"
CAMERAS: dict[Camera, str] = {"head": CAMERA_NAME, "chest": "chest", "wrist": "wrist"}
"""What the cameras of `hwm.sim.worlds.Camera` are called in MuJoCo."""
CAMERA_FOVY = 85.0
CAMERA_TILT, CHEST_TILT, WRIST_TILT = np.deg2rad((24.0, 50.0, 35.0))

ROBOT_BIT, WORLD_BIT = 1, 2  # contact masks: the robot touches the world and objects, never itself
HIDDEN_GROUP = 4
_SHELL, _DARK = (0.80, 0.81, 0.84, 1.0), (0.15, 0.16, 0.18, 1.0)


def index_of(name: str) -> int:
    """Position of a named action."""
    return ACTION_NAMES.index(name)


def home_pose() -> np.ndarray:
    """The 21 joint angles of the resting pose."""
    return np.array([HOME_POSE.get(name, 0.0) for name in ACTION_NAMES[:21]])


def grip_point(side: str) -> np.ndarray:
    """Point between thumb and fingers, in the frame of the hand."""
    return np.array([0.125, -0.045 if side == "left" else 0.045, 0.0])


def hand_body(side: str) -> str:
    """Name of the body that carries the palm of a hand."""
    return f"{PREFIX}{side}_wrist_yaw_link"


def add_robot(spec: mujoco.MjSpec, position: np.ndarray) -> None:
    """Add the robot with its actuators and camera to a world, its base standing at ``position`` (x, y)."""
    mujoco = import_mujoco(rendering=False)
    thigh = _add_base(spec, position)
    upper = _upper_body()
    thigh.add_frame(pos=[0, 0, THIGH + PELVIS]).attach_body(upper.body("pelvis"), PREFIX, "")
    _add_neck_and_cameras(spec)
    geom = mujoco.mjtGeom
    for side in SIDES:
        hand = spec.body(hand_body(side))
        sign = 1 if side == "left" else -1
        _collider(hand.add_geom(type=geom.mjGEOM_BOX, pos=[0.06, 0.006 * sign, 0], size=[0.035, 0.012, 0.03]))
        forearm = spec.body(f"{PREFIX}{side}_elbow_link")
        _collider(forearm.add_geom(type=geom.mjGEOM_CAPSULE, fromto=[0, 0, -0.01, 0.14, 0, -0.01], size=[0.03, 0, 0]))
    _add_actuators(spec)


def _add_base(spec: mujoco.MjSpec, position: np.ndarray) -> mujoco.MjsBody:
    """Wheeled base and leg column; returns the thigh."""
    mujoco = import_mujoco(rendering=False)
    hinge, slide = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE
    geom = mujoco.mjtGeom
    base = spec.worldbody.add_body(name="base", pos=[position[0], position[1], 0])
    for name, kind, axis in zip(BASE_JOINTS, (slide, slide, hinge), np.eye(3), strict=True):
        set_coefficient(base.add_joint(name=name, type=kind, axis=axis), "damping", 5.0)
    shell = base.add_geom(type=geom.mjGEOM_CYLINDER, size=[BASE_RADIUS, 0.06, 0], pos=[0, 0, 0.09], mass=45, rgba=_DARK)
    shell.contype, shell.conaffinity = ROBOT_BIT, 0
    body = base
    ankles = (("ankle_roll", ANKLE_HEIGHT, (1, 0, 0), (-0.3, 0.3)), ("ankle_pitch", 0.0, (0, 1, 0), (-0.2, 0.9)))
    for ankle, height, direction, limits in ankles:
        body = body.add_body(name=ankle, pos=[0, 0, height], gravcomp=1)
        body.add_joint(name=ankle, type=hinge, axis=direction, range=limits)
        body.mass, body.inertia, body.explicitinertial = 0.5, [0.01] * 3, True
    _bone(body, SHANK)
    thigh = body.add_body(name="knee", pos=[0, 0, SHANK], gravcomp=1)
    thigh.add_joint(name="knee_pitch", type=hinge, axis=[0, -1, 0], range=[-0.1, 1.8])
    _bone(thigh, THIGH)
    return thigh


def _bone(body: mujoco.MjsBody, length: float) -> None:
    mujoco = import_mujoco(rendering=False)
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CAPSULE, size=[0.05, 0, 0], fromto=[0, 0, 0, 0, 0, length],
        mass=3, rgba=_DARK, contype=0, conaffinity=0,
    )  # fmt: skip


def _collider(geom: mujoco.MjsGeom) -> None:
    """Make a geom an invisible, massless collider of the robot."""
    geom.contype, geom.conaffinity, geom.group, geom.mass = ROBOT_BIT, 0, HIDDEN_GROUP, 0


def _upper_body() -> mujoco.MjSpec:
    """The vendored G1 upper body, with its meshes filled in."""
    mujoco = import_mujoco(rendering=False)
    upper = mujoco.MjSpec.from_string((ASSETS / "g1_upper_body.xml").read_text(encoding="utf-8"))
    with np.load(ASSETS / "g1_upper_body.npz", allow_pickle=False) as stored:
        for mesh in upper.meshes:
            low, span = stored[f"{mesh.name}/bounds"].astype(np.float64)
            vertices = stored[f"{mesh.name}/vertices"] / 65535.0 * span + low
            mesh.uservert = vertices.ravel()
            mesh.userface = stored[f"{mesh.name}/faces"].astype(np.int32).ravel()
            mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX
    for material in upper.materials:
        material.rgba = _SHELL if material.name == "metal" else _DARK
        material.specular, material.shininess = 0.2, 0.3
    for body in upper.bodies:
        body.gravcomp = 1
    upper.joint("waist_pitch_joint").range = [-0.6, 1.3]  # a wheeled humanoid bends deeper than the G1
    return upper


def _add_neck_and_cameras(spec: mujoco.MjSpec) -> None:
    """The neck with the robot's camera, and cameras on its chest and above the back of its right hand."""
    mujoco = import_mujoco(rendering=False)
    neck = spec.body(f"{PREFIX}torso_link").add_body(
        name="neck", pos=[0.03, 0, 0.43], mass=0.3, inertia=[1e-3] * 3, explicitinertial=True, gravcomp=1
    )
    neck.add_joint(name="neck_pitch", type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0, 1, 0], range=[-0.4, 0.9])
    torso, hand = spec.body(f"{PREFIX}torso_link"), spec.body(hand_body("right"))
    _add_camera(neck, CAMERA_NAME, [0.12, 0, 0.08], CAMERA_TILT)
    _add_camera(torso, CAMERAS["chest"], [0.14, 0, 0.22], CHEST_TILT)
    _add_camera(hand, CAMERAS["wrist"], [0.02, 0, 0.09], WRIST_TILT)


def _add_camera(body: mujoco.MjsBody, name: str, position: Sequence[float], tilt: float) -> None:
    """A camera that looks along the body's x axis, tilted down."""
    forward = np.array([np.cos(tilt), 0, -np.sin(tilt)])
    right = np.array([0.0, -1.0, 0.0])
    quaternion = np.zeros(4)
    rotation = np.stack([right, np.cross(-forward, right), -forward], 1)
    import_mujoco(rendering=False).mju_mat2Quat(quaternion, rotation.ravel())
    body.add_camera(name=name, pos=position, fovy=CAMERA_FOVY, quat=quaternion)


def _add_actuators(spec: mujoco.MjSpec) -> None:
    """Position servos for joints and fingers, velocity servos for the base."""
    mujoco = import_mujoco(rendering=False)
    joint_target = mujoco.mjtTrn.mjTRN_JOINT
    for name in JOINT_NAMES:
        joint = spec.joint(name)
        column = any(part in name for part in ("waist", "knee", "ankle"))
        stiffness = 5000.0 if column else (80.0 if "wrist" in name or "neck" in name else 200.0)
        set_coefficient(joint, "damping", 0.05 * stiffness)
        joint.armature, joint.frictionloss = (0.05 if column else 0.02), 0.0
        joint.actfrclimited = 0  # the servos are idealised: no torque limit
        servo = spec.add_actuator(name=name, target=name, trntype=joint_target)
        _set_gains(servo, stiffness)
        servo.ctrlrange, servo.ctrllimited = list(joint.range), True
    for joint in spec.joints:
        if "_hand_" in joint.name:
            set_coefficient(joint, "damping", 0.06)
            joint.armature, joint.frictionloss = 0.002, 0.0
            servo = spec.add_actuator(name=joint.name, target=joint.name, trntype=joint_target)
            _set_gains(servo, 1.5)
            servo.ctrlrange, servo.ctrllimited = list(joint.range), True
    for name, gain in zip(BASE_JOINTS, (2500.0, 2500.0, 800.0), strict=True):
        servo = spec.add_actuator(name=name, target=name, trntype=joint_target)
        _set_gains(servo, gain, of_velocity=True)


def _set_gains(servo: mujoco.MjsActuator, gain: float, of_velocity: bool = False) -> None:
    """Make an actuator a servo: force = gain * (control - position), or of the velocity."""
    mujoco = import_mujoco(rendering=False)
    servo.gaintype, servo.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
    gains, biases = np.zeros(len(servo.gainprm)), np.zeros(len(servo.biasprm))
    gains[0], biases[2 if of_velocity else 1] = gain, -gain
    servo.gainprm, servo.biasprm = gains, biases


def finger_closure(joint_name: str, limits: np.ndarray) -> float:
    """Angle of a finger joint in the closed hand; the open hand has all of them at zero."""
    if "thumb_0" in joint_name:
        return 0.0
    return 0.75 * float(limits[np.argmax(np.abs(limits))])


def set_coefficient(element: Any, name: str, value: float) -> None:
    """Set a joint coefficient that is a scalar in MuJoCo 3 and a polynomial's vector in MuJoCo 4."""
    old = getattr(element, name)
    setattr(element, name, value if np.ndim(old) == 0 else [value] + [0.0] * (len(old) - 1))


def action_limits(model: mujoco.MjModel) -> np.ndarray:
    """Lowest and highest value of each action, (25, 2)."""
    joints = [model.actuator(name).ctrlrange for name in JOINT_NAMES]
    return np.array([*joints, (0, 1), (0, 1), LINEAR_LIMITS, ANGULAR_LIMITS], dtype=np.float64)
