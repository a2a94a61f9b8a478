"""Sessions: the same in company as alone, the same again after going back, and the same from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwm.data.store import Store
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.interact.export import write_store
from hwm.interact.limits import Limits
from hwm.interact.replay import Replay, pack
from hwm.interact.session import Session, World, advance, mix
from hwm.interact.starts import Gallery, cropped, spread, start_of_file
from hwm.objectives.maskgit import MaskGITSampler
from hwm.pictures.video import read_video, write_video
from hwm.sim.twin import Origin
from hwm.types import Batch, LatentSpec
from tests.conftest import make_arrays, make_frames, make_header, make_store
from tests.interact.conftest import a_start, build_world


def commands(world: World, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    limits = next(iter(world.limits.values()))
    return rng.uniform(limits.low, limits.high, (count, len(limits.names))).astype(np.float32)


def played(world: World, count: int = 9, seed: int = 0, sampler: Any = None, **more: Any) -> Session:
    session = Session(world, sampler)
    session.reset(a_start(world, seed), seed=seed)
    for action in commands(world, count, seed):
        session.step(action, **more)
    return session


def test_stepping_is_predicting_step_after_step(world: World) -> None:
    session, model = played(world, 9, seed=4), world.model
    latents, actions = torch.cat(session.latents), torch.from_numpy(np.stack(session.actions))
    for done in range(session.prompt, len(latents), model.group):
        start, stop = model.window_start(done), done + model.group
        window = Batch(latents[None, start:done], actions[None, start:stop], "arm")
        part = model.predict(window, generator=torch.Generator().manual_seed(mix(4, done)))  # no cache
        if model.spec.latent.vocab:
            assert torch.equal(part.latents[0], latents[done:stop])
        else:  # numbers round otherwise without a cache
            torch.testing.assert_close(part.latents[0], latents[done:stop], atol=1e-4, rtol=1e-5)
    assert session.steps == 9
    assert session.frames().shape[0] == model.group * world.tokenizer.latent.stride


@pytest.mark.parametrize("name", ["hma_discrete", "hma_continuous"])
def test_who_plays_has_not_said_what_follows(name: str) -> None:
    """A model that is told the actions that follow a step is told those that lead to it once more."""
    world = build_world(name, following_actions=True, window_stride=1)  # each window is run anew
    session, model = played(world, 6), world.model
    latents, actions = torch.cat(session.latents), torch.from_numpy(np.stack(session.actions))
    for done in range(session.prompt, len(latents)):
        start = model.window_start(done)
        window = Batch(latents[None, start:done], actions[None, start : done + 1], "arm", actions[None, done])
        part = model.predict(window, generator=torch.Generator().manual_seed(mix(0, done)))
        torch.testing.assert_close(part.latents[0], latents[done : done + 1], atol=1e-4, rtol=1e-5)


def test_actions_matter(world: World) -> None:
    assert played(world, 6).hashes != played(world, 6, sampler=None, ramp=True).hashes


def test_in_company_as_alone(world: World) -> None:
    together = [Session(world) for _ in range(3)]
    for i, session in enumerate(together):
        session.reset(a_start(world, i), seed=i)
    together[2].step(commands(world, 1, 9)[0])  # out of step with the others: another window
    plans = [commands(world, 7, i) for i in range(3)]
    for t in range(7):
        advance(together, [s.plan(plans[i][t]) for i, s in enumerate(together)])
    for i, session in enumerate(together):
        alone = Session(world)
        alone.reset(a_start(world, i), seed=i)
        if i == 2:
            alone.step(commands(world, 1, 9)[0])
        for action in plans[i]:
            alone.step(action)
        for a, b in zip(alone.latents, session.latents, strict=True):
            assert torch.allclose(a.float(), b.float(), atol=1e-4)


@pytest.mark.parametrize("pick", ["likeliest", "drawn"])
def test_random_draws_depend_on_seed_and_step_alone(pick: str) -> None:
    world = build_world("masked_hwm")
    sampler = MaskGITSampler(steps=2, temperature=1.0 if pick == "drawn" else 0.0)
    one, again = played(world, 5, sampler=sampler), played(world, 5, sampler=sampler)
    assert one.hashes == again.hashes
    other = Session(world, sampler)
    other.reset(a_start(world, 0), seed=1)
    for action in commands(world, 5):
        other.step(action)
    assert (other.hashes != one.hashes) == (pick == "drawn")


@given(back=st.integers(1, 12), count=st.integers(1, 10), window_stride=st.integers(1, 3))
def test_going_back_forgets_nothing_else(back: int, count: int, window_stride: int) -> None:
    world = build_world("masked_hwm", past=3, window_stride=window_stride, learned_steps=1)
    session, wanted = played(world, count), commands(world, count)
    hashes = list(session.hashes)
    before = session.frames()
    session.undo(back)
    kept = max(0, count - back)
    assert session.steps == kept
    assert session.hashes == hashes[:kept]
    for action in wanted[kept:]:
        session.step(action)
    assert session.hashes == hashes
    assert np.array_equal(session.frames(), before)


def test_a_replay_file_shows_the_same_again(world: World, tmp_path: Path) -> None:
    session = played(world, 6, seed=3)
    session.replay().save(tmp_path / "a.json")
    recorded = Replay.load(tmp_path / "a.json")
    frames: list[np.ndarray] = []
    other = Session(world)
    assert other.play(recorded, frames.append) is None
    assert other.hashes == session.hashes
    assert len(frames) == 7
    assert np.array_equal(frames[-1], session.frames())
    changed = recorded.actions.copy()
    changed[3 * world.model.group] += 1.0
    assert other.play(replace(recorded, actions=changed)) == 3


def test_a_replay_keeps_where_the_simulator_was(tmp_path: Path) -> None:
    replay = played(build_world(), 2).replay()
    there = replace(replay, start=replace(replay.start, origin=Origin(7, np.ones((3, 2, 25), np.float32), "home")))
    there.save(tmp_path / "a.json")
    origin = Replay.load(tmp_path / "a.json").start.origin
    assert origin is not None
    assert (origin.seed, origin.world, origin.actions.shape) == (7, "home", (3, 2, 25))
    plain = there.to_json()
    del plain["start"]["origin"]["world"]  # as in files of earlier versions
    origin = Replay.from_json(plain).start.origin
    assert origin is not None
    assert origin.world == "rooms"


def test_a_replay_file_names_its_number_format() -> None:
    world = build_world()
    for dtype in ("float32", "bfloat16"):
        of = World(world.model, world.tokenizer, world.limits, dtype=dtype)
        plain = played(of, 1).replay().to_json()
        assert Replay.from_json(plain).dtype == plain["dtype"] == dtype
    del plain["dtype"]  # as older files have it
    older = Replay.from_json(plain)
    assert older.dtype is None
    assert Session(of).play(older) is None


def test_replays_say_what_is_wrong(tmp_path: Path) -> None:
    world = build_world()
    plain = played(world, 2).replay().to_json()

    def broken(**changes: Any) -> dict[str, Any]:
        return {**plain, **changes}

    nan = pack(np.full((2, 2, 3), np.nan, np.float32))
    for bad, message in [
        ([], "not a replay"),
        (broken(format="other"), "format 'other'"),
        ({k: v for k, v in plain.items() if k != "seed"}, "seed"),
        (broken(actions={**plain["actions"], "shape": [1, 2]}), "reshape"),
        (broken(actions={**plain["actions"], "dtype": "object"}), "arrays are"),
        (broken(actions={**plain["actions"], "data": "?"}), "not a replay"),
        (broken(actions=nan), "not a finite"),
        (broken(dtype="int3"), "number formats are float32, bfloat16, float16"),
        (broken(dtype=[]), "number formats are"),
    ]:
        with pytest.raises(HwmError, match=message):
            Replay.from_json(bad)
    with pytest.raises(HwmError, match="is of tokenizer other"):
        Session(world).play(Replay.from_json(broken(tokenizer="other")))
    start = {**plain["start"], "embodiment": "fish"}
    with pytest.raises(HwmError, match="fish"):
        Session(world).play(Replay.from_json(broken(start=start)))
    (tmp_path / "b.json").write_text('{"format":', encoding="utf-8")
    with pytest.raises(HwmError, match="not a replay file"):
        Replay.load(tmp_path / "b.json")
    with pytest.raises(HwmError, match="cannot read"):
        Replay.load(tmp_path / "missing.json")


def test_commands_are_checked_and_limited() -> None:
    world = build_world()
    session = Session(world)
    with pytest.raises(HwmError, match="reset the session"):
        session.step([0, 0, 0])
    session.reset(a_start(world))
    for bad, message in [
        ([0.0, 0.0], "3 values"),
        ([0.0, float("nan"), 0.0], "'elbow' is not a finite"),
        ({"elbo": 1.0}, "elbow"),
        ({"elbow": "far"}, "must be a number"),
        ("left", "3 numbers"),
        (np.zeros((5, 3)), "2 x 3"),
    ]:
        with pytest.raises(HwmError, match=message):
            session.plan(bad)  # type: ignore[arg-type]
    limits = world.limits["arm"]
    assert np.allclose(session.plan({"elbow": 1e9})[..., 1], limits.high[1])
    ramp = session.plan({"elbow": 1e9}, ramp=True)[0, :, 1]
    assert np.allclose(np.diff(ramp), limits.change[1], atol=1e-5)
    assert np.array_equal(session.plan({})[0, 0], limits.vector(session.last, session.last))
    assert session.steps == 0


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), st.integers(1, 20))
def test_ramps_end_at_what_was_wanted_and_never_jump(wanted: list[float], count: int) -> None:
    limits = build_world().limits["arm"]
    target = limits.vector(wanted, np.zeros(3, np.float32))
    first = limits.vector([0.0, 0.0, 0.0], np.zeros(3))
    path = np.concatenate([first[None], limits.towards(target, first, count)])
    assert (np.abs(np.diff(path, axis=0)) <= limits.change * 1.001 + 1e-6).all()
    reached = np.abs(target - first) <= limits.change * count
    assert np.allclose(path[-1][reached], target[reached], atol=1e-5)


def test_velocities_rest_at_zero_and_places_stay() -> None:
    names = ("LINEAR_VELOCITY", "rail_vel", "delta_x", "wheel speed", "joint_1", "unveiled", "gripper")
    count = len(names)
    low = np.full(count, -1.0)
    low[1] = 0.2  # never still in the data
    rest = Limits(names, low, np.ones(count), np.ones(count)).rest
    np.testing.assert_allclose(rest, [0, 0.2, 0, 0, np.nan, np.nan, np.nan])


def test_starts_are_checked() -> None:
    world = build_world()
    good = a_start(world)
    with pytest.raises(HwmError, match="no gallery"):
        world.start("start:0")
    for change, message in [
        ({"latents": good.latents + 60}, "token ids"),
        ({"latents": good.latents.float()}, "token ids"),
        ({"latents": torch.cat([good.latents] * 3)}, "only"),
        ({"actions": good.actions * np.nan}, "not finite"),
        ({"embodiment": "fish"}, "fish"),
    ]:
        with pytest.raises(HwmError, match=message):
            world.start(replace(good, **change))


def test_starts_spread_over_episodes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [12, 9, 2])
    places = [[(e.id, step) for e, step in choices] for choices in spread(store, 4, 4)]
    assert places == [[("e0", 2)], [("e1", 1)], [("e0", 6)], [("e1", 4)]]
    several = [[(e.id, step) for e, step in choices] for choices in spread(store, 4, 2, choices=3)]
    assert several == [[("e0", 3), ("e0", 4), ("e0", 5)], [("e1", 2), ("e1", 2), ("e1", 3)]]
    with pytest.raises(HwmError, match="no episode has the 20 steps"):
        spread(store, 20, 4)


def test_starts_can_be_asked_for(tmp_path: Path) -> None:
    gallery = Gallery(make_store(tmp_path / "s", [12, 9, 2]), past=4, count=4)
    assert sorted(e.id for e, _ in gallery.places) == ["e0", "e0", "e1", "e1"]
    store = gallery.store
    episode, step = gallery.place("start:1")
    start = gallery["start:1"]
    rows = slice(episode.start + step, episode.start + step + 4)
    assert np.array_equal(start.latents.numpy(), np.asarray(store.latents[rows]))  # type: ignore[index]
    assert np.array_equal(start.actions, store.actions[rows])
    assert np.array_equal(gallery["e0@8"].actions, store.actions[8:12])
    for bad in ("start:4", "e0@9", "e9@0", "e2@0", "../x", "start:-1"):
        with pytest.raises(HwmError, match="there is no start"):
            gallery[bad]


@pytest.mark.parametrize("kind", [{"vocab": 27, "levels": (3, 3, 3)}, {"vocab": 9}, {"channels": 3}])
def test_the_first_start_has_something_to_see(tmp_path: Path, kind: dict[str, Any]) -> None:
    """Of a robot that stands before a bare wall, looks at a room, and goes about it, the latter is the best start."""
    rng = np.random.default_rng(0)
    writer = Writer(tmp_path / "s", make_header(latent=LatentSpec(grid=(4, 4), **kind)))
    wall, steps = 4, 24
    actions, noise = make_arrays(writer.header, steps, seed=1)
    assert noise is not None

    def add(name: str, latents: np.ndarray) -> None:
        writer.add(name, actions, latents.astype(noise.dtype), None, {"frames_per_step": 1})

    room = rng.permutation(noise[0].ravel()).reshape(noise[0].shape)
    add("at_the_wall", np.full_like(noise, wall))
    add("turns_to_a_room", np.where(np.arange(steps).reshape(-1, *[1] * room.ndim) < 12, wall, room))
    add("goes_about", noise)
    gallery = Gallery(writer.finish(), past=4, count=3)
    found = [(e.id, step) for e, step in gallery.places]
    assert [name for name, _ in found] == ["goes_about", "turns_to_a_room", "at_the_wall"]
    assert found[1][1] + 4 > 12 - 10  # at the end of the start it sees the room, or will within a second
    assert gallery["start:0"].episode == "goes_about"
    assert np.array_equal(gallery["at_the_wall@3"].latents.numpy(), np.full_like(noise[:4], wall))


def test_own_pictures_and_videos_begin_a_session(tmp_path: Path) -> None:
    world = build_world()
    spec = world.model.spec.actions["arm"]
    frames = make_frames(9, 32, 48)
    write_video(tmp_path / "v.mp4", frames, 10)
    start = start_of_file(tmp_path / "v.mp4", world.tokenizer, 2, action=spec, embodiment="arm")
    session = Session(world)
    session.reset(start)
    session.step([0.0, 0.0, 0.0])
    shown = list(read_video(tmp_path / "v.mp4"))[-2:]
    again = start_of_file(tmp_path / "v.mp4", world.tokenizer, 2, action=spec, embodiment="arm")
    assert torch.equal(start.latents, again.latents)
    assert cropped(shown[0], world.tokenizer.size).shape == (32, 32, 3)
    assert np.allclose(start.actions, np.asarray(spec.mean))
    (tmp_path / "x.png").write_bytes(b"no picture at all")
    with pytest.raises(HwmError, match=r"no video or picture|cannot read"):
        start_of_file(tmp_path / "x.png", world.tokenizer, 2, action=spec, embodiment="arm")


def test_a_session_becomes_a_store_and_a_video(tmp_path: Path) -> None:
    world = build_world()
    session = played(world, 5)
    store = write_store(session, tmp_path / "s")
    Store(store.path).verify()
    assert store.steps == session.prompt + 5
    assert np.array_equal(store.actions, np.stack(session.actions))
    assert np.array_equal(np.asarray(store.latents), torch.cat(session.latents).numpy())
    assert store.statistics[0] == pytest.approx(world.model.spec.actions["arm"].mean)
    part = write_store(session, tmp_path / "p", 2, 4)
    assert np.array_equal(part.actions, np.stack(session.actions[session.prompt + 2 : session.prompt + 4]))
    assert session.write_video(tmp_path / "v.mp4") == session.prompt + 5
    assert np.array_equal(session.video()[-1], session.frames()[-1])
    with pytest.raises(HwmError, match="not within the 5 steps"):
        session.video(3, 9)


def test_worlds_refuse_another_tokenizer() -> None:
    world = build_world()
    model = world.model
    object.__setattr__(model, "spec", replace(model.spec, tokenizer="other@1"))
    with pytest.raises(HwmError, match="other@1"):
        World(model, world.tokenizer, world.limits)


def test_any_family_plays_in_bfloat16(world: World) -> None:
    half = World(world.model, world.tokenizer, world.limits, name=world.name, dtype="bfloat16")
    assert half.runtime.format == "bfloat16"
    session, wide = played(half, 4), played(world, 4)
    assert session.latents[-1].dtype == wide.latents[-1].dtype
    if session.latents[-1].is_floating_point():
        assert session.latents[-1].isfinite().all()
        assert not torch.equal(session.latents[-1], wide.latents[-1])
    hashes = list(session.hashes)
    session.undo(2)
    for action in commands(half, 4)[2:]:
        session.step(action)
    assert session.hashes == hashes, "the same bits in one format"
    other = Session(half)
    assert other.play(session.replay()) is None


def test_what_is_too_large_for_float16_is_told() -> None:
    world = build_world("hma_continuous")
    with pytest.raises(HwmError, match="not finite in float16: take dtype bfloat16 or float32"):
        played(World(world.model, world.tokenizer, world.limits, dtype="float16"), 2)


def test_a_device_that_is_not_there_opens_no_session(tmp_path: Path) -> None:
    with pytest.raises(HwmError, match="no device called 'abacus'"):
        Session.open(tmp_path / "none", device="abacus")
    with pytest.raises(HwmError, match="no number format called 'int3'"):
        Session.open(tmp_path / "none", dtype="int3")
