"""The ways that pages describe, walked as a reader would: each command of such a block is run after the one before."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hwm.cli import main
from hwm.data.sources import SourceOptions, open_source
from hwm.data.store import Store
from tests.test_docs import PAGES, ROOT, blocks, name

QUICK = {
    "train": "--train.steps 2 --train.batch-size 2 --train.save-every 2 --train.val-every 2 --train.val-batches 1 "
    "--model.dim 32 --model.depth 1 --model.heads 1",
    "evaluate": "--clips 2 --horizon 2",
    "play": "--port 0 --no-open --threads 1",
}
"""What makes a command short enough for a test, by verb."""
WALKS = [
    pytest.param(block, id=f"{name(page)}:{block.line}")
    for page in PAGES
    for block in blocks(page)
    if block.note.startswith("walk:")
]


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


def two_cameras(played: list[tuple[dict[str, Any], Image.Image]]) -> None:
    """What the way of the data set with two cameras leaves behind."""
    (welcome, first), (_, step) = played
    assert welcome["views"] == ["front", "wrist"]
    assert first.size == step.size == (welcome["size"][1], welcome["size"][0]) == (256, 128)
    store = Store("data/arm_heldout")
    assert store.header.views == ("front", "wrist")
    figures = json.loads(Path("arm.json").read_bytes())
    assert set(figures["by_view"]) == {"front", "wrist"}
    assert figures["reference"] == "camera"
    assert "By view" in Path("arm.html").read_text(encoding="utf-8")
    again = open_source("data/arm_again", SourceOptions(camera=("front", "wrist")))
    assert again[0].steps == store.episodes[0].steps == 20


LEFT = {"tests/data/sources/lerobot_arm": two_cameras}
"""What is looked at when a way was walked, by where it began."""


@pytest.mark.parametrize("block", WALKS)
def test_every_step_of_the_way_can_be_walked(block: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `web`")
    source, place = (part.strip() for part in block.note.removeprefix("walk:").split(" as "))
    shutil.copytree(ROOT / source, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    played: list[tuple[dict[str, Any], Image.Image]] = []

    async def serve(self: Any, sockets: Any = None) -> None:
        played.extend(await asyncio.to_thread(play, self.config.app))

    monkeypatch.setattr(uvicorn.Server, "serve", serve)
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line)[1:]
        assert main([*words, *shlex.split(QUICK.get(words[0], ""))]) == 0, line
    LEFT[source](played)
