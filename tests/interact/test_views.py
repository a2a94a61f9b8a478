"""Play with several cameras: the model sees them one below the other, people side by side."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwm.data.store import Store
from hwm.errors import HwmError
from hwm.interact import session as sessions
from hwm.interact.export import write_store
from hwm.interact.limits import Limits
from hwm.interact.policies import SCRIPTED, evaluate_policies
from hwm.interact.presets import Preset
from hwm.interact.session import Session, World
from hwm.interact.starts import Gallery, start_of_frames
from hwm.pictures.stack import side_by_side
from hwm.pictures.video import read_video
from hwm.tokenizers.views import for_views
from hwm.types import LatentSpec
from tests.conftest import make_store
from tests.interact.conftest import Painter, a_start, build_world
from tests.models.toys import toy_spec

VIEWS = ("head", "wrist")


@pytest.fixture
def world() -> World:
    """A toy world of two cameras of 16 x 16 pixels."""
    one = build_world("masked_hwm")
    latent = replace(one.model.spec.latent, grid=(8, 4), views=VIEWS)
    model = one.model.config.build(replace(one.model.spec, latent=latent))
    return World(model, for_views(Painter(toy_spec()), VIEWS), one.limits)


def test_frames_are_stacked_and_videos_side_by_side(world: World, tmp_path: Path) -> None:
    session = Session(world)
    session.reset(a_start(world), 0)
    frames = session.step(np.zeros(3, np.float32))
    assert frames.shape == (1, 32, 16, 3)
    session.write_video(tmp_path / "a.mp4")
    film = np.stack(list(read_video(tmp_path / "a.mp4")))
    assert film.shape[1:] == (16, 32, 3)
    assert abs(film[-1].astype(int) - side_by_side(frames[-1], 2)).mean() < 12


def test_a_session_becomes_a_store_of_its_cameras(world: World, tmp_path: Path) -> None:
    session = Session(world)
    session.reset(a_start(world), 0)
    frames = session.step(np.zeros(3, np.float32))
    store = write_store(session, tmp_path / "s")
    assert store.header.views == VIEWS
    shown = np.stack(list(store.frames(store.episodes[0])))
    assert shown.shape[1:] == (32, 16, 3)
    assert abs(shown[-1].astype(int) - frames[-1]).mean() < 12
    Store(tmp_path / "s").verify()


def test_own_pictures_show_the_views_side_by_side(world: World) -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40:] = 255
    start = start_of_frames([picture], world.tokenizer, 2, world.model.spec.actions["arm"], "arm", "mine")
    head, wrist = start.latents.chunk(2, -2)
    assert len(head.unique()) == len(wrist.unique()) == 1
    assert head.unique() < wrist.unique()


def test_stores_of_other_cameras_are_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = replace(world.model.spec.latent, grid=(8, 4), views=("head", "chest"))
    arm = {"embodiment": "arm", "action_names": ("shoulder", "elbow", "wrist"), "tokenizer": ""}
    store = make_store(tmp_path / "s", [9], latent=latent, views=latent.views, **arm)
    monkeypatch.setattr("hwm.loading.load", lambda *_: world.model)
    with pytest.raises(HwmError, match=r"of the cameras head, chest; the model knows .* of the cameras head, wrist"):
        sessions.World.open("toy", store=store.path, device="cpu")


def test_tasks_look_through_the_first_camera(world: World) -> None:
    seen = []

    def looked(frames: np.ndarray, goal: np.ndarray | None) -> float:
        seen.append(frames.shape)
        return 0.0

    from hwm.interact.tasks import Task

    still = {"still": SCRIPTED["still"]}
    evaluate_policies(world, still, [a_start(world)], steps=2, task=Task(looked, "nothing"), simulator=False)
    assert seen == [(3, 16, 16, 3)]


def test_the_page_is_told_of_its_views(world: World, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from hwm.interact.engine import Engine
    from hwm.interact.server import application
    from hwm.interact.shared import Server

    latent: LatentSpec = world.model.spec.latent
    names = ("shoulder", "elbow", "wrist")
    store = make_store(
        tmp_path / "s", [12, 9], latent=latent, views=VIEWS, embodiment="arm", action_names=names, tokenizer=""
    )
    world.gallery, world.limits["arm"] = Gallery(store, world.model.config.past, count=2), Limits.of_store(store)
    server = Server(
        world, {"plain": Preset("plain", "Plain", {})}, engine=Engine(world, threads=1), hosts=("testserver",)
    )
    with TestClient(application(server)) as client, client.websocket_connect("/ws") as socket:
        welcome = socket.receive_json()
        assert (welcome["size"], welcome["views"]) == ([16, 32], ["head", "wrist"])
        socket.send_json({"type": "reset", "start": "start:0", "seed": 0})
        data = socket.receive_bytes()
        length = struct.unpack(">I", data[:4])[0]
        assert json.loads(data[4 : 4 + length])["kind"] == "reset"
        assert Image.open(io.BytesIO(data[4 + length :])).size == (32, 16)
        thumb = client.get("/thumb/start:0")
        assert Image.open(io.BytesIO(thumb.content)).size == (32, 16)
