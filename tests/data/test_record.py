"""Recording: rooms kept for evaluation are never trained on, and a kill costs no more than the rooms under way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwm.data import record
from hwm.data.origin import origin_of
from hwm.data.record import HELD_OUT_FROM, SimRecording, episode_name, record_sim
from hwm.data.sources import SourceOptions, open_source
from hwm.data.store import Store, StoreError
from hwm.encode.episodes import encode
from hwm.errors import HwmError
from hwm.pictures.video import read_video
from hwm.tokenizers.pixels import Pixels


@given(
    minutes=st.floats(0.1, 600),
    seconds=st.floats(1, 120),
    first=st.integers(0, HELD_OUT_FROM + 10),
    other=st.integers(0, HELD_OUT_FROM + 10),
)
def test_train_and_held_out_rooms_are_never_shared(minutes: float, seconds: float, first: int, other: int) -> None:
    held = SimRecording(minutes=minutes, seconds=seconds, first_seed=other, held_out=True).seeds()
    assert min(held) >= HELD_OUT_FROM
    config = SimRecording(minutes=minutes, seconds=seconds, first_seed=first)
    rooms = max(1, round(minutes * 60 / seconds))
    if first + rooms > HELD_OUT_FROM:
        with pytest.raises(HwmError, match="held out"):
            config.seeds()
    else:
        assert config.seeds() == list(range(first, first + rooms))
        assert not set(config.seeds()) & set(held)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minutes": 0}, "must be positive"),
        ({"seconds": -1.0}, "must be positive"),
        ({"every": 0}, "must be positive"),
        ({"size": 63}, "must be even"),
        ({"first_seed": -1, "held_out": True}, "must not be negative"),
    ],
)
def test_settings_without_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(HwmError, match=message):
        SimRecording(**change)


def pretend(
    seed: int,
    seconds: float,
    size: int,
    every: int,
    world: str = "rooms",
    cameras: tuple[str, ...] = ("head",),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An episode without a simulator: actions[t] = t."""
    count = round(seconds * 30)
    frames = np.zeros(((count - 1) // every + 1, len(cameras) * size, size, 3), np.uint8)
    frames[:, size:] = 100  # the second camera sees something brighter
    actions = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None], (count, 25)).copy()
    return frames, actions, actions


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Record without other processes and without a simulator."""
    import hwm.sim.episode

    monkeypatch.setattr(hwm.sim.episode, "simulate_episode", pretend)
    monkeypatch.setattr(record, "_record_all", lambda jobs, processes: map(record._record_episode, jobs))
    return monkeypatch


@pytest.mark.parametrize("every", [1, 3])
def test_actions_lead_to_their_frame(tmp_path: Path, in_this_process, every: int) -> None:
    store = record_sim(tmp_path / "r", SimRecording(minutes=2 / 60, seconds=1, size=16, every=every))
    assert [e.id for e in store.episodes] == [episode_name("rooms", 0), episode_name("rooms", 1)]
    assert [e.info["seed"] for e in store.episodes] == [0, 1]
    assert store.header.fps == pytest.approx(30 / every)
    for e in store.episodes:
        assert len(list(read_video(store.video(e)))) == e.steps == 29 // every + 1
        actions = store.actions[e.start : e.stop, :, 0]
        assert actions[0].tolist() == [0] * every
        assert actions[1:].ravel().tolist() == list(range(1, 1 + every * (e.steps - 1)))


def test_a_failed_room_is_named_and_the_rest_is_kept(tmp_path: Path, in_this_process, capsys) -> None:
    config = SimRecording(minutes=3 / 60, seconds=1, size=16)

    def broken(seed: int, *args: object, **kwargs: object) -> object:
        if seed == 1:
            raise RuntimeError("no headless OpenGL was found")
        return pretend(seed, 1, 16, 1)

    with in_this_process.context() as patch:
        patch.setattr("hwm.sim.episode.simulate_episode", broken)
        with pytest.raises(HwmError, match="room_0000001: no headless OpenGL was found"):
            record_sim(tmp_path / "r", config)
    assert (tmp_path / "r" / ".partial" / "room_0000000").is_dir()
    with pytest.raises(StoreError, match="begun with other data: it holds episode 'room_0000000'"):
        record_sim(tmp_path / "r", replace(config, first_seed=5))
    capsys.readouterr()
    assert record_sim(tmp_path / "r", config).steps == 90
    assert "2/2" in capsys.readouterr().out  # the first room was not recorded again


def test_each_camera_has_its_film(tmp_path: Path, in_this_process) -> None:
    config = SimRecording(minutes=1 / 60, seconds=1, size=16, cameras=("head", "wrist"))
    store = record_sim(tmp_path / "r", config)
    (episode,) = store.episodes
    assert (store.header.views, episode.info["cameras"]) == (("head", "wrist"), ["head", "wrist"])
    head, wrist = (np.stack(list(read_video(store.video(episode, view)))) for view in store.header.views)
    assert head.shape == wrist.shape == (30, 16, 16, 3)
    assert head.max() < 20 < 80 < wrist.min()
    origin = origin_of(store, episode, 3)
    assert origin is not None
    assert origin.cameras == ("head", "wrist")
    alone = encode(open_source(store.path, SourceOptions(camera=("wrist",))), Pixels((16, 16)), tmp_path / "alone")
    origin = origin_of(alone, alone.episodes[0], 3)
    assert origin is not None
    assert origin.cameras == ("wrist",), "the twin of what was encoded"
    one = record_sim(tmp_path / "chest", SimRecording(minutes=1 / 60, seconds=1, size=16, cameras=("chest",)))
    assert one.header.views == ()
    assert one.episodes[0].info["cameras"] == ["chest"]
    plain = record_sim(tmp_path / "plain", SimRecording(minutes=1 / 60, seconds=1, size=16))
    assert "cameras" not in plain.episodes[0].info
    with pytest.raises(HwmError, match="name each that is wanted once"):
        SimRecording(cameras=("head", "head"))


def test_takes_in_the_home_say_their_world(tmp_path: Path, in_this_process) -> None:
    config = SimRecording(world="home", minutes=2 / 60, seconds=1, size=16, held_out=True)
    store = record_sim(tmp_path / "r", config)
    assert [e.id for e in store.episodes] == ["take_1000000", "take_1000001"]
    assert [(e.info["seed"], e.info["world"]) for e in store.episodes] == [(1_000_000, "home"), (1_000_001, "home")]
    assert "one home of three rooms" in store.header.source
    origin = origin_of(store, store.episodes[1], 5)
    assert origin is not None
    assert (origin.seed, origin.world, len(origin.actions)) == (1_000_001, "home", 5)
    rooms = record_sim(tmp_path / "rooms", SimRecording(minutes=1 / 60, seconds=1, size=16))
    assert "random rooms" in rooms.header.source
    assert rooms.episodes[0].info["world"] == "rooms"
    del rooms.episodes[0].info["world"]  # as of stores that were recorded when there was one kind of world
    origin = origin_of(rooms, rooms.episodes[0], 5)
    assert origin is not None
    assert origin.world == "rooms"


@pytest.mark.parametrize(
    "change", [{"world": "home"}, {"held_out": True}, {"size": 32}, {"seconds": 2.0}, {"every": 2}]
)
def test_other_settings_do_not_resume(tmp_path: Path, in_this_process, change: dict) -> None:
    def broken(*args: object, **kwargs: object) -> object:
        raise RuntimeError("stop")

    with in_this_process.context() as patch:
        patch.setattr("hwm.sim.episode.simulate_episode", broken)
        with pytest.raises(HwmError, match="stop"):
            record_sim(tmp_path / "r", SimRecording(minutes=0.1, seconds=1, size=16))
    with pytest.raises(StoreError, match="begun with other settings"):
        record_sim(tmp_path / "r", SimRecording(**{"minutes": 0.1, "seconds": 1, "size": 16, **change}))


def dies(job: record.Job) -> int:
    Path(job[0]).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_killed_process_does_not_hang_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_record_episode", dies)
    with pytest.raises(HwmError, match="was killed, perhaps for want of memory"):
        list(record._record_all([(str(tmp_path / "begun"), seed, SimRecording()) for seed in range(2)], 1))
    assert (tmp_path / "begun").exists()


def _can_render() -> bool:
    if importlib.util.find_spec("mujoco") is None:
        return False
    from hwm.sim import graphics

    try:
        graphics.choose_backend()
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not _can_render(), reason="needs the extra `sim` and a headless OpenGL")
def test_a_real_recording_resumes(tmp_path: Path) -> None:
    """One room of a second; then the same folder asked for two of them, as after a kill."""
    config = SimRecording(minutes=1 / 60, seconds=1, size=64, every=3, processes=1)
    done = record_sim(tmp_path / "r", config)
    first = (done.path / "video" / "room_0000000.mp4").read_bytes()
    assert done.header.action_shape == (3, 25)
    frames = list(read_video(done.video(done.episodes[0])))
    assert len(frames) == done.steps == 10
    assert frames[0].std() > 5
    unfinish(done)
    two = record_sim(done.path, SimRecording(minutes=2 / 60, seconds=1, size=64, every=3, processes=1))
    assert [e.id for e in two.episodes] == ["room_0000000", "room_0000001"]
    assert (two.path / "video" / "room_0000000.mp4").read_bytes() == first
    assert np.array_equal(two.actions[:10], done.actions)
    assert not np.array_equal(two.actions[10:], two.actions[:10])


def unfinish(store: Store) -> None:
    """Put a store of one episode back to the moment before `finish`."""
    meta = json.loads((store.path / "meta.json").read_text(encoding="utf-8"))
    folder = store.path / ".partial" / store.episodes[0].id
    folder.mkdir(parents=True)
    store.video(store.episodes[0]).rename(folder / "video.mp4")
    (folder / "actions.bin").write_bytes((store.path / "actions.bin").read_bytes())
    (folder / "info.json").write_text(
        json.dumps({"steps": store.steps, "info": meta["episodes"][0]["info"]}), encoding="utf-8"
    )
    (folder.parent / "header.json").write_text(json.dumps(meta["header"]), encoding="utf-8")
    (store.path / "meta.json").unlink()
