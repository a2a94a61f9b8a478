"""What the verbs of `hwm` do: parse options, call the library, show the result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from hwm.data.record import SimRecording
from hwm.types import HwmError


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
    print(f"{store.path}: {len(store.episodes)} rooms, {store.steps:,} steps, {minutes:.1f} minutes")


record_help = (
    "Record the simulated humanoid (extra `sim`): random rooms, egocentric video, 25 actions a frame. "
    "The same command goes on after a kill."
)


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Encode a recorded store into latents (of video files: hwm encode VIDEO.mp4 --help).

    Attributes:
        source: the recorded store.
        tokenizer: a shipped tokenizer, a folder, or pixels-128x128.
        out: folder of the new store.
        every: keep every n-th frame, with the actions of all of them.
        clip: encode so many frames at a time, and make each clip an episode (17 in 1X's data); 0 cuts nothing.
        shard, shards: encode one part of the episodes; join the parts with `hwm merge`.
        keep_video: copy the videos along, to compare predictions with the camera.
        half_actions: keep actions as float16 (three significant digits) in half the space.
        statistics: take the action statistics of this store (for a held-out store: the training store).
    """

    source: tyro.conf.Positional[Path]
    tokenizer: str = "tiny"
    out: Path
    every: int = 1
    clip: int = 0
    shard: int = 0
    shards: int = 1
    keep_video: bool = False
    half_actions: bool = False
    statistics: str | None = None


def encode(args: list[str]) -> None:
    """`hwm encode SOURCE --tokenizer NAME --out DIR`."""
    o = tyro.cli(EncodeOptions, args=args, prog="hwm encode")
    import torch

    from hwm.data.encode import encode as run
    from hwm.data.readers import open_store
    from hwm.loading import load_tokenizer

    store = run(
        o.source,
        load_tokenizer(o.tokenizer, "cuda" if torch.cuda.is_available() else "cpu"),
        o.out,
        every=o.every,
        clip=o.clip,
        shard=o.shard,
        shards=o.shards,
        keep_video=o.keep_video,
        half_actions=o.half_actions,
        statistics=open_store(o.statistics) if o.statistics else None,
    )
    print(f"{store.path}: {len(store.episodes)} episodes, {store.steps:,} steps of {store.header.latent_shape}")


def merge(args: list[str]) -> None:
    """`hwm merge STORE... --out DIR`."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Join finished stores of one kind; action statistics are computed over all of them."""

        stores: tyro.conf.Positional[tuple[Path, ...]]
        out: Path

    o = tyro.cli(Options, args=args, prog="hwm merge")
    from hwm.data.merge import merge as run

    store = run(o.stores, o.out)
    print(f"{store.path}: {len(store.episodes)} episodes, {store.steps:,} steps")


def train(args: list[str]) -> None:
    """`hwm train RECIPE --out DIR [--train.* ...] [--model.* ...] [--data.* ...]`."""
    import dataclasses

    from hwm.recipes import RECIPES, Recipe, find_recipe

    if not args or args[0].startswith("-"):
        raise HwmError(f"say which recipe to train: hwm train RECIPE --out DIR. Recipes: {', '.join(sorted(RECIPES))}")
    name, function = args[0], find_recipe(args[0])
    recipe = function()

    @dataclass(frozen=True, kw_only=True)
    class Options(Recipe):
        out: Path = Path("runs") / name.replace(":", "_")
        """Folder of the run: checkpoints, log, samples. If it holds a run, training resumes there."""
        init: str | None = None
        """Begin from these weights (a shipped model, a folder or a run) instead of at random."""

    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    o = tyro.cli(
        Options, args=args[1:], prog=f"hwm train {name}", default=Options(**fields), description=function.__doc__
    )
    train_recipe(Recipe(**{name: getattr(o, name) for name in fields}), o.out, o.init)


def train_recipe(recipe: Any, run: Path, init: str | None = None) -> Any:
    """Train a recipe in a run folder; returns the trained module."""
    import torch

    from hwm.data.clips import Clips
    from hwm.loading import load_tokenizer
    from hwm.train.samples import show_progress
    from hwm.train.trainer import Trainer, write_run

    data = recipe.data.open()
    held_out = recipe.data.open(validation=True) if recipe.data.val_stores else None
    if held_out and (held_out.spec.latent, held_out.spec.tokenizer) != (data.spec.latent, data.spec.tokenizer):
        raise HwmError(
            f"training data is of tokenizer {data.spec.tokenizer!r}, held-out data of {held_out.spec.tokenizer!r}"
        )
    torch.manual_seed(recipe.train.seed)
    module = recipe.model.build(data.spec)
    if init:
        from hwm.loading import copy_weights

        copy_weights(init, module)
    count = sum(p.numel() for p in module.parameters())
    print(f"{module.name}: {count:,} parameters; {data.describe()}")
    write_run(run, recipe)
    rollouts = None
    if recipe.tokenizer and held_out:
        try:
            tokenizer = load_tokenizer(held_out.spec.tokenizer or recipe.tokenizer)
            rollouts = Clips(held_out.clips[0].store, module.config.past + 8, stride=recipe.data.stride), tokenizer
        except HwmError as error:
            print(f"no pictures of rollouts while training: {error}")
    return Trainer(recipe.train, module, data, held_out, run, show_progress(rollouts)).run()


def recipes(args: list[str]) -> None:
    """`hwm recipes [--params] [--json]`."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """List the recipes."""

        params: bool = False
        """Also count every recipe's parameters, exactly, without allocating them."""
        json: bool = False
        """Print one JSON object."""

    o = tyro.cli(Options, args=args, prog="hwm recipes")
    from hwm.recipes import RECIPES

    docs = {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in sorted(RECIPES.items())}
    counts = {name: count_parameters(name) for name in docs} if o.params else {}
    if o.json:
        print(json.dumps(counts or docs, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", *(["parameters"] if o.params else []), "what it is", box=None)
    for name, doc in docs.items():
        table.add_row(name, *([f"{counts[name]:,}"] if o.params else []), doc)
    Console().print(table)


def count_parameters(name: str) -> int:
    """Exact parameter count of a recipe's model, built on the meta device."""
    import torch

    from hwm.recipes import find_recipe

    made = find_recipe(name)()
    spec = made.data.expects or made.data.open().spec
    with torch.device("meta"):
        module = made.model.build(spec)
    return sum(p.numel() for p in module.parameters())


def demo(args: list[str]) -> None:
    """`hwm demo [--out DIR]`."""
    from hwm.demo import DemoOptions
    from hwm.demo import demo as run

    run(tyro.cli(DemoOptions, args=args, prog="hwm demo"))


def view(args: list[str]) -> None:
    """`hwm view STORE [--out FILE]`."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Show what is in a store."""

        store: tyro.conf.Positional[str]
        out: Path | None = None
        """Also write a page (.html) or a contact sheet (.png)."""

    o = tyro.cli(Options, args=args, prog="hwm view")
    from rich.console import Console

    from hwm.data.readers import open_store
    from hwm.data.show import contact_sheet, describe, view_html

    store = open_store(o.store)
    Console().print(describe(store))
    if o.out is None:
        return
    from hwm.loading import load_tokenizer

    tokenizer = load_tokenizer(store.header.tokenizer) if store.header.latent and not store.has_video else None
    (contact_sheet if o.out.suffix == ".png" else view_html)(store, o.out, tokenizer)
    print(o.out)
