"""What the verbs of `hwm` do: parse options, call the library, show the result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from hwm.data.record import SimRecording
from hwm.data.sources.base import SourceOptions
from hwm.errors import HwmError

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
    print(f"{store.path}: {len(store.episodes)} rooms, {store.steps:,} steps, {minutes:.1f} minutes")


record_help = (
    "Record the simulated humanoid (extra `sim`): random rooms, egocentric video, 25 actions a frame. "
    "The same command goes on after a kill."
)


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(SourceOptions):
    """Encode a recording, or data of another kind, into latents (of video files: hwm encode VIDEO.mp4 --help).

    Killed and given again, the command goes on.

    Attributes:
        source: a recorded store, a LeRobot, RLDS or robomimic data set, or a folder of videos with actions.
        tokenizer: a shipped tokenizer, a folder, or pixels-128x128.
        out: folder of the new store.
        every: keep every n-th frame, with the actions of all of them.
        clip: encode so many frames at a time, and make each clip an episode (17 in 1X's data); 0 cuts nothing.
        shard: which part of the episodes to encode, from 0; join the parts with `hwm merge`.
        shards: how many parts there are.
        keep_video: copy the videos along, to compare predictions with the camera.
        half_actions: keep actions as float16 (three significant digits) in half the space.
        statistics: take the action statistics of this store (for a held-out store: the training store).
        crop: cut pictures to the tokenizer's proportions instead of squeezing them.
        skip_bad: leave out episodes that are not fit, and say which, instead of stopping at the first.
        batch: frames encoded at once.
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
    crop: bool = False
    skip_bad: bool = False
    batch: int = 64


def encode(args: list[str]) -> None:
    """`hwm encode SOURCE --tokenizer NAME --out DIR`."""
    o = tyro.cli(EncodeOptions, args=args, prog="hwm encode")
    import torch

    from hwm.data.encode import encode as run
    from hwm.data.readers import open_store
    from hwm.data.sources import open_source
    from hwm.loading import load_tokenizer

    source = open_source(o.source, o)
    store = run(
        source,
        load_tokenizer(o.tokenizer, "cuda" if torch.cuda.is_available() else "cpu"),
        o.out,
        every=o.every,
        clip=o.clip,
        shard=o.shard,
        shards=o.shards,
        keep_video=o.keep_video,
        half_actions=o.half_actions,
        statistics=open_store(o.statistics) if o.statistics else None,
        crop=o.crop,
        skip_bad=o.skip_bad,
        batch=o.batch,
    )
    print(f"{store.path}: {len(store.episodes)} episodes, {store.steps:,} steps of {store.header.latent_shape}")
    _print_skipped(store)


def _print_skipped(store: Store) -> None:
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
    print(f"{store.path}: {len(store.episodes)} episodes, {store.steps:,} steps")
    _print_skipped(store)
    if store.missing:
        print(f"missing parts: {', '.join(map(str, store.missing))}")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(SourceOptions):
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
    from hwm.loading import load_tokenizer

    plain = open_plain(o.source, o)
    if isinstance(plain, Stored) and plain.store.header.latent and not plain.store.has_video:
        plain = Decoded(plain.store, load_tokenizer(o.tokenizer or plain.store.header.tokenizer))
    source = seen_as(plain, o)
    print(f"{write_lerobot(source, o.out, o.crf)}: {len(source)} episodes as a LeRobot data set")


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


def bench(args: list[str]) -> None:
    """`hwm bench RECIPE [--steps N] [--json] [--train.* ...] [--model.* ...]`."""
    import dataclasses

    from hwm.recipes import Recipe, find_recipe

    if not args or args[0].startswith("-"):
        raise HwmError("say which recipe to measure: hwm bench masked_hwm_mini")
    recipe = find_recipe(args[0])()

    @dataclass(frozen=True, kw_only=True)
    class Options(Recipe):
        steps: int = 5
        """Training steps that are timed, after a first that is not."""
        json: bool = False
        """Print one JSON object."""

    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    o = tyro.cli(Options, args=args[1:], prog=f"hwm bench {args[0]}", default=Options(**fields), description=bench_help)
    if o.steps < 1:
        raise HwmError(f"steps must be at least 1, got {o.steps}")
    import torch

    from hwm.train.bench import bench as run

    if o.train.threads:
        torch.set_num_threads(o.train.threads)
    figures = run(args[0], o, o.steps)
    print(json.dumps(dataclasses.asdict(figures), indent=1) if o.json else figures)


bench_help = "Time a recipe on random clips: training steps and predictions, against this machine's matrix products."


def train_recipe(recipe: Any, run: Path, init: str | None = None) -> Any:
    """Train a recipe in a run folder; returns the trained module."""
    import torch

    from hwm.data.clips import Clips
    from hwm.loading import load_tokenizer
    from hwm.train.distributed import building, leading
    from hwm.train.samples import show_progress
    from hwm.train.trainer import Trainer, write_run

    data = recipe.data.open()
    held_out = recipe.data.open(validation=True) if recipe.data.paths(validation=True) else None
    if held_out and (held_out.spec.latent, held_out.spec.tokenizer) != (data.spec.latent, data.spec.tokenizer):
        raise HwmError(
            f"training data is of tokenizer {data.spec.tokenizer!r}, held-out data of {held_out.spec.tokenizer!r}"
        )
    torch.manual_seed(recipe.train.seed)
    with building(recipe.train.shard):
        module = recipe.model.build(data.spec)
    if init and not next(module.parameters()).is_meta:
        from hwm.loading import copy_weights

        copy_weights(init, module)
    if leading():
        count = sum(p.numel() for p in module.parameters())
        print(f"{module.name}: {count:,} parameters; {data.describe()}")
        write_run(run, recipe)
    rollouts = None
    if recipe.tokenizer and held_out:
        try:
            tokenizer, clips = load_tokenizer(held_out.spec.tokenizer or recipe.tokenizer), held_out.clips[0]
            rollouts = Clips(clips.store, module.config.past + 8, stride=clips.stride), tokenizer
        except HwmError as error:
            print(f"no pictures of rollouts while training: {error}")
    return Trainer(recipe.train, module, data, held_out, run, show_progress(rollouts)).run()


def recipes(args: list[str]) -> None:
    """`hwm recipes [--params] [--json]`."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """List the recipes, all or those that are named."""

        names: tyro.conf.Positional[tuple[str, ...]] = ()
        params: bool = False
        """Also count every recipe's parameters, exactly, without allocating them."""
        memory: str = ""
        """Also say how each can be trained in so much memory, such as 24GB, and what that takes."""
        json: bool = False
        """Print one JSON object."""

    o = tyro.cli(Options, args=args, prog="hwm recipes")
    from hwm.recipes import RECIPES, find_recipe

    chosen = {name: find_recipe(name) for name in o.names} or dict(sorted(RECIPES.items()))
    if o.memory:
        print_memory(list(chosen), o.memory, o.json)
        return
    docs = {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in chosen.items()}
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


def print_memory(names: list[str], size: str, as_json: bool) -> None:
    """How recipes can be trained in so much memory: what each takes, and the options to add."""
    from hwm.progress import track
    from hwm.recipes import find_recipe
    from hwm.train.memory import GIB, fit, read_size

    limit = read_size(size)
    out: dict[str, Any] = {}
    shown = names if as_json else track(names, len(names), "looking at recipes", unit="recipes")
    for name in shown:
        made = find_recipe(name)()
        spec = made.data.expects or made.data.open().spec
        found = fit(made.model, spec, made.data.steps, made.train, limit)
        if found is None:
            out[name] = None
            line = f"no options make it fit into {size}: divide it among GPUs with --train.shard 0"
        else:
            options, m = found.options(made.train), found.memory
            out[name] = {"options": options, "bytes": m.total, "parameters": m.parameters}
            static = (m.weights + m.gradients + m.average) / GIB
            line = (
                f"{m.parameters:,} parameters, {m.total / GIB:.2f} GiB: weights, gradients and average {static:.2f}, "
                f"optimizer {m.optimizer / GIB:.2f}, activations {m.activations / GIB:.2f}\n  {options or 'as it is'}"
            )
        if not as_json:
            print(f"{name}: {line}", flush=True)
    if as_json:
        print(json.dumps(out, indent=1))


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


@dataclass(frozen=True, kw_only=True)
class ViewOptions(SourceOptions):
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

    source = open_source(o.source, o)
    store = source.store if isinstance(source, Stored) else Sample(source)
    Console().print(describe(store))
    out = o.out
    if out is None and o.open:
        import tempfile

        out = Path(tempfile.mkdtemp(prefix="hwm_")) / f"{store.path.name}.html"
    if out is None:
        return
    from hwm.loading import load_tokenizer

    encoded = store.header.latent and not store.has_video
    tokenizer = load_tokenizer(o.tokenizer or store.header.tokenizer) if encoded else None
    (contact_sheet if out.suffix == ".png" else view_html)(store, out, tokenizer)
    print(out)
    if o.open:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())
