"""The verb `hwm convert`: published checkpoints into ours, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from hwm.types import HwmError


class Kind(NamedTuple):
    """How to read and write a published layout."""

    read: Callable[[Path], Any]
    write: Callable[[Any, Path], None]


def kinds() -> dict[str, Kind]:
    """Every published layout that is known, by the public name of the class that it holds."""
    from hwm.convert import genie, magvit2

    return {
        "genie": Kind(genie.read, genie.write),
        "magvit2": Kind(magvit2.read, magvit2.write),
    }


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Turn a published checkpoint into one of this program, or back.

    Attributes:
        kind: whose layout: genie (a folder with config.json and model.safetensors), magvit2 (magvit2.ckpt, or a
            safetensors file of the same names).
        source: the published folder or file; with --to published a checkpoint folder or a run of this program.
        out: folder to write, which must be empty or absent.
        to: "hwm" for a checkpoint of this program, "published" for the layout of the original.
    """

    kind: tyro.conf.Positional[Literal["genie", "magvit2"]]
    source: tyro.conf.Positional[Path]
    out: Path
    to: Literal["hwm", "published"] = "hwm"


def convert(args: list[str]) -> None:
    """`hwm convert KIND SOURCE --out DIR [--to published]`."""
    o = tyro.cli(ConvertOptions, args=args, prog="hwm convert")
    from hwm.train.checkpoint import load_model, save_model

    kind = kinds()[o.kind]
    if not o.source.exists():
        raise HwmError(f"there is no {o.source}; nothing is downloaded here, fetch it first")
    if o.out.exists() and (not o.out.is_dir() or any(o.out.iterdir())):
        raise HwmError(f"{o.out} is there already and is not an empty folder; choose another --out")
    if o.to == "hwm":
        module = kind.read(o.source)
        save_model(o.out, module, converted_from=o.source.name)
    else:
        module = load_model(o.source)
        if module.name != o.kind:
            raise HwmError(f"{o.source} is a checkpoint of a {module.name!r}, not of a {o.kind!r}")
        kind.write(module, o.out)
    count = sum(p.numel() for p in module.parameters())
    print(f"{o.out}: {module.name}, {count:,} parameters, from {o.source}")
