"""`hwm record`, `merge`, `export` and `view`: making stores, and showing what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from hwm.computing import ExactComputing
from hwm.data.options import SimRecording, SourceOptions
from hwm.errors import HwmError
from hwm.far import address

if TYPE_CHECKING:
    from hwm.data.store import Store


@dataclass(frozen=True, kw_only=True)
class RecordOptions(SimRecording):
    """Record the simulated humanoid; see `SimRecording`."""

    out: Path
    """Folder of the new store."""


def record(args: list[str]) -> None:
    """`hwm record sim --out DIR [...]`."""

    if not args or args[0] not in ("sim", "-h", "--help"):
        raise HwmError("say what to record; there is: hwm record sim --out DIR")
    options = tyro.cli(
        RecordOptions, args=args[1:] if args[0] == "sim" else args, prog="hwm record sim", description=record_help
    )
    from hwm.data.record import record_sim

    store = record_sim(options.out, options)
    minutes = store.steps / store.header.fps / 60
    print(f"{address(store.path)}: {len(store.episodes)} episodes, {store.steps:,} steps, {minutes:.1f} minutes")


record_help = (
    "Record the simulated humanoid (extra `sim`) in random rooms or in one home: egocentric video, 25 actions a frame. "
    "The same command goes on after a kill."
)


def print_skipped(store: Store) -> None:
    if store.skipped:
        print(f"left out: {len(store.skipped)}")
        for name, why in store.skipped.items():
            print(f"  {name}: {why}")


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Join finished stores of one kind; action statistics are computed over all of them.

    Attributes:
        stores: their folders.
        out: folder of the new store.
        skip_bad: leave out stores that are missing, not finished, damaged or of another kind than most, do without
            parts that no store is, and say which.
    """

    stores: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    skip_bad: bool = False


def merge(args: list[str]) -> None:
    """`hwm merge STORE... --out DIR`."""
    o = tyro.cli(MergeOptions, args=args, prog="hwm merge")
    from hwm.data.merge import merge as run

    store = run(o.stores, o.out, skip_bad=o.skip_bad)
    print(f"{address(store.path)}: {len(store.episodes)} episodes, {store.steps:,} steps")
    print_skipped(store)
    if store.missing:
        print(f"missing parts: {', '.join(map(str, store.missing))}")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ExactComputing, SourceOptions):
    """Write a recording, a store or data of another kind as a LeRobot data set (version 3.0).

    Attributes:
        format: of the new data set.
        source: as of `hwm encode`; a store of latents without video is decoded.
        out: folder of the new data set.
        tokenizer: decodes the latents of a store without video; by default the one it names.
        crf: quality of the video (x264); lower is better and larger.
    """

    format: tyro.conf.Positional[Literal["lerobot"]]
    source: tyro.conf.Positional[Path]
    out: Path
    tokenizer: str = ""
    crf: int = 18


def export(args: list[str]) -> None:
    """`hwm export lerobot SOURCE --out DIR`."""
    o = tyro.cli(ExportOptions, args=args, prog="hwm export")
    from hwm.data.lerobot_write import write_lerobot
    from hwm.data.sources import open_plain, seen_as
    from hwm.data.sources.decoded import Decoded
    from hwm.data.sources.stored import Stored
    from hwm.loading import open_tokenizer

    runtime = o.start()
    plain = open_plain(o.source, o)
    if isinstance(plain, Stored) and plain.store.header.latent and not plain.store.has_video:
        name, views = o.tokenizer or plain.store.header.tokenizer, plain.store.header.views
        plain = Decoded(plain.store, open_tokenizer(name, runtime, views=views))
    source = seen_as(plain, o)
    print(f"{address(write_lerobot(source, o.out, o.crf))}: {len(source)} episodes as a LeRobot data set")


@dataclass(frozen=True, kw_only=True)
class ViewOptions(ExactComputing, SourceOptions):
    """Show what is in a store, or in data of another kind: episodes, pictures, actions as curves, statistics.

    Attributes:
        source: a store, or what `hwm encode` takes.
        out: also write a page (.html) or a contact sheet (.png).
        open: show the page in the browser; without `--out` it is written to a temporary folder.
        tokenizer: decodes the latents of a store without video; by default the one it names.
    """

    source: tyro.conf.Positional[str]
    out: Path | None = None
    open: bool = False
    tokenizer: str = ""


def view(args: list[str]) -> None:
    """`hwm view SOURCE [--out FILE] [--open]`."""
    o = tyro.cli(ViewOptions, args=args, prog="hwm view")
    from rich.console import Console

    from hwm.data.show import contact_sheet, describe, view_html
    from hwm.data.sources import open_source
    from hwm.data.sources.sample import Sample
    from hwm.data.sources.stored import Stored

    runtime = o.start()
    source = open_source(o.source, o)
    store = source.store if isinstance(source, Stored) else Sample(source)
    Console().print(describe(store))
    out = o.out
    if out is None and o.open:
        import tempfile

        out = Path(tempfile.mkdtemp(prefix="hwm_")) / f"{store.path.name}.html"
    if out is None:
        return
    from hwm.loading import open_tokenizer

    encoded = store.header.latent and not store.has_video
    name, views = o.tokenizer or store.header.tokenizer, store.header.views
    tokenizer = open_tokenizer(name, runtime, views=views) if encoded else None
    (contact_sheet if out.suffix == ".png" else view_html)(store, out, tokenizer)
    print(out)
    if o.open:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())
