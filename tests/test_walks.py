"""The ways that pages describe, walked as a reader would: each command of such a block is run after the one before.

Those that begin in a bucket are walked in tests/remote/test_walk.py.
"""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import shutil
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from hwm.cli import main
from hwm.data.readers import open_store
from hwm.data.sources import SourceOptions, open_source
from tests.test_docs import PAGES, ROOT, blocks, name

QUICK = {
    "train": "--train.steps 2 --train.batch-size 2 --train.save-every 2 --train.val-every 2 --train.val-batches 1 "
    "--model.dim 32 --model.depth 1 --model.heads 1",
    "evaluate": "--clips 2 --horizon 2",
    "play": "--port 0 --no-open --threads 1",
}
"""What makes a command short enough for a test, by verb."""


class Walk(NamedTuple):
    """Commands, and where the first of them finds a copy of a folder of this repository."""

    source: str
    place: str
    commands: list[str]


def walks(far: bool) -> list[Any]:
    """Those that begin on this disk, or far away."""
    out = []
    for page in PAGES:
        for block in (b for b in blocks(page) if b.note.startswith("walk:")):
            source, place = (part.strip() for part in block.note.removeprefix("walk:").split(" as "))
            walk = Walk(source, place, block.text.replace("\\\n", " ").splitlines())
            out += [pytest.param(walk, id=f"{name(page)}:{block.line}")] if ("://" in place) == far else []
    return out


def play(app: Any) -> list[tuple[dict[str, Any], Image.Image]]:
    """What a player is welcomed with, and the first pictures."""
    from fastapi.testclient import TestClient

    seen = []
    with TestClient(app) as client, client.websocket_connect("ws://127.0.0.1/ws") as socket:
        welcome = socket.receive_json()
        still = {action["name"]: 0.0 for action in welcome["actions"]}
        for message in ({"type": "reset", "start": "start:0", "seed": 0}, {"type": "step", "action": still}):
            socket.send_json(message)
            data = socket.receive_bytes()
            at = 4 + struct.unpack(">I", data[:4])[0]
            assert json.loads(data[4:at])["type"] == "frame"
            seen.append((welcome, Image.open(io.BytesIO(data[at:]))))
    return seen


def two_cameras(played: list[tuple[dict[str, Any], Image.Image]], place: str) -> None:
    """What the way of the data set with two cameras leaves behind."""
    (welcome, first), (_, step) = played
    assert welcome["views"] == ["front", "wrist"]
    assert first.size == step.size == (welcome["size"][1], welcome["size"][0]) == (256, 128)
    store = open_store(f"{place}_heldout")
    assert store.header.views == ("front", "wrist")
    seen = np.split(np.mean(list(store.frames(store.episodes[0])), axis=0), 2)  # front above wrist
    shown = np.split(np.asarray(first.resize((2 * seen[0].shape[1], seen[0].shape[0])), float), 2, axis=1)
    apart = [[np.abs(a - b).mean() for b in seen] for a in shown]
    assert apart[0][0] < apart[0][1], "front on the left"
    assert apart[1][1] < apart[1][0], "wrist on the right"
    figures = json.loads(Path("arm.json").read_bytes())
    assert set(figures["by_view"]) == {"front", "wrist"}
    assert figures["reference"] == "camera"
    assert "By view" in Path("arm.html").read_text(encoding="utf-8")
    again = open_source(f"{place}_again", SourceOptions(camera=("front", "wrist")))
    assert again[0].steps == store.episodes[0].steps == 20


LEFT = {"tests/data/sources/lerobot_arm": two_cameras}
"""What is looked at when a way was walked, by where it began."""


def follow(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run its commands in this folder, and look at what they leave behind."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `web`")
    played: list[tuple[dict[str, Any], Image.Image]] = []

    async def serve(self: Any, sockets: Any = None) -> None:
        played.extend(await asyncio.to_thread(play, self.config.app))

    monkeypatch.setattr(uvicorn.Server, "serve", serve)
    for line in walk.commands:
        words = shlex.split(line)[1:]
        assert main([*words, *shlex.split(QUICK.get(words[0], ""))]) == 0, line
    LEFT[walk.source](played, walk.place)


@pytest.mark.parametrize("walk", walks(far=False))
def test_every_step_of_the_way_can_be_walked(walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / walk.source, tmp_path / walk.place)
    monkeypatch.chdir(tmp_path)
    follow(walk, monkeypatch)
