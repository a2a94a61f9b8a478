"""What `hwm data` does: fetch a published data set, or make a small one in the same layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from hwm.data.options import MakeOptions
from hwm.errors import unknown
from hwm.far import address

if TYPE_CHECKING:
    from hwm.data.store import Store


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Fetch 1X's data from the Hugging Face hub (extra `hub`); the same command goes on after a kill.

    Attributes:
        dataset: tokens of v1.1 or v2.0, or v2.0 as video.
        split: which part; `test` there is of v2.0 alone.
        out: the split becomes a folder in here.
        shards: only these shards of v2.0, for example 0 1 2; by default all.
    """

    dataset: tyro.conf.Positional[Literal["1x-v1.1", "1x-v2.0", "1x-v2.0-raw"]]
    split: Literal["train", "val", "test"] = "val"
    out: Path = Path("data")
    shards: tuple[int, ...] = ()


def run_download(o: DownloadOptions) -> None:
    from hwm.data.onex.download import download
    from hwm.data.readers import open_store

    print_store(open_store(download(o.dataset, o.split, o.out, o.shards)))


def run_make(o: MakeOptions) -> None:
    from hwm.data.make_onex import make

    print_store(make(o))


def print_store(store: Store) -> None:
    print(
        f"{address(store.path)}: {store.header.source}; {len(store.episodes):,} episodes, {store.steps:,} steps, "
        f"{store.seconds / 60:.1f} minutes"
    )
    for note in store.notes:
        print(f"  {note}")


VERBS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "download": (DownloadOptions, run_download),
    "make-onex": (MakeOptions, run_make),
}


def data(args: list[str]) -> None:
    """`hwm data download DATASET [...]`, `hwm data make-onex --out DIR [...]`."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: hwm data VERB [OPTIONS]   (hwm data VERB --help tells the options)\n")
        for name, (options, _) in VERBS.items():
            print(f"  {name:<10} {options.__doc__.splitlines()[0]}")
        return
    if args[0] not in VERBS:
        raise unknown("verb of hwm data", args[0], VERBS)
    options, run = VERBS[args[0]]
    run(tyro.cli(options, args=args[1:], prog=f"hwm data {args[0]}"))
