"""The package of docs/adding.md, outside this one: its commands are run as they stand there, and its model is driven.

Once as an installed package, found by its entry points, and once from the working folder by `--import` alone.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hatchling.build import build_wheel

from hwm import cli
from tests.outside import forgotten
from tests.test_docs import ROOT, arguments, blocks

PAGE = ROOT / "docs" / "adding.md"
REGISTER = ["--import", "bar_lab.register"]


def unpack(folder: Path) -> None:
    """The files of the page."""
    for block in blocks(PAGE):
        if block.note.startswith("file:"):
            file = folder / block.note.removeprefix("file:").strip()
            file.parent.mkdir(exist_ok=True)
            file.write_text(block.text, encoding="utf-8")


def built(folder: Path) -> Path:
    """Where the files and the entry points of the page's package lie, as pip would lay them out from its wheel."""
    site = folder / "site"
    zipfile.ZipFile(folder / build_wheel(str(folder))).extractall(site)
    return site


def commands() -> list[list[str]]:
    """The command lines of the section that runs them all."""
    text = next(b.text for b in blocks(PAGE) if b.language == "bash" and "make_bars.py" in b.text)
    return [given for line in text.splitlines() if (given := arguments(line)) is not None]


@contextmanager
def playing(args: list[str], folder: Path) -> Iterator[str]:
    """`hwm play` in a process of its own, on a free port; its address."""
    path = f"{ROOT}{os.pathsep}{folder / 'site'}" if not args[-1].startswith("bar_lab") else str(ROOT)
    server = subprocess.Popen(
        [sys.executable, "-m", "hwm.cli", *args, "--port", "0", "--no-open"],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if found := re.search(r"http://(\S+)/", line):
                break
        else:
            pytest.fail("".join(said))
        yield found[1]
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)


@pytest.mark.parametrize("way", ["installed", "imported"])
def test_the_package_trains_is_evaluated_generated_from_and_played(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("websockets")
    from hwm.interact.client import Client

    monkeypatch.chdir(tmp_path)
    unpack(tmp_path)
    more = [] if way == "installed" else REGISTER
    if way == "installed":
        monkeypatch.syspath_prepend(str(built(tmp_path)))
    runpy.run_path("make_bars.py")
    *steps, play = commands()
    assert [step[0] for step in [*steps, play]] == ["encode", "encode", "train", "evaluate", "generate", "play"]
    for step in steps:
        if way == "imported" and step[0] == "train":  # what it learns was seen the other way
            step = [*step, "--train.steps", "20"]
        with forgotten(tmp_path):  # each command is one of a process that knows nothing of those before it
            assert cli.main([*step, *more]) == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {"absolute_error", "absolute_error_copy"} <= figures.keys()
    if way == "installed":
        assert figures["delta_psnr"][0] > 3, "wrong actions make worse pictures"
        assert figures["absolute_error"][-1] < 0.5 * figures["absolute_error_copy"][-1], "better than the last frame"
    assert sorted(path.suffix for path in (tmp_path / "pictures").glob("comic*")) == [".png"]
    with playing([*play, *more], tmp_path) as address, Client(f"ws://{address}") as client:
        column = bright(client.reset("start:0", seed=0).frames[-1])
        for speed in (1.0, 1.0, -1.0, -1.0, 0.0, 0.0):  # each for two steps, as it has seen them
            column = (column + round(speed)) % 8
            shown = client.step({"speed": speed}, exact=True)
            assert shown.frames.shape == (1, 64, 64, 3)
            if way == "installed":
                assert bright(shown.frames[-1]) == column, "the bar does as it is told"


def bright(frame: np.ndarray) -> int:
    """Which of the 8 columns of a picture is white."""
    return int(frame.astype(float).mean((0, 2)).reshape(8, 8).mean(1).argmax())
