"""Policies judged in a dream: is the better one there also the better one in the true simulator?

    world = World.open()
    result = evaluate_policies(world, {"mine": policy, **SCRIPTED}, spread_starts(world, 8, steps=20), steps=20)
    print(result.json()["pearson"])

A policy is one of
- a function of an `Observation` that returns a wanted command, as (A,) values or {name: value}, which is approached no
  faster than commands change in the data; or all commands of a step as they are to be, (G*K, A);
- an object with `select_action(observation) -> Tensor`, the interface of LeRobot's policies;
- `Scripted`: what makes such a function anew for each episode.
If it has a method `reset()`, that is called before each episode.

Shapes: T steps of an episode, G latent steps that the model predicts together, K commands a latent step, A values.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from hwm.devices import device_of, name_of
from hwm.errors import HwmError, unknown
from hwm.interact.comparison import Comparison
from hwm.interact.limits import Action, Limits
from hwm.interact.session import Session, World, advance
from hwm.interact.starts import Start, spread
from hwm.interact.tasks import TASKS, Task
from hwm.plugins import import_object
from hwm.progress import track
from hwm.sim.twin import Twin, available


class Observation(TypedDict):
    """What a policy knows.

    Attributes:
        frame: (H, W, 3) uint8, what the robot sees.
        state: (A,) the command in force. A dream measures no joints, so this is all that is known of them, there and in
            the simulator.
        goal: (H, W, 3) uint8 or None.
        step: steps since the start.
    """

    frame: np.ndarray
    state: np.ndarray
    goal: np.ndarray | None
    step: int


Act: TypeAlias = "Callable[[Observation], Action]"


@dataclass(frozen=True)
class Trial:
    """What a scripted policy may know of an episode before it begins.

    Attributes:
        start, limits: where it begins, and what may be commanded.
        recorded: (T, G*K, A) what was commanded in the recording, or None where the start has none of that length.
        seed: for randomness of its own, the same in the dream and in the simulator.
    """

    start: Start
    limits: Limits
    recorded: np.ndarray | None
    seed: int


@dataclass(frozen=True)
class Scripted:
    """A policy that is made anew for each episode."""

    make: Callable[[Trial], Act]


def constant(**command: float) -> Scripted:
    """The same command throughout; velocities that it does not name are 0, other actions hold their value."""

    def make(trial: Trial) -> Act:
        names, rest = trial.limits.names, trial.limits.rest
        wanted = {n: float(r) for n, r in zip(names, rest, strict=True) if not np.isnan(r)} | command
        return lambda _: wanted

    return Scripted(make)


def recorded(trial: Trial) -> Act:
    """What was commanded in the recording."""
    rows = trial.recorded
    if rows is None:
        raise HwmError(f"start {trial.start.name!r} has no recording that goes on long enough to be replayed")
    return lambda observation: rows[observation["step"]]


def at_random(trial: Trial, hold: int = 5) -> Act:
    """Commands drawn evenly from the range of the data, a new one every `hold` steps."""
    rng, wanted = np.random.default_rng(trial.seed), np.empty(0, np.float32)

    def act(observation: Observation) -> np.ndarray:
        nonlocal wanted
        if observation["step"] % hold == 0:
            wanted = rng.uniform(trial.limits.low, trial.limits.high).astype(np.float32)
        return wanted

    return act


SCRIPTED: dict[str, Scripted] = {
    "recorded": Scripted(recorded),
    "still": constant(),
    "random": Scripted(at_random),
    "turn_left": constant(ANGULAR_VELOCITY=1.0),
    "turn_right": constant(ANGULAR_VELOCITY=-1.0),
    "forward": constant(LINEAR_VELOCITY=0.5),
}
"""Velocities in rad/s and m/s."""


def find_policy(name: str) -> Any:
    """A scripted policy by its name, or any importable one as `package.module:object`.

    Raises:
        HwmError: there is none of that name, or the object is no policy.
    """
    if ":" not in name:
        if name not in SCRIPTED:
            raise unknown("policy", name, SCRIPTED)
        return SCRIPTED[name]
    found = import_object("policy", name)
    if isinstance(found, type):
        raise HwmError(f"{name!r} is a class; name an object made of it")
    return found


def begin(policy: Any, trial: Trial) -> Act:
    """A policy of any kind as a function, ready for an episode.

    Raises:
        HwmError: it is no policy.
    """
    if isinstance(policy, Scripted):
        return policy.make(trial)
    if callable(getattr(policy, "reset", None)):
        policy.reset()
    if hasattr(policy, "select_action"):
        return lambda observation: select_action(policy, observation)
    if callable(policy):
        act: Act = policy
        return act
    raise HwmError(f"a policy is a function or has select_action; {type(policy).__name__} is neither")


def select_action(policy: Any, observation: Observation) -> np.ndarray:
    """Ask a policy of LeRobot's interface: a batch of one, pictures (1, 3, H, W) in [0, 1] under each camera that its
    config names (else `observation.images.ego`), the command in force as `observation.state` (1, A)."""
    device = device_of(policy, torch.device("cpu"))
    picture = torch.from_numpy(observation["frame"]).permute(2, 0, 1)[None].float() / 255
    cameras = getattr(getattr(policy, "config", None), "image_features", None) or ("observation.images.ego",)
    batch = {camera: picture.to(device) for camera in cameras}
    batch["observation.state"] = torch.from_numpy(observation["state"])[None].to(device)
    with torch.inference_mode():
        action: Tensor = policy.select_action(batch)
    return action.squeeze(0).float().cpu().numpy()


# ---------------------------------------------------------------------- worlds
class Place(Protocol):
    """Where a policy acts.

    Attributes:
        group: latent steps of a step.
        first: (H, W, 3) uint8, what is seen at the start.
    """

    group: int
    first: np.ndarray

    def step(self, rows_NA: np.ndarray) -> list[np.ndarray]:
        """Apply the G*K commands of a step; the last frame of each of its G latent steps."""


class Dream:
    """The model as a place."""

    def __init__(self, world: World, trial: Trial, sampler: Any = None) -> None:
        self.group, self.stride = world.model.group, world.tokenizer.latent.stride
        self.session = Session(world, sampler)
        self.first = self.session.reset(trial.start, trial.seed)[-1]

    def step(self, rows_NA: np.ndarray) -> list[np.ndarray]:
        advance([self.session], [rows_NA.reshape(self.group, -1, rows_NA.shape[1])])
        return list(self.session.frames()[self.stride - 1 :: self.stride])


class Reality:
    """The true simulator as a place; close it before the next one is made."""

    def __init__(self, world: World, trial: Trial) -> None:
        assert trial.start.origin is not None
        self.group = world.model.group
        self.twin = Twin(trial.start.origin, world.tokenizer.size[1])
        self.first = self.twin.frame()

    def step(self, rows_NA: np.ndarray) -> list[np.ndarray]:
        frames = []
        for rows in np.split(rows_NA, self.group):
            self.twin.step(rows)
            frames.append(self.twin.frame())
        return frames

    def close(self) -> None:
        self.twin.close()


def run_episode(place: Place, policy: Any, trial: Trial, steps: int, goal: np.ndarray | None = None) -> np.ndarray:
    """Let a policy act for some steps; the frames, (1 + steps*G, H, W, 3) uint8, the start's last one first."""
    act, frames = begin(policy, trial), [place.first]
    last = trial.start.actions[-1, -1].astype(np.float32)
    count = place.group * trial.start.actions.shape[1]
    for step in range(steps):
        action = act(Observation(frame=frames[-1], state=last.copy(), goal=goal, step=step))
        rows = commands(action, trial.limits, last, count)
        frames += place.step(rows)
        last = rows[-1]
    return np.stack(frames)


def commands(action: Action, limits: Limits, last: np.ndarray, count: int) -> np.ndarray:
    """The commands of a step, (count, A): a wanted one approached, or all of them as they are, within the limits."""
    if isinstance(action, np.ndarray) and action.ndim == 2:
        if len(action) != count:
            raise HwmError(f"a step has {count} commands, the policy gave {len(action)}")
        return np.stack([limits.vector(row, last) for row in action])
    return limits.towards(limits.vector(action, last), last, count)


# ---------------------------------------------------------------------- evaluation
def evaluate_policies(
    world: World,
    policies: Mapping[str, Any],
    starts: Sequence[str | Start],
    *,
    steps: int = 20,
    task: str | Task = "turn",
    simulator: bool = True,
    seed: int = 0,
    sampler: Any = None,
    progress: bool = False,
) -> Comparison:
    """Run every policy from every start, in the model and in the true simulator.

    Args:
        policies: name -> policy.
        starts: one episode each; names of the gallery's, or starts of one's own.
        steps: a policy acts so many times an episode.
        task: what to score, a name of `TASKS` or a `Task`.
        simulator: also in the simulator, from those starts that have an `origin`, where it can run.
        seed: of the model's and of the random policy's randomness. Policies share it, start by start.
        sampler: of the model; None is its own choice.

    Raises:
        HwmError: nothing to run, an unknown task, a start without the recording that the task or a policy needs, or an
            action that cannot be taken.
    """
    if not policies or not starts or steps < 1:
        raise HwmError("evaluating policies takes at least one policy, one start and one step")
    if isinstance(task, str) and task not in TASKS:
        raise unknown("task", task, TASKS)
    name, scored = (task, TASKS[task]) if isinstance(task, str) else (task.score.__name__, task)
    chosen = [world.start(start) for start in starts]
    note = simulator_note(simulator, chosen)
    dreamt = np.full((len(policies), len(chosen)), np.nan)
    true = dreamt.copy()
    acting = list(policies.values())
    for s, start in enumerate(track(chosen, len(chosen), "starts") if progress else chosen):
        seed_of_start = zlib.crc32(f"{seed} {s}".encode())
        trial = Trial(start, world.limits[start.embodiment], recording(world, start, steps), seed_of_start)
        dreamt[:, s] = _scores_in_model(world, trial, acting, scored, steps, sampler)
        if note is None and start.origin is not None:
            true[:, s] = _scores_in_simulator(world, trial, acting, scored, steps)
    return Comparison(
        world=world.name,
        task=name,
        unit=scored.unit,
        steps=steps,
        seconds=steps * world.model.group / world.model.spec.fps,
        seed=seed,
        policies=tuple(policies),
        starts=tuple(start.name for start in chosen),
        episodes=tuple(start.episode or start.name for start in chosen),
        model=dreamt,
        simulator=true,
        note=note or "",
        device=name_of(world.device),
        dtype=world.runtime.format,
    )


def _scores_in_model(
    world: World, trial: Trial, policies: Sequence[Any], task: Task, steps: int, sampler: Any
) -> list[float]:
    """The score of each policy in the model; the goal is what the recording shows at the end."""
    goal = goal_of(world, trial, steps) if task.goal else None
    dreams = (run_episode(Dream(world, trial, sampler), policy, trial, steps, goal) for policy in policies)
    return [_score(world, task, frames, goal) for frames in dreams]


def _scores_in_simulator(world: World, trial: Trial, policies: Sequence[Any], task: Task, steps: int) -> list[float]:
    """The score of each policy in the true simulator; the goal is what the recorded commands lead to there."""

    def frames(policy: Any, goal: np.ndarray | None = None) -> np.ndarray:
        with closing(Reality(world, trial)) as place:
            return run_episode(place, policy, trial, steps, goal)

    goal = frames(SCRIPTED["recorded"])[-1] if task.goal else None
    return [_score(world, task, frames(policy, goal), goal) for policy in policies]


def _score(world: World, task: Task, frames: np.ndarray, goal: np.ndarray | None) -> float:
    """What the task says of what the first camera saw."""
    frames = np.split(frames, world.views, 1)[0]
    return task.score(frames, None if goal is None else np.split(goal, world.views)[0])


def simulator_note(wanted: bool, starts: Sequence[Start]) -> str | None:
    """Why nothing runs in the simulator, or None where something does."""
    if not wanted:
        return "the simulator was not asked for"
    if not available():
        return "the simulator cannot run here (extra `sim`, and a way to draw)"
    if all(start.origin is None for start in starts):
        return "none of the starts is a place in the simulator"
    return None


def spread_starts(world: World, count: int, steps: int) -> list[str]:
    """Names of starts spread evenly over the gallery's store, each with the recording of `steps` more steps.

    Raises:
        HwmError: there is no gallery, or no episode is long enough.
    """
    if world.gallery is None:
        raise HwmError("there is no store to take starts from: open the world with one")
    gallery, group = world.gallery, world.model.group
    places = spread(gallery.store, gallery.past + steps * group, count)
    return [f"{gallery.name}:{episode.id}@{step}" for ((episode, step),) in places]


def recording(world: World, start: Start, steps: int) -> np.ndarray | None:
    """What was commanded after a start, (steps, G*K, A); None where its recording is not in the gallery or ends."""
    rows = _after(world, start, steps)
    if rows is None:
        return None
    assert world.gallery is not None
    actions = np.asarray(world.gallery.store.actions[rows], np.float32)
    return actions.reshape(steps, -1, actions.shape[2])


def goal_of(world: World, trial: Trial, steps: int) -> np.ndarray | None:
    """What the recording shows `steps` steps after a start, as the model's tokenizer renders it: (H, W, 3) uint8, or
    None where there is no such recording."""
    rows = _after(world, trial.start, steps)
    if rows is None or world.gallery is None:
        return None
    stored = world.gallery.store.latents
    assert stored is not None
    first = max(rows.start - len(trial.start.latents), rows.stop - world.model.group - world.lookback)
    latents = torch.from_numpy(np.asarray(stored[first : rows.stop]).astype(trial.start.latents.numpy().dtype))
    return world.show(latents.to(world.device))[-1]


def _after(world: World, start: Start, steps: int) -> slice | None:
    """Rows of the gallery's store that follow a start."""
    gallery = world.gallery
    if gallery is None:
        return None
    try:
        episode, step = gallery.place(start.name)
    except HwmError:
        return None
    first = episode.start + step + gallery.past
    stop = first + steps * world.model.group
    return slice(first, stop) if stop <= episode.stop else None
