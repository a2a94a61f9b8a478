"""Policies in a dream and in a stand-in for the simulator: both get the same commands, and each its own goal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwm import cli
from hwm.assets import ROOT, STORES
from hwm.errors import HwmError
from hwm.interact import policies as module
from hwm.interact.limits import Limits
from hwm.interact.policies import (
    SCRIPTED,
    Dream,
    Observation,
    Scripted,
    Trial,
    commands,
    constant,
    evaluate_policies,
    find_policy,
    goal_of,
    recording,
    run_episode,
    spread_starts,
)
from hwm.interact.session import Session, World
from hwm.interact.starts import Gallery, Start
from hwm.interact.tasks import TASKS, Task, distance, reach_view, turn
from hwm.sim.twin import Origin, available
from tests.conftest import make_store
from tests.interact.conftest import a_start, build_world
from tests.models.toys import toy_spec

STEPS = 4


@pytest.fixture
def toy(tmp_path: Path) -> World:
    """A toy world whose gallery's recordings go on for a while."""
    world = build_world("masked_hwm", past=3, window_stride=2, learned_steps=1)
    arm = {"embodiment": "arm", "action_names": ("shoulder", "elbow", "wrist"), "latent": toy_spec().latent}
    world.gallery = Gallery(make_store(tmp_path / "store", [40, 36], **arm, tokenizer=""), 3, count=4)
    limits = world.limits["arm"]  # wide enough for the recording
    world.limits["arm"] = replace(limits, low=limits.low - 9, high=limits.high + 9)
    return world


class StandIn:
    """In place of the simulator: its picture is a function of all commands so far."""

    open = 0
    given: list[np.ndarray]

    def __init__(self, origin: Origin, size: int) -> None:
        assert StandIn.open == 0, "the simulator before was not closed"
        StandIn.open += 1
        self.size, self.rows = size, [origin.actions[0]]
        StandIn.given.append(origin.actions)

    def step(self, actions_KA: np.ndarray) -> None:
        assert actions_KA.shape == (2, 3)
        self.rows.append(actions_KA)
        StandIn.given.append(actions_KA)

    def frame(self) -> np.ndarray:
        total = float(np.sum(self.rows))
        return np.full((self.size, self.size, 3), int(128 + 40 * np.tanh(total)), np.uint8)

    def close(self) -> None:
        StandIn.open -= 1


@pytest.fixture
def simulated(toy: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The toy world, all of whose starts have an origin in the stand-in."""
    StandIn.open, StandIn.given = 0, []
    monkeypatch.setattr(module, "Twin", StandIn)
    monkeypatch.setattr(module, "available", lambda: True)
    real = toy.start

    def start(name: str | Start) -> Start:
        return replace(real(name), origin=Origin(0, np.zeros((5, 2, 3), np.float32)))

    monkeypatch.setattr(toy, "start", start)
    yield toy
    assert StandIn.open == 0


def trial_of(world: World, name: str = "start:0", steps: int = STEPS, seed: int = 3) -> Trial:
    start = world.start(name)
    return Trial(start, world.limits[start.embodiment], recording(world, start, steps), seed)


# ---------------------------------------------------------------------- tasks
@pytest.mark.parametrize("pixels", [-3, 0, 2])
def test_turn_measures_how_far_the_picture_moved(pixels: int) -> None:
    rng = np.random.default_rng(0)
    scene = torch.nn.functional.avg_pool2d(torch.from_numpy(rng.random((1, 3, 68, 260))), 5, 1).numpy()[0]
    scene = ((scene - scene.min()) / np.ptp(scene) * 255).astype(np.uint8).transpose(1, 2, 0)
    frames = np.stack([scene[:, 100 - pixels * t : 164 - pixels * t] for t in range(6)])
    assert turn(frames, None) == pytest.approx(5 * pixels, abs=0.7)


def test_reach_view_is_the_distance_of_the_last_frame() -> None:
    frames, goal = np.zeros((3, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    frames[:2] = 255
    assert reach_view(frames, goal) == 0
    goal[:2] = 255
    assert reach_view(frames, goal) == pytest.approx(-(0.5**0.5))
    assert distance(frames[0], np.zeros_like(goal)) == 1
    with pytest.raises(HwmError, match="goal"):
        reach_view(frames, None)
    with pytest.raises(HwmError, match="shape"):
        distance(frames[0], goal[:2])


# ---------------------------------------------------------------------- policies
LIMITS = Limits(("a", "b"), np.array([-1.0, 0.0]), np.array([1.0, 2.0]), np.array([0.25, 0.5]))
VALUES = st.lists(st.floats(-5, 5), min_size=2, max_size=2)


@given(VALUES, st.lists(st.floats(0, 1), min_size=2, max_size=2), st.integers(1, 9))
def test_wanted_commands_are_approached_within_the_limits(wanted: list[float], at: list[float], count: int) -> None:
    last = (LIMITS.low + np.array(at) * (LIMITS.high - LIMITS.low)).astype(np.float32)
    rows = commands(wanted, LIMITS, last, count)
    assert rows.shape == (count, 2)
    assert (rows >= LIMITS.low - 1e-6).all()
    assert (rows <= LIMITS.high + 1e-6).all()
    assert (np.abs(np.diff(np.vstack([last, rows]), axis=0)) <= LIMITS.change + 1e-6).all()
    assert np.array_equal(commands({"a": wanted[0], "b": wanted[1]}, LIMITS, last, count), rows)
    exact = commands(np.tile(np.array(wanted, np.float32), (count, 1)), LIMITS, last, count)
    assert exact == pytest.approx(np.tile(np.clip(wanted, LIMITS.low, LIMITS.high), (count, 1)))


def test_what_a_policy_is_shown(toy: World) -> None:
    seen: list[Observation] = []

    class Policy:
        resets = 0

        def reset(self) -> None:
            self.resets += 1

        def __call__(self, observation: Observation) -> dict[str, float]:
            seen.append(observation)
            return {"elbow": 0.3}

    policy, trial, goal = Policy(), trial_of(toy), np.zeros((16, 16, 3), np.uint8)
    frames = run_episode(Dream(toy, trial), policy, trial, STEPS, goal)
    assert frames.shape == (1 + STEPS, 16, 16, 3)
    assert policy.resets == 1
    own = Session(toy)
    assert np.array_equal(own.reset("start:0", trial.seed)[-1], frames[0])
    for step, observation in enumerate(seen):
        assert observation["step"] == step
        assert observation["goal"] is goal
        assert np.array_equal(observation["frame"], frames[step])
        assert np.array_equal(observation["state"], own.last)
        own.step({"elbow": 0.3}, ramp=True)
        assert np.array_equal(own.frames()[-1], frames[step + 1])


def test_any_family_is_a_place(world: World) -> None:
    start = a_start(world)
    trial = Trial(start, world.limits[start.embodiment], None, 0)
    frames = run_episode(Dream(world, trial), lambda observation: {"elbow": 0.2}, trial, 3)
    assert len(frames) == 1 + 3 * world.model.group
    own = Session(world)
    own.reset(start, 0)
    for _ in range(3):
        own.step({"elbow": 0.2}, ramp=True)
    assert np.array_equal(frames[-1], own.frames()[-1])


def test_the_recorded_policy_is_the_recording(toy: World) -> None:
    trial = trial_of(toy, "start:2")
    dream = Dream(toy, trial)
    run_episode(dream, SCRIPTED["recorded"], trial, STEPS)
    gallery = toy.gallery
    assert gallery is not None
    episode, step = gallery.place("start:2")
    first = episode.start + step + gallery.past
    truth = gallery.store.actions[first : first + STEPS]
    assert np.array_equal(np.stack(dream.session.actions[dream.session.prompt :]), truth)
    own = replace(trial, start=a_start(toy), recorded=recording(toy, a_start(toy), STEPS))
    with pytest.raises(HwmError, match="toy:0"):
        run_episode(Dream(toy, own), SCRIPTED["recorded"], own, STEPS)
    assert recording(toy, toy.start("start:2"), 99) is None


def test_the_goal_is_what_the_recording_shows(toy: World) -> None:
    gallery = toy.gallery
    assert gallery is not None
    for steps in (1, STEPS):
        trial = trial_of(toy, "start:1", steps)
        episode, step = gallery.place("start:1")
        latents = gallery.store.latents
        assert latents is not None
        stop = episode.start + step + gallery.past + steps
        whole = torch.from_numpy(np.asarray(latents[episode.start : stop]).astype(np.int64))
        assert np.array_equal(goal_of(toy, trial, steps), toy.show(whole)[-1])
    assert goal_of(toy, replace(trial, start=a_start(toy)), 1) is None


def test_scripted_policies(toy: World) -> None:
    names = ("LINEAR_VELOCITY", "NECK", "ANGULAR_VELOCITY")
    limits = Limits(names, np.array([-0.5, -1, -1.5]), np.array([0.9, 1, 1.5]), np.ones(3))
    trial = Trial(toy.start("start:0"), limits, None, 5)
    last = np.array([0.4, 0.7, 0.2], np.float32)

    def observation(step: int) -> Observation:
        return Observation(frame=np.zeros((1, 1, 3), np.uint8), state=last, goal=None, step=step)

    def wanted(name: str, step: int = 0) -> list[float]:
        return limits.vector(SCRIPTED[name].make(trial)(observation(step)), last).tolist()

    assert wanted("still") == pytest.approx([0, 0.7, 0])
    assert wanted("turn_left") == pytest.approx([0, 0.7, 1])
    assert wanted("turn_right") == pytest.approx([0, 0.7, -1])
    assert wanted("forward") == pytest.approx([0.5, 0.7, 0])
    acts = [SCRIPTED["random"].make(trial) for _ in range(2)]
    drawn = [[np.asarray(act(observation(step))) for step in range(20)] for act in acts]
    assert np.array_equal(*drawn)
    assert len({row.tobytes() for row in drawn[0]}) == 4
    assert all(((row >= limits.low) & (row <= limits.high)).all() for row in drawn[0])


def test_policies_of_lerobots_interface(toy: World) -> None:
    class Act(torch.nn.Module):
        """The methods that are used of it, and nothing else of LeRobot."""

        def __init__(self, cameras: dict[str, object] | None) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.resets, self.seen = 0, []  # type: ignore[var-annotated]
            self.config = SimpleNamespace(image_features=cameras)

        def reset(self) -> None:
            self.resets += 1

        def select_action(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            self.seen.append(batch)
            return self.weight * (batch["observation.state"] + 0.01)

    trial = trial_of(toy)
    for cameras in (None, {"observation.images.head": None, "observation.images.chest": None}):
        policy, dream = Act(cameras), Dream(toy, trial)
        frames = run_episode(dream, policy, trial, STEPS)
        assert (policy.resets, len(policy.seen)) == (1, STEPS)
        for step, batch in enumerate(policy.seen):
            pictures = set(batch) - {"observation.state"}
            assert pictures == (set(cameras) if cameras else {"observation.images.ego"})
            for name in pictures:
                assert batch[name].shape == (1, 3, 16, 16)
                assert torch.equal((batch[name][0] * 255).round().byte(), torch.from_numpy(frames[step]).movedim(-1, 0))
            assert batch["observation.state"].shape == (1, 3)
        first = trial.start.actions[-1, -1]
        moved = np.minimum(0.01 * STEPS, np.inf)
        assert dream.session.last[:2] == pytest.approx(first[:2] + moved, abs=1e-5)


def test_finding_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policies_of_a_test.py").write_text(
        "class Made:\n    pass\n\ndef ahead(observation):\n    return {}\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_policy("still") is SCRIPTED["still"]
    assert find_policy("policies_of_a_test:ahead").__name__ == "ahead"
    with pytest.raises(HwmError, match="turn_left"):
        find_policy("turn_lefft")
    for wrong in ("policies_of_a_test:back", "no_such_module:x"):
        with pytest.raises(HwmError, match="cannot import"):
            find_policy(wrong)
    with pytest.raises(HwmError, match="class"):
        find_policy("policies_of_a_test:Made")
    del sys.modules["policies_of_a_test"]


# ---------------------------------------------------------------------- evaluation
PUSH = {"up": constant(elbow=3.0), "down": constant(elbow=-3.0)}


def test_the_simulator_gets_the_commands_of_the_dream(simulated: World) -> None:
    dreams: list[np.ndarray] = []

    class Spy(Dream):
        def step(self, rows_NA: np.ndarray) -> list[np.ndarray]:
            dreams.append(rows_NA)
            return super().step(rows_NA)

    policies = {**PUSH, "recorded": SCRIPTED["recorded"], "random": SCRIPTED["random"]}
    original, module.Dream = module.Dream, Spy  # type: ignore[misc]
    try:
        evaluate_policies(simulated, policies, ["start:0", "start:3"], steps=STEPS)
    finally:
        module.Dream = original  # type: ignore[misc]
    true = [rows for rows in StandIn.given if rows.shape == (2, 3)]
    assert len(true) == len(dreams) == 2 * 4 * STEPS
    assert np.array_equal(np.stack(true), np.stack(dreams))


def test_returns_are_the_scores_of_each_worlds_own_frames(simulated: World) -> None:
    asked: list[tuple[tuple[int, ...], int | None]] = []

    def brightness(frames: np.ndarray, goal: np.ndarray | None) -> float:
        asked.append((frames.shape, None if goal is None else int(goal[0, 0, 0])))
        return float(frames[-1].mean())

    found = evaluate_policies(simulated, PUSH, ["start:0", "start:1"], steps=STEPS, task=Task(brightness, "grey"))
    assert (found.task, found.unit, found.seconds) == ("brightness", "grey", STEPS / simulated.model.spec.fps)
    assert set(asked) == {((1 + STEPS, 16, 16, 3), None)}
    assert found.simulator.shape == (2, 2)
    assert found.ranking("simulator") == ["up", "down"]
    own = Session(simulated)
    trial = trial_of(simulated, "start:1")
    frames = run_episode(Dream(simulated, trial), PUSH["up"], trial, STEPS)
    assert found.model.shape == (2, 2)
    assert own.reset("start:1", 0).shape == frames[:1].shape
    asked.clear()
    with_goal = Task(brightness, "grey", goal=True)
    evaluate_policies(simulated, {"recorded": SCRIPTED["recorded"]}, ["start:0"], steps=STEPS, task=with_goal)
    (_, dreamt), (_, true) = asked
    assert dreamt == goal_of(simulated, trial_of(simulated), STEPS)[0, 0, 0]  # type: ignore[index]
    total = recording(simulated, simulated.start("start:0"), STEPS).sum()  # type: ignore[union-attr]
    assert true == int(128 + 40 * np.tanh(float(total)))


def test_the_recording_reaches_its_own_view_in_the_simulator(simulated: World) -> None:
    policies = {"recorded": SCRIPTED["recorded"], **PUSH}
    found = evaluate_policies(simulated, policies, ["start:0", "start:2"], steps=STEPS, task="reach_view")
    assert (found.simulator[0] == 0).all()
    assert (found.simulator[1:] < 0).any()
    assert (found.model < 0).all()


def test_randomness_is_shared_by_policies_and_follows_the_seed(toy: World) -> None:
    policies = {"one": SCRIPTED["random"], "other": SCRIPTED["random"]}

    def returns(seed: int) -> np.ndarray:
        scored = Task(lambda frames, goal: float(frames[1:].mean()), "grey")
        return evaluate_policies(toy, policies, toy.gallery.names(), steps=3, task=scored, seed=seed).model  # type: ignore[union-attr]

    one, again, other = returns(0), returns(0), returns(1)
    assert np.array_equal(one[0], one[1])
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_without_a_simulator(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda: True)
    for simulator, said in ((False, "not asked"), (True, "none of the starts")):
        found = evaluate_policies(toy, PUSH, ["start:0"], steps=1, simulator=simulator)
        assert np.isfinite(found.model).all()
        assert np.isnan(found.simulator).all()
        assert said in found.note
    monkeypatch.setattr(module, "available", lambda: False)
    assert "extra `sim`" in evaluate_policies(toy, PUSH, ["start:0"], steps=1).note


def test_starts_are_spread_over_recordings_that_go_on(toy: World) -> None:
    names = spread_starts(toy, 5, steps=6)
    assert len(set(names)) == 5
    for name in names:
        start = toy.start(name)
        assert start.name == name
        assert recording(toy, start, 6) is not None
    with pytest.raises(HwmError, match="no episode"):
        spread_starts(toy, 1, steps=50)
    toy.gallery = None
    with pytest.raises(HwmError, match="store"):
        spread_starts(toy, 1, steps=1)


def test_mistakes(toy: World) -> None:
    def run(policies: dict[str, Any], starts: list[Any] = ["start:0"], **more: Any) -> None:  # noqa: B006
        evaluate_policies(toy, policies, starts, **{"steps": 2, **more})

    for empty in (({}, ["start:0"], {}), (PUSH, [], {}), (PUSH, ["start:0"], {"steps": 0})):
        with pytest.raises(HwmError, match="at least one"):
            run(empty[0], empty[1], **empty[2])  # type: ignore[arg-type]
    with pytest.raises(HwmError, match="reach_view"):
        run(PUSH, task="reach_vew")
    with pytest.raises(HwmError, match="start:77"):
        run(PUSH, ["start:77"])
    with pytest.raises(HwmError, match="ANGULAR_VELOCITY"):
        run({"turn": SCRIPTED["turn_left"]})
    with pytest.raises(HwmError, match="neither"):
        run({"none": 3})
    with pytest.raises(HwmError, match="shape"):
        run({"short": lambda observation: np.zeros(2)})
    with pytest.raises(HwmError, match="2 commands"):
        run({"long": lambda observation: np.zeros((5, 3))})
    with pytest.raises(HwmError, match="goal"):
        run(PUSH, [a_start(toy)], task="reach_view")


# ---------------------------------------------------------------------- the shipped model
shipped = pytest.mark.skipif(
    not all(path.exists() for path in (STORES["mini_heldout"], ROOT / "masked_hwm_mini", ROOT / "tiny")),
    reason="the shipped model, tokenizer or held-out store is absent",
)


@shipped
@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="the extra `sim` or a way to draw is missing")
def test_the_shipped_model_ranks_turns_as_the_simulator_does() -> None:
    world = World.open()
    chosen = {name: SCRIPTED[name] for name in ("turn_right", "still", "turn_left")}
    starts = [f"start:room_100000{room}@20" for room in range(3)]
    found = evaluate_policies(world, chosen, starts, steps=6)
    assert found.ranking("simulator") == ["turn_left", "still", "turn_right"]
    assert found.rankings_agree, found.verdict()
    correlation = found.correlation()
    assert correlation is not None
    assert correlation > 0.5


@shipped
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "report.json"
    line = f"policies --policies still random --episodes 2 --steps 1 --no-simulator --sampler steps=1 --out {out}"
    assert cli.main([*line.split(), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text(encoding="utf-8"))
    assert list(printed["policies"]) == ["still", "random"]
    assert len(printed["starts"]) == 2
    assert printed["command"].startswith("hwm policies --policies still")
    assert cli.main(line.split()) == 0
    assert "random" in capsys.readouterr().out
    for wrong in ("--task jump", "--policies nobody", "--episodes 0", "--sampler stps=1", "--store nowhere"):
        assert cli.main([*line.split(), *wrong.split()]) == 2


def test_the_tables_are_what_the_documentation_says() -> None:
    assert list(SCRIPTED) == ["recorded", "still", "random", "turn_left", "turn_right", "forward"]
    assert all(isinstance(policy, Scripted) for policy in SCRIPTED.values())
    assert list(TASKS) == ["turn", "reach_view"]
