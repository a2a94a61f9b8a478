"""What the simulated humanoid does in a recorded episode: random commands and scripted skills in turn.

Commands change often, are visibly large, and never jump: the base speed, the yaw rate and every joint
have a limited rate. A skill is a generator that writes its wishes into a ``Target`` and yields once for
each command.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwm.sim.building import Furniture, LooseObject
from hwm.sim.kinematics import ARM_SLICES, ArmSolver
from hwm.sim.robot import index_of

if TYPE_CHECKING:
    from hwm.sim.simulator import HumanoidSim

FPS = 30
HIP_YAW, HIP_PITCH, KNEE = index_of("HIP_YAW"), index_of("HIP_PITCH"), index_of("KNEE_PITCH")
ANKLE, NECK = index_of("ANKLE_PITCH"), index_of("NECK_PITCH")

LINEAR_STEP = 5.5 / FPS  # m/s of change a command
ANGULAR_STEP = 10.0 / FPS  # rad/s of change a command
JOINT_STEP = 0.075  # rad a command
HAND_STEP = 0.14
KEEP_OUT = 0.33  # metres from the base centre to walls and furniture
STAND_OFF = 0.27  # from the base centre to the edge of a table it works at
LIFTED = 0.08


@dataclass
class Target:
    """Where the commands are heading."""

    joints: np.ndarray
    hands: np.ndarray
    forward: float = 0.0
    turn: float = 0.0
    near_table: bool = False
    """The skill steers close to a table itself, so the keep-out distance is the base's own radius."""


def wrap(angle: float) -> float:
    """The same angle in -pi..pi."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def squat(joints: np.ndarray, depth: float, lean: float = 0.0) -> None:
    """Bend the leg column by ``depth`` radians, with the torso upright but for ``lean``, in place."""
    joints[ANKLE], joints[KNEE], joints[HIP_PITCH] = depth, 2 * depth, depth + lean


class Behaviour:
    """An endless iterator of 25-dimensional commands for one simulator."""

    stretch = (3.0, 6.0)
    """Least and most seconds of random commands in a row."""
    arrived = 0.25
    """Metres from a way point at which the next one is headed for."""

    def __init__(self, sim: HumanoidSim, seed: int, random_share: float = 0.5) -> None:
        self.sim, self.room = sim, sim.room
        self.rng = np.random.default_rng([seed, 2])
        self.random_share = random_share
        self.command = sim.home.copy()
        self.target = Target(sim.home[:21].copy(), np.zeros(2))
        self.lifts = 0
        self.fetches = 0
        self._solver = ArmSolver(sim)
        self._program = self._blocks()

    def __iter__(self) -> Behaviour:
        return self

    def __next__(self) -> np.ndarray:
        next(self._program)
        return self._limited()

    # ------------------------------------------------------------------ commands
    def _limited(self) -> np.ndarray:
        """One rate-limited step of the command towards the target, kept away from obstacles."""
        target, command = self.target, self.command
        forward = self._allowed(target.forward)
        joints = target.joints.clip(*self.sim.action_limits[:21].T)
        command[:21] += (joints - command[:21]).clip(-JOINT_STEP, JOINT_STEP)
        command[21:23] += (target.hands - command[21:23]).clip(-HAND_STEP, HAND_STEP)
        command[23] += np.clip(forward - command[23], -LINEAR_STEP, LINEAR_STEP)
        command[24] += np.clip(target.turn - command[24], -ANGULAR_STEP, ANGULAR_STEP)
        return command.astype(np.float32)

    def _allowed(self, forward: float) -> float:
        """The wished speed, or zero where it leads into a wall or a piece of furniture."""
        if abs(forward) < 1e-3:
            return 0.0
        position, yaw = self.sim.pose()
        direction = np.sign(forward) * np.array([np.cos(yaw), np.sin(yaw)])
        margin = 0.22 if self.target.near_table else KEEP_OUT
        ahead = 0.04 if self.target.near_table else 0.06 + 0.15 * abs(forward)
        if self.room.is_free(position + ahead * direction, margin):
            return forward
        if not self.room.is_free(position, margin):  # already too close: only away is allowed
            closer = self.room.clearance(position + 0.05 * direction) < self.room.clearance(position)
            return 0.0 if closer else forward
        return 0.0

    def _blocks(self) -> Iterator[None]:
        """Random commands and scripted skills in turn, with equal time on average."""
        random_time = scripted_time = 0
        while True:
            if random_time * (1 - self.random_share) <= scripted_time * self.random_share:
                duration = self._frames(*self.stretch)
                random_time += duration
                yield from self._random_commands(duration)
            else:
                for _ in self._skill():
                    scripted_time += 1
                    yield
                for _ in self._glance():
                    scripted_time += 1
                    yield

    def _frames(self, low: float, high: float) -> int:
        """A random duration between two times in seconds, in commands."""
        return round(self.rng.uniform(low, high) * FPS)

    # ------------------------------------------------------------------ random commands
    def _turn_rate(self) -> float:
        """A yaw rate that is clearly not zero in most cases."""
        rng = self.rng
        return 0.0 if rng.random() < 0.15 else float(rng.choice([-1, 1]) * rng.uniform(0.35, 1.5))

    def _new_base_command(self) -> None:
        """A new speed and yaw rate; where the way is blocked, one that leads back into the room."""
        rng, target = self.rng, self.target
        forward = 0.0 if rng.random() < 0.3 else rng.uniform(-0.5, 0.9)
        position, yaw = self.sim.pose()
        heading = np.array([np.cos(yaw), np.sin(yaw)])
        turn = self._turn_rate()
        if self.room.clearance(position + 0.9 * heading) < 0.3:
            forward = rng.uniform(-0.5, 0.2)
            if rng.random() < 0.6:  # turn towards the middle of the room
                middle = self.room.middle(position) - position
                towards = wrap(np.arctan2(middle[1], middle[0]) - yaw)
                turn = float(np.sign(towards) * rng.uniform(0.6, 1.5))
        if abs(forward) < 0.1 and abs(turn) < 0.3:
            turn = float(rng.choice([-1, 1]) * rng.uniform(0.5, 1.5))
        target.forward, target.turn = float(forward), turn

    def _new_arm_pose(self, hand: int, spread: float = 0.5) -> None:
        """A random arm pose around the resting pose, and a random closure unless something is held."""
        rng, target, arm = self.rng, self.target, ARM_SLICES[hand]
        target.joints[arm] = self.sim.home[arm] + rng.normal(0, spread, 7)
        target.joints[arm.start] -= 0.15  # upwards, into the view
        if self.sim.held[hand] is None or rng.random() < 0.25:
            target.hands[hand] = float(rng.random() < 0.5)

    def _new_posture(self) -> None:
        """A random waist yaw, neck pitch and squat."""
        rng, joints = self.rng, self.target.joints
        joints[NECK] = rng.uniform(-0.35, 0.75)
        joints[HIP_YAW] = 0.0 if rng.random() < 0.35 else rng.uniform(-0.7, 0.7)
        joints[1] = rng.uniform(-0.15, 0.15)
        depth = rng.uniform(0.25, 0.75) if rng.random() < 0.35 else 0.0
        squat(joints, depth, rng.uniform(-0.1, 0.3))

    def _random_commands(self, duration: int) -> Iterator[None]:
        """Independent random commands for base, arms and posture, each with its own hold times."""
        target = self.target
        target.near_table = False
        left = np.zeros(4, int)
        for _ in range(duration):
            left -= 1
            if left[0] < 0:
                left[0] = self._frames(0.3, 1.2)
                self._new_base_command()
            elif target.forward and self.command[23] == 0.0 and not self._allowed(target.forward):
                left[0] = min(left[0], self._frames(0.05, 0.2))  # blocked: try something else soon
            for hand in (0, 1):
                if left[1 + hand] < 0:
                    left[1 + hand] = self._frames(0.4, 1.2)
                    self._new_arm_pose(hand)
            if left[3] < 0:
                left[3] = self._frames(0.4, 1.4)
                self._new_posture()
            yield

    # ------------------------------------------------------------------ scripted skills
    def _skills(self, holding: bool) -> dict[str, float]:
        """How often each skill is chosen, by the name of its method; with or without something in a hand."""
        if holding:
            return {"place": 0.5, "tour": 0.3, "wave": 0.1, "crouch": 0.1}
        return {"fetch": 0.72, "tour": 0.1, "wave": 0.09, "crouch": 0.09}

    def _skill(self) -> Iterator[None]:
        """One scripted skill, chosen at random."""
        target = self.target
        shares = self._skills(any(held is not None for held in self.sim.held))
        name = list(shares)[int(self.rng.choice(len(shares), p=list(shares.values())))]
        target.forward = target.turn = 0.0
        yield from getattr(self, f"_{name}")()
        target.forward = target.turn = 0.0
        target.near_table = False

    def _glance(self) -> Iterator[None]:
        """Turn the base, the waist and the head somewhere else for a moment."""
        target, joints = self.target, self.target.joints
        for _ in range(int(self.rng.integers(1, 4))):
            self._new_base_command()
            if self.rng.random() < 0.5:
                joints[HIP_YAW] = self.rng.uniform(-0.7, 0.7)
            joints[NECK] = self.rng.uniform(-0.2, 0.65)
            yield from self._wait(self._frames(0.3, 1.0))
        target.forward = target.turn = 0.0

    def _wait(self, duration: int) -> Iterator[None]:
        for _ in range(duration):
            yield

    def _rest(self, keep_arms: bool = False) -> None:
        """Aim for the resting posture, a little varied; an arm that holds something keeps its pose."""
        target, home = self.target, self.sim.home
        noise = self.rng.normal(0, 0.12, 21)
        target.joints[:6] = 0.0
        for hand in (0, 1):
            arm = ARM_SLICES[hand]
            if not keep_arms and self.sim.held[hand] is None:
                target.joints[arm] = home[arm] + noise[arm]
                target.hands[hand] = 0.0
        target.joints[NECK] = self.rng.uniform(0.0, 0.5)

    def _wave(self) -> Iterator[None]:
        """Wave with one or both arms, to and fro."""
        rng, target = self.rng, self.target
        self._rest()
        hands = [(0,), (1,), (0, 1)][int(rng.integers(3))]
        for hand in hands:
            arm, side = ARM_SLICES[hand], 1.0 if hand == 0 else -1.0
            target.joints[arm] = self.sim.home[arm]
            target.joints[arm.start : arm.start + 4] = [
                rng.uniform(-1.5, -0.9),
                0.25 * side,
                0.0,
                rng.uniform(-0.4, 0.2),
            ]
        yield from self._wait(self._frames(0.5, 0.8))
        for beat in range(int(rng.integers(2, 5))):
            for hand in hands:
                swing = 0.55 if beat % 2 else -0.55
                target.joints[ARM_SLICES[hand].start + 2] = swing
                if self.sim.held[hand] is None:
                    target.hands[hand] = float(rng.random() < 0.5)
            target.turn = self._turn_rate() if rng.random() < 0.5 else 0.0
            yield from self._wait(self._frames(0.3, 0.5))

    def _crouch(self) -> Iterator[None]:
        """Squat and stand up again, once or twice."""
        self._rest()
        for _ in range(int(self.rng.integers(1, 3))):
            squat(self.target.joints, self.rng.uniform(0.45, 0.85), self.rng.uniform(-0.1, 0.35))
            yield from self._wait(self._frames(0.5, 0.9))
            squat(self.target.joints, 0.0)
            yield from self._wait(self._frames(0.5, 0.8))

    def _tour(self) -> Iterator[None]:
        """Drive to a random free place."""
        self._rest()
        for _ in range(20):
            goal = self.room.wander(self.rng, 0.7)
            if self.room.is_free(goal, 0.45):
                break
        yield from self._drive(goal, None, limit=self._frames(2.5, 4.5))

    # ------------------------------------------------------------------ driving
    def _way_is_free(self, start: np.ndarray, goal: np.ndarray, margin: float = 0.3) -> bool:
        steps = max(int(np.hypot(*(goal - start)) / 0.1), 1)
        return all(self.room.is_free(start + (goal - start) * k / steps, margin) for k in range(1, steps))

    def _route(self, goal: np.ndarray) -> list[np.ndarray]:
        """Way points to a goal: straight, or over one free place."""
        start, _ = self.sim.pose()
        if self._way_is_free(start, goal, 0.24):
            return [goal]
        for _ in range(40):
            middle = self.room.wander(self.rng, 0.6)
            if (
                self.room.is_free(middle, 0.45)
                and self._way_is_free(start, middle)
                and self._way_is_free(middle, goal, 0.24)
            ):
                return [middle, goal]
        return [np.zeros(2), goal]

    def _drive(self, goal: np.ndarray, facing: float | None, limit: int) -> Iterator[None]:
        """Drive to a place, and then turn to face a direction; gives up after ``limit`` commands.

        Free arms and the head move about on the way.
        """
        target, rng = self.target, self.rng
        points = self._route(goal)
        quick = rng.uniform(0.6, 0.9)
        sway = 0
        for _ in range(limit):
            position, yaw = self.sim.pose()
            sway -= 1
            if sway < 0:
                sway = self._frames(0.5, 1.2)
                hand = int(rng.integers(2))
                if self.sim.held[hand] is None:
                    self._new_arm_pose(hand, 0.35)
                target.joints[NECK] = rng.uniform(-0.1, 0.6)
            offset = points[0] - position
            distance = float(np.hypot(*offset))
            close = 0.03 if len(points) == 1 and facing is not None else self.arrived
            target.near_table = facing is not None and len(points) == 1 and distance < 0.8
            if distance < close:
                points.pop(0)
                if not points:
                    break
                continue
            error = wrap(np.arctan2(offset[1], offset[0]) - yaw)
            if distance < 0.3 and abs(error) > 2.0 and facing is not None:  # a little behind: back up
                target.forward, target.turn = -min(1.5 * distance, 0.3), 2.5 * wrap(error + np.pi)
            else:
                target.turn = float(np.clip(3.5 * error, -1.5, 1.5))
                target.forward = min(quick, 2.2 * distance) * max(0.0, np.cos(error)) ** 4
            yield
        target.forward = 0.0
        if facing is not None:
            for _ in range(2 * FPS):
                error = wrap(facing - self.sim.pose()[1])
                target.turn = float(np.clip(4.0 * error, -1.5, 1.5))
                if abs(error) < 0.06:
                    break
                yield
        target.turn = 0.0

    def _stand_point(self, table: Furniture, spot: np.ndarray, hand: int) -> tuple[np.ndarray, float]:
        """Where to stand and which way to face so that a spot on a table is before one hand."""
        inward = np.array(table.inward)
        depth, _ = table.reach
        ahead = -inward
        left = np.array([-ahead[1], ahead[0]])
        edge = np.array([table.x, table.y]) + inward * depth
        along = (spot - edge) @ left
        place = edge + inward * STAND_OFF + left * (along + (-0.14 if hand == 0 else 0.14))
        return place, float(np.arctan2(ahead[1], ahead[0]))

    # ------------------------------------------------------------------ handling objects
    def _table_below(self, item: LooseObject) -> Furniture | None:
        """The table that an object lies on, if it can be reached from the front edge."""
        spot = self.sim.object_position(item.name)
        for piece in self.room.furniture:
            inside = abs(spot[0] - piece.x) < piece.half_x and abs(spot[1] - piece.y) < piece.half_y
            if piece.table and inside and piece.height - 0.02 < spot[2] < piece.height + 0.2:
                inward = np.array(piece.inward)
                depth, _ = piece.reach
                from_edge = depth - (spot[:2] - [piece.x, piece.y]) @ inward
                return piece if from_edge < 0.34 else None
        return None

    def _reach(self, hand: int, spot: np.ndarray) -> float:
        """Aim one arm at a place above a table, bending as deep as needed; returns the gap left."""
        joints = self.target.joints
        base, _ = self.sim.pose()
        distance = float(np.hypot(*(spot[:2] - base)))
        lean = float(np.clip(0.35 + 1.6 * (distance - 0.4), 0.2, 0.8))
        shoulder = 1.08 - spot[2]  # height of the upright shoulder above the place
        depth = float(np.arccos(np.clip(1 - max(shoulder - 0.22, 0.0) / 0.64, 0.3, 1.0)))
        joints[HIP_YAW] = joints[1] = 0.0
        squat(joints, depth, lean)
        best, gap = self._solver.solve(hand, spot, joints)
        joints[:] = best
        joints[NECK] = np.clip(0.75 - 0.5 * lean, 0.0, 0.9)
        return gap

    def _fetch(self) -> Iterator[None]:
        """Drive to an object on a table, reach over it, descend, grasp and lift it."""
        rng, sim, target = self.rng, self.sim, self.target
        options = [(item, table) for item in self.room.objects if (table := self._table_below(item)) is not None]
        if not options:
            yield from self._tour()
            return
        base, _ = sim.pose()
        options.sort(key=lambda pair: float(np.hypot(*(sim.object_position(pair[0].name)[:2] - base))))
        item, table = options[int(rng.integers(min(len(options), 4)))]
        hand = int(rng.integers(2))
        self._rest()
        spot = sim.object_position(item.name)
        place, facing = self._stand_point(table, spot[:2], hand)
        if not self.room.is_free(place, 0.22):
            hand = 1 - hand
            place, facing = self._stand_point(table, spot[:2], hand)
        yield from self._drive(place, facing, limit=7 * FPS)
        if np.hypot(*(sim.pose()[0] - place)) > 0.12:
            return
        self.fetches += 1
        target.near_table = True
        target.hands[hand] = 0.0
        for height, duration in ((0.16, 22), (0.045, 20)):
            for k in range(duration):
                if k % 6 == 0:
                    self._reach(hand, sim.object_position(item.name) + np.array([0, 0, height]))
                yield
        target.hands[hand] = 1.0
        yield from self._wait(10)
        start = float(sim.object_position(item.name)[2])
        self._reach(hand, sim.grip_position(hand) + np.array([0, 0, 0.2]))
        yield from self._wait(16)
        if sim.held[hand] is not None and sim.object_position(item.name)[2] > start + LIFTED:
            self.lifts += 1
        else:
            target.hands[hand] = 0.0
        yield from self._carry(hand)

    def _carry(self, hand: int) -> Iterator[None]:
        """Back away from the table with the hand before the chest, and look at it."""
        target, rng, arm = self.target, self.rng, ARM_SLICES[hand]
        squat(target.joints, 0.0)
        side = 1.0 if hand == 0 else -1.0
        target.joints[arm] = self.sim.home[arm]
        target.joints[arm.start : arm.start + 4] = [
            rng.uniform(-0.8, -0.4),
            0.1 * side,
            -0.2 * side,
            rng.uniform(-0.1, 0.4),
        ]
        target.joints[NECK] = rng.uniform(0.1, 0.5)
        target.forward = rng.uniform(-0.5, -0.3)
        yield from self._wait(self._frames(0.5, 0.9))
        target.forward = 0.0

    def _place(self) -> Iterator[None]:
        """Carry what is held to a table and put it down; without a free way, just let go."""
        rng, sim, target = self.rng, self.sim, self.target
        hand = 0 if sim.held[0] is not None else 1
        tables = [piece for piece in self.room.furniture if piece.table]
        table = tables[int(rng.integers(len(tables)))]
        inward = np.array(table.inward)
        depth, length = table.reach
        along = np.array([-inward[1], inward[0]])
        spot = np.array([table.x, table.y]) + inward * (depth - 0.14) + along * rng.uniform(-0.7, 0.7) * length
        place, facing = self._stand_point(table, spot, hand)
        yield from self._drive(place, facing, limit=7 * FPS)
        if np.hypot(*(sim.pose()[0] - place)) < 0.12:
            target.near_table = True
            for height, duration in ((0.2, 20), (0.07, 14)):
                self._reach(hand, np.array([*spot, table.height + height]))
                yield from self._wait(duration)
        target.hands[hand] = 0.0
        yield from self._wait(8)
        if np.hypot(*(sim.pose()[0] - place)) < 0.12:
            self._reach(hand, np.array([*spot, table.height + 0.25]))
            yield from self._wait(10)
        yield from self._carry(hand)
