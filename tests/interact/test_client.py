"""The client against a server that listens on a socket: what it sees is what a session of its own shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
import uvicorn

from hwm.errors import HwmError
from hwm.interact.client import Client
from hwm.interact.server import application
from hwm.interact.session import Session
from hwm.interact.shared import Server, ServerLimits
from tests.interact.test_server import make_server


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """The server on a free port, in a thread; its host and port."""
    running = uvicorn.Server(uvicorn.Config(application(server), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not running.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        assert running.started
        port = running.servers[0].sockets[0].getsockname()[1]
        yield f"localhost:{port}"
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    made = make_server(tmp_path_factory.mktemp("server"))
    with listening(made) as address:
        yield made, address


def test_the_client_sees_what_a_session_shows(server: tuple[Server, str]) -> None:
    made, address = server
    own = Session(made.world, made.presets["plain"].build(made.world.model))
    with Client(f"ws://{address}") as client:
        assert [a["name"] for a in client.welcome["actions"]] == ["shoulder", "elbow", "wrist"]
        first = client.reset("start:1", seed=4)
        frames = own.reset("start:1", seed=4)
        assert first.steps == first.hash == 0
        assert first.twin is None
        assert first.frames.shape == frames.shape
        assert np.abs(first.frames.astype(int) - frames).mean() < 12  # a JPEG of it
        for action in ({"elbow": 0.5}, np.array([0.2, -0.1, 0.0]), {"wrist": 1.0, "elbow": -2}):
            seen = client.step(action)
            own.step(action, ramp=True)
            assert (seen.steps, seen.hash) == (own.steps, own.hashes[-1])
            assert seen.applied == pytest.approx(own.last, abs=1e-4)
        rows = np.array([[0.1, 0.2, -0.1], [0.3, 0.1, 0.0]])
        exact = client.step(rows, exact=True)
        own.step(rows)
        assert exact.hash == own.hashes[-1]
        back = client.undo(2)
        own.undo(2)
        assert (back.steps, back.hash) == (2, own.hashes[-1])
        replay = client.replay()
        assert (replay.hashes, replay.seed, replay.start.name) == (tuple(own.hashes), 4, "start:1")
        assert own.play(replay) is None
        assert client.download("video.mp4", 0, 1)[4:8] == b"ftyp"


def test_presets_and_their_fields(server: tuple[Server, str]) -> None:
    with Client(f"http://{server[1]}/") as client:
        assert client.preset("drawn")["steps"] == 2
        assert client.preset("drawn", steps=1)["steps"] == 1
        client.reset(seed=1)
        drawn = client.step({}).hash
        client.preset("plain")
        client.reset(seed=1)
        assert client.replay().seed == 1
        assert client.step({}).hash != drawn


def test_mistakes_are_told_and_the_session_goes_on(server: tuple[Server, str]) -> None:
    with Client(f"ws://{server[1]}") as client:
        with pytest.raises(HwmError, match="reset"):
            client.step({"elbow": 1.0})
        with pytest.raises(HwmError, match=r"start:9"):
            client.reset("start:9")
        client.reset()
        for wrong in ({"knee": 1.0}, np.zeros(2)):
            with pytest.raises(HwmError):
                client.step(wrong)
        with pytest.raises(HwmError, match="preset"):
            client.preset("best")
        with pytest.raises(HwmError, match=r"video\.mp4"):
            client.download("secrets.txt")
        assert client.step({"elbow": 1.0}).steps == 1


def test_a_model_that_fails_is_told_of(server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise TypeError("expected BFloat16")

    with Client(f"ws://{server[1]}") as client:
        client.reset()
        with monkeypatch.context() as broken:
            broken.setattr(type(server[0].world.model), "predict", fails)
            with pytest.raises(HwmError, match="the model failed: TypeError: expected BFloat16"):
                client.step({"elbow": 1.0})
        assert client.step({"elbow": 1.0}).steps == 1


def test_a_late_answer_is_not_taken_for_another(server: tuple[Server, str]) -> None:
    with Client(f"ws://{server[1]}") as client:
        client.reset(seed=2)
        client._socket.send('{"type": "step", "action": {"elbow": 1.0}, "id": "nobody waits"}')
        assert client.undo(0).steps == 1
        client._socket.send('{"type": "step", "action": {"knee": 1.0}, "id": "nobody waits"}')
        assert client.step({}).steps == 2


def test_tokens(tmp_path: Path) -> None:
    with listening(make_server(tmp_path, token="a b&c")) as address:
        for url, token in ((f"ws://{address}", "a b&c"), (f"http://{address}/?token=a%20b%26c", None)):
            with Client(url, token) as client:
                client.reset()
                assert client.replay().hashes == ()
        for token in (None, "wrong"):
            with pytest.raises(HwmError, match="token"):
                Client(f"ws://{address}", token)


def test_no_server_a_full_one_and_one_that_ends(tmp_path: Path) -> None:
    with listening(make_server(tmp_path, limits=ServerLimits(sessions=1))) as address:
        with Client(address) as client:
            client.reset()
            with pytest.raises(HwmError, match="taken"):
                Client(address)
        with pytest.raises(HwmError, match="no play server"):
            Client(f"{address}/", timeout=0.0)
    with pytest.raises(HwmError, match="no play server"):
        Client(address)
    with pytest.raises(HwmError, match=r"gone|ended"):
        client.step({})
