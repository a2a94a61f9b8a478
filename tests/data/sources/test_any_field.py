"""Whatever stands in any field of a description, opening and reading end in an error for the user or in data."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwm.data.readers import open_store
from hwm.data.sources import SourceOptions, open_source
from hwm.errors import HwmError
from tests.data.onex_toys import make_v1, make_v2
from tests.data.sources.test_folder import make_folder
from tests.data.sources.test_lerobot import write_v21
from tests.data.sources.test_robomimic import h5py, make_file

HERE = Path(__file__).parent
OTHERS: list[Any] = [
    None,
    "text",
    "0:80%",
    -3,
    0,
    2.5,
    10**12,
    float("nan"),
    True,
    [],
    [None],
    [["a"]],
    {},
    {"a": None},
]
TRIES = 40
"""Of all changes to a description; another seed makes others."""


def replaced(value: Any) -> Iterator[Any]:
    """The same with each field, at any depth, replaced by something else or taken out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, old in inner:
        for other in [*OTHERS, *replaced(old)]:
            changed = dict(value) if isinstance(value, dict) else list(value)
            changed[key] = other
            yield changed
        if isinstance(value, dict):
            yield {k: v for k, v in value.items() if k != key}
    yield from () if inner else OTHERS


def some(plain: Any) -> list[Any]:
    every = list(replaced(plain))
    return random.Random(0).sample(every, min(TRIES, len(every)))


def read_source(path: Path, **options: Any) -> None:
    source = open_source(path, SourceOptions(**options))
    sum(1 for _ in source[0].frames())


def lerobot(folder: Path) -> tuple[Path, Callable[[], Any]]:
    write_v21(folder, (3, 2), image=True)
    return folder / "meta/info.json", lambda: read_source(folder, kind="lerobot", split="train")


def episodes(folder: Path) -> tuple[Path, Callable[[], Any]]:
    write_v21(folder, (3,), image=True)
    return folder / "meta/episodes.jsonl", lambda: read_source(folder)


def described(folder: Path) -> tuple[Path, Callable[[], Any]]:
    make_folder(folder, (3,))
    about = {"fps": 10, "embodiment": "cart", "action_names": ["a", "b"], "text": "go"}
    (folder / "source.json").write_text(json.dumps(about), encoding="utf-8")
    return folder / "source.json", lambda: read_source(folder)


def rlds(name: str) -> Callable[[Path], tuple[Path, Callable[[], Any]]]:
    def make(folder: Path) -> tuple[Path, Callable[[], Any]]:
        shutil.copytree(HERE / "rlds/toy_base/0.1.0", folder)
        return folder / name, lambda: read_source(folder, kind="rlds", split="val", source_fps=5.0)

    make.__name__ = name
    return make


def v1(folder: Path) -> tuple[Path, Callable[[], Any]]:
    make_v1(folder, [9])
    return folder / "metadata.json", lambda: open_store(folder, "1x-v1.1")


def v2(folder: Path) -> tuple[Path, Callable[[], Any]]:
    make_v2(folder, [[20]])
    return folder / "metadata.json", lambda: open_store(folder)


def shard(folder: Path) -> tuple[Path, Callable[[], Any]]:
    make_v2(folder, [[20]])
    return folder / "metadata/metadata_0.json", lambda: open_store(folder)


@pytest.mark.parametrize(
    "make",
    [lerobot, episodes, described, rlds("dataset_info.json"), rlds("features.json"), v1, v2, shard],
    ids=lambda make: make.__name__,
)
def test_any_field(tmp_path: Path, make: Callable[[Path], tuple[Path, Callable[[], Any]]]) -> None:
    file, read = make(tmp_path / "data")
    read()
    plain, refused = json.loads(file.read_bytes()), 0
    for changed in some(plain):
        file.write_text(json.dumps(changed), encoding="utf-8")
        try:
            read()
        except HwmError:
            refused += 1
    assert refused


def test_any_attribute(tmp_path: Path) -> None:
    path = make_file(tmp_path / "a", (3,))
    plain = {"env_name": "Lift", "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}, "lang": "lift"}
    for changed in some(plain):
        with h5py.File(path, "a") as file:
            file["data"].attrs["env_args"] = file["data/demo_0"].attrs["ep_meta"] = json.dumps(changed)
        try:
            read_source(path, source_fps=20.0)
        except HwmError:
            continue
    with h5py.File(path, "a") as file:
        for other in (3, np.zeros(2), "{", h5py.Empty("S1")):
            for name in ("env_args", "total"):
                file["data"].attrs[name] = other
            file["data/demo_0"].attrs["num_samples"] = other
            file.flush()
            with pytest.raises(HwmError):
                open_source(path)
