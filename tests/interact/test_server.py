"""The play server: what goes over the wire, and that nothing that comes over it does harm."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from hwm.data.store import Store
from hwm.interact.engine import Engine, jpeg
from hwm.interact.limits import Limits
from hwm.interact.presets import Preset
from hwm.interact.replay import Replay
from hwm.interact.server import application
from hwm.interact.session import Session
from hwm.interact.shared import Server, ServerLimits
from hwm.interact.starts import Gallery
from tests.conftest import make_header, make_store
from tests.interact.conftest import build_world
from tests.models.toys import toy_spec

ARM: dict[str, Any] = {"embodiment": "arm", "action_names": ("shoulder", "elbow", "wrist"), "latent": toy_spec().latent}


def make_server(folder: Path, names: tuple[str, ...] = ARM["action_names"], **options: Any) -> Server:
    world = build_world("masked_hwm", names, past=3, window_stride=2, learned_steps=1)
    assert make_header(**ARM).actions_per_step == 2
    store = make_store(folder / "store", [12, 9], **{**ARM, "action_names": names, "tokenizer": ""})
    world.gallery, world.limits["arm"] = Gallery(store, 3, count=4), Limits.of_store(store)
    presets = {
        "plain": Preset("plain", "Plain", {}),
        "drawn": Preset("drawn", "Drawn", {"steps": 2, "temperature": 1.0}),
    }
    limits = options.pop("limits", ServerLimits(rate=10_000))
    hosts = ("testserver", "localhost")
    return Server(world, presets, engine=Engine(world, threads=1), limits=limits, hosts=hosts, **options)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return make_server(tmp_path)


@pytest.fixture
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(application(server)) as client:
        yield client


def ask(socket: Any, **message: Any) -> dict[str, Any]:
    """Send a message; its answer, a frame's header with the pictures under `data`."""
    socket.send_text(json.dumps(message))
    return answer(socket)


def answer(socket: Any) -> dict[str, Any]:
    received = socket.receive()
    if received.get("text") is not None:
        plain: dict[str, Any] = json.loads(received["text"])
        return plain
    data = received["bytes"]
    size = struct.unpack(">I", data[:4])[0]
    header: dict[str, Any] = json.loads(data[4 : 4 + size])
    rest, header["data"] = data[4 + size :], []
    for picture in header["pictures"]:
        header["data"].append(rest[: picture["bytes"]])
        rest = rest[picture["bytes"] :]
    assert not rest
    return header


def test_a_session_over_the_wire_is_a_session(server: Server, client: TestClient, tmp_path: Path) -> None:
    with client.websocket_connect("/ws") as socket:
        welcome = answer(socket)
        assert welcome["type"] == "welcome"
        assert [a["name"] for a in welcome["actions"]] == list(ARM["action_names"])
        assert len(welcome["starts"]) == 4
        assert [p["name"] for p in welcome["presets"]] == ["plain", "drawn"]
        first = ask(socket, type="reset", start="start:2", seed=5, id="a")
        assert (first["kind"], first["n"], first["id"], first["hash"]) == ("reset", 0, "a", 0)
        own = Session(server.world, server.presets["plain"].build(server.world.model))
        frames = own.reset("start:2", seed=5)
        assert first["data"] == [jpeg(f) for f in frames]
        wanted = [[0.5, -1.0, 0.0], {"elbow": 1.0}, [2.0, 0.0, 0.0], [0.1, 0.2, 0.0]]
        for action in wanted:
            header = ask(socket, type="step", action=action)
            frames = own.step(np.asarray(action) if isinstance(action, list) else action, ramp=True)
            assert header["hash"] == own.hashes[-1]
            assert header["data"] == [jpeg(f) for f in frames]
            assert header["applied"] == pytest.approx(own.last.tolist(), abs=1e-4)
            assert header["step_ms"] > 0
        back = ask(socket, type="undo", steps=2)
        own.undo(2)
        assert (back["kind"], back["n"], back["hash"]) == ("undo", 2, own.hashes[-1])

        sid = welcome["session"]
        replay = Replay.from_json(client.get(f"/session/{sid}/replay.json").json())
        assert list(replay.hashes) == own.hashes
        video = client.get(f"/session/{sid}/video.mp4")
        assert video.headers["content-type"] == "video/mp4"
        assert len(video.content) > 500
        archive = zipfile.ZipFile(io.BytesIO(client.get(f"/session/{sid}/store.zip").content))
        archive.extractall(tmp_path / "zip")
        store = Store(tmp_path / "zip" / "session")
        store.verify()
        assert store.steps == own.prompt + 2

        assert ask(socket, type="preset", name="drawn", sampler={"steps": 3})["sampler"]["steps"] == 3
        sent = client.post(f"/session/{sid}/replay", json=replay.to_json())
        assert sent.status_code == 200, sent.text
        assert sent.json()["dtype"] == own.world.runtime.format
        assert answer(socket)["kind"] == "reset"
        actions = sent.json()["actions"]
        seen = [ask(socket, type="step", action=rows, exact=True)["hash"] for rows in actions]
        assert seen == sent.json()["hashes"] == own.hashes


def test_three_steps_may_be_in_flight(client: TestClient) -> None:
    with client.websocket_connect("/ws") as socket:
        answer(socket)
        for i, message in enumerate([{"type": "reset", "start": "start:0"}, *[{"type": "step", "action": {}}] * 3]):
            socket.send_text(json.dumps({**message, "id": i}))
        assert [answer(socket)["id"] for _ in range(4)] == [0, 1, 2, 3]
        assert ask(socket, type="step", action={})["n"] == 4


def test_too_many_in_flight_is_an_error(server: Server, client: TestClient) -> None:
    go = threading.Event()
    with client.websocket_connect("/ws") as socket:
        answer(socket)
        ask(socket, type="reset", start="start:0")
        held = server.engine.change(Session(server.world), lambda s: (go.wait(30), s.reset("start:0")))
        for _ in range(4):
            socket.send_text('{"type": "step", "action": {}}')
        time.sleep(0.2)
        go.set()
        held.result(30)
        assert [answer(socket)["type"] for _ in range(4)] == ["frame", "frame", "frame", "error"]
        assert ask(socket, type="step", action={})["n"] == 4


BAD = [
    "", "{", "[]", "null", "3", '"step"', "{}", '{"type": 3}', '{"type": "fly"}', '{"type": "step"}',
    '{"type": "step", "action": []}', '{"type": "step", "action": [1, 2]}', '{"type": "step", "action": [NaN, 0, 0]}',
    '{"type": "step", "action": [Infinity, 0, 0]}', '{"type": "step", "action": [1e400, 0, 0]}',
    '{"type": "step", "action": ["a", 0, 0]}', '{"type": "step", "action": [[1], [2, 3]]}',
    '{"type": "step", "action": {"fin": 1}}', '{"type": "step", "action": {"elbow": null}}',
    '{"type": "step", "action": [0, 0, 0], "exact": 1}', f'{{"type": "step", "action": [{"9" * 400}, 0, 0]}}',
    '{"type": "step", "action": [[[1]]]}', '{"type": "step", "action": [true, 0, 0]}',
    '{"type": "reset"}', '{"type": "reset", "start": 3}', '{"type": "reset", "start": "start:99"}',
    '{"type": "reset", "start": "../../etc/passwd"}', '{"type": "reset", "start": "upload:../../x"}',
    '{"type": "reset", "start": "start:0", "seed": -1}', '{"type": "reset", "start": "start:0", "seed": 1.5}',
    f'{{"type": "reset", "start": "start:0", "seed": {"9" * 50}}}', '{"type": "undo", "steps": -1}',
    '{"type": "undo", "steps": "all"}', '{"type": "preset"}', '{"type": "preset", "name": "best"}',
    '{"type": "preset", "name": "plain", "sampler": {"stepz": 3}}',
    '{"type": "preset", "name": "plain", "sampler": {"steps": "many"}}',
    '{"type": "preset", "name": "plain", "sampler": 3}',
    '{"type": "quality"}', '{"type": "quality", "jpeg": 1000}', '{"type": "twin"}', '{"type": "twin", "on": "yes"}',
    '{"type": "ping", "id": {"a": 1}}', '{"type": "ping", "id": "' + "x" * 100 + '"}', "[" * 100_000,
    '{"type": "' + "x" * 10_000 + '"}',
]  # fmt: skip


def test_whatever_is_wrong_with_a_message_is_answered(client: TestClient) -> None:
    with client.websocket_connect("/ws") as socket:
        answer(socket)
        ask(socket, type="reset", start="start:0")
        for text in BAD:
            socket.send_text(text)
            reply = answer(socket)
            assert reply["type"] == "error", text[:100]
            assert 0 < len(reply["message"]) <= 1000
        socket.send_bytes(b"\x00\x01")
        assert answer(socket)["type"] == "error"
        assert ask(socket, type="step", action={})["n"] == 1


def test_a_storm_of_nonsense_leaves_it_serving(server: Server, client: TestClient, tmp_path: Path) -> None:
    rng = random.Random(0)
    files = sorted(str(p) for p in tmp_path.rglob("*"))
    valid = json.dumps({"type": "step", "action": [0.1, 0.2, 0.3], "id": 1})
    with client.websocket_connect("/ws") as socket:
        answer(socket)
        for i in range(10_000):
            kind = i % 4
            if kind == 0:
                socket.send_bytes(rng.randbytes(rng.randrange(64)))
            elif kind == 1:
                socket.send_text("".join(chr(rng.randrange(32, 0x2000)) for _ in range(rng.randrange(40))))
            elif kind == 2:
                place = rng.randrange(len(valid))
                socket.send_text(valid[:place] + chr(rng.randrange(32, 127)) + valid[place + rng.randrange(4) :])
            else:
                socket.send_text(rng.choice(BAD))
            reply = answer(socket)
            assert reply["type"] in ("error", "pong"), reply  # no session was begun, so no step succeeds
        assert ask(socket, type="reset", start="start:0")["n"] == 0
        assert ask(socket, type="step", action={})["n"] == 1
    assert sorted(str(p) for p in tmp_path.rglob("*")) == files
    assert client.get("/healthz").json() == {"status": "ok"}


def test_requests_that_reach_for_other_files(client: TestClient) -> None:
    with client.websocket_connect("/ws") as socket:
        sid = answer(socket)["session"]
        for path in (
            "/static/../server.py", "/static/%2e%2e/server.py", "/thumb/../../etc/passwd", "/thumb/start:99",
            f"/session/{sid}/../../etc/passwd", f"/session/{sid}/meta.json", f"/session/{sid}/video.mp4",
            "/session/other/video.mp4", f"/session/{sid}/video.mp4?first=x", "/docs", "/openapi.json",
        ):  # fmt: skip
            assert client.get(path).status_code in (400, 404, 405, 422), path
        ask(socket, type="reset", start="start:0")
        assert client.get(f"/session/{sid}/video.mp4?first=5").status_code == 400
        for data in (b"", b"{}", b"\xff\xfe", b"[" * 10_000, b'{"format": "hwm-replay-1"}'):
            assert client.post(f"/session/{sid}/replay", content=data).status_code == 400
            assert "error" in client.post("/upload", content=data, headers={"X-Filename": "../../a.png"}).json()
    assert client.get(f"/session/{sid}/video.mp4").status_code == 400  # gone with its player


def test_uploads_begin_sessions_and_are_few(tmp_path: Path) -> None:
    server = make_server(tmp_path, limits=ServerLimits(uploads=2, upload_bytes=20_000, rate=1000))
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(file, "PNG")
    with TestClient(application(server)) as client:
        names = [client.post("/upload", content=file.getvalue()).json()["start"] for _ in range(3)]
        assert client.post("/upload", content=b"0" * 20_001).status_code == 400
        with client.websocket_connect("/ws") as socket:
            answer(socket)
            assert ask(socket, type="reset", start=names[0])["type"] == "error"
            assert ask(socket, type="reset", start=names[2])["kind"] == "reset"
            assert ask(socket, type="step", action={})["n"] == 1


def test_thumbs_and_metrics(client: TestClient) -> None:
    picture = Image.open(io.BytesIO(client.get("/thumb/start:1").content))
    assert picture.size == (16, 16)
    text = client.get("/metrics").text
    assert "hwm_sessions 0" in text
    assert "# TYPE hwm_steps_total counter" in text
    assert "<html" in client.get("/").text.lower()


def test_tokens_hosts_and_origins(server: Server, tmp_path: Path) -> None:
    with TestClient(application(server)) as client:
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers={"origin": "http://evil"}):
            pass
        with client.websocket_connect("/ws", headers={"origin": "http://testserver"}) as socket:
            assert answer(socket)["type"] == "welcome"
    with TestClient(application(make_server(tmp_path / "b", token="sesame"))) as client:
        assert client.get("/").status_code == 403
        assert client.get("/healthz").status_code == 200
        assert client.get("/?token=sesame").status_code == 200
        assert client.get("/metrics", headers={"authorization": "Bearer sesame"}).status_code == 200
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws?token=guess"):
            pass
        with client.websocket_connect("/ws?token=sesame") as socket:
            assert answer(socket)["type"] == "welcome"


def test_too_many_players_and_too_many_messages(tmp_path: Path) -> None:
    server = make_server(tmp_path, limits=ServerLimits(sessions=1, rate=5))
    with TestClient(application(server)) as client:
        with client.websocket_connect("/ws") as socket:
            answer(socket)
            with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/ws") as second:
                second.receive_text()
            assert refused.value.code == 1013
            kinds = [ask(socket, type="ping")["type"] for _ in range(30)]
            assert kinds[:8] == ["pong"] * 8
            assert kinds.count("error") >= 10
        with client.websocket_connect("/ws") as socket:
            assert answer(socket)["type"] == "welcome"


def test_the_idle_leave(tmp_path: Path) -> None:
    server = make_server(tmp_path, limits=ServerLimits(idle_seconds=0.2))
    with TestClient(application(server)) as client, client.websocket_connect("/ws") as socket:
        answer(socket)
        assert socket.receive()["type"] == "websocket.close"


def test_shutting_down_with_players(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(TestClient(application(server)))
        socket = stack.enter_context(client.websocket_connect("/ws"))
        answer(socket)
        ask(socket, type="reset", start="start:0")
    assert not server.players
    assert not server.engine._thread.is_alive()
