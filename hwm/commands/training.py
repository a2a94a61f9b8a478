"""`hwm train`, `bench` and `recipes`: training runs, and what they take."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from hwm.catalogue import find_recipe
from hwm.commands.listing import explain, known_recipes, print_recipes
from hwm.errors import HwmError

if TYPE_CHECKING:
    from hwm.config import Config
    from hwm.data.clips import Clips
    from hwm.data.mixture import Mixture
    from hwm.types import DataSpec, Tokenizer


SPELLINGS = (
    (r"--train\.no-compile", "--train.compile False"),
    (r"--train\.compile(?= --|$)", "--train.compile True"),  # a flag, once
    (r"--train\.batch[-_]size[ =]auto", "--train.fit"),
)
"""Other ways to write an option of the trainer: a pattern of words with spaces between, and the words it stands for."""


def plain_options(args: list[str]) -> list[str]:
    """Options of the trainer as its config has them, where they may be written in other ways, too."""
    out = list(args)
    for place in range(len(args) - 1, -1, -1):
        words = " ".join(out[place : place + 2])
        for pattern, plain in SPELLINGS:
            if found := re.match(pattern + r"(?= |$)", words):
                out[place : place + 1 + found[0].count(" ")] = plain.split()
                break
    return out


def todays_options(args: list[str], model: Config) -> list[str]:
    """Options under the names that they have today, with a note of those that have changed: `--model.hop 3`."""
    out = []
    for word in plain_options(args):
        option, equals, value = word.partition("=")
        old = option.removeprefix("--model.").split(".")[0]
        now = model.todays_name(old.replace("-", "_")).replace("_", "-")
        if option.startswith("--model.") and now != old.replace("_", "-"):
            print(f"note: --model.{old} is now --model.{now}", file=sys.stderr)
            word = f"--model.{now}{option.removeprefix(f'--model.{old}')}{equals}{value}"
        out.append(word)
    return out


def train(args: list[str]) -> None:
    """`hwm train RECIPE --out DIR [--train.* ...] [--model.* ...] [--data.* ...]`."""
    import dataclasses

    if args and args[0] in ("-h", "--help"):
        return explain("hwm train RECIPE [--out DIR] [OPTIONS]", train_help)
    if not args or args[0].startswith("-"):
        raise HwmError("say which recipe to train: hwm train RECIPE --out DIR; hwm train --help lists them")
    name, function = args[0], find_recipe(args[0])
    from hwm.recipes import Recipe, make_recipe

    recipe = make_recipe(name)

    @dataclass(frozen=True, kw_only=True)
    class Options(Recipe):
        out: Path = Path("runs") / name.replace(":", "_")
        """Folder of the run: checkpoints, log, samples. If it holds a run, training resumes there."""
        init: str | None = None
        """Begin from these weights (a shipped model, a folder or a run) instead of at random."""

    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    o = tyro.cli(
        Options, args=todays_options(args[1:], recipe.model), prog=f"hwm train {name}", default=Options(**fields),
        description=function.__doc__,
    )  # fmt: skip
    named = any(word.partition("=")[0] == "--tokenizer" for word in args)
    chosen = Recipe(**{name: getattr(o, name) for name in fields})
    train_recipe(chosen, o.out, o.init, tokenizer=o.tokenizer if named else "")


train_help = """\
Train a model or a tokenizer. A recipe is a complete run, of model, data and training: one of those below, or any
importable function that returns one, as package.module:function. Each of its fields is an option, such as
--train.steps 1000 or --model.depth 4; hwm train RECIPE --help lists them. The run is kept in --out, runs/RECIPE unless
given: killed and given again, the same command goes on there."""


def bench(args: list[str]) -> None:
    """`hwm bench RECIPE [--steps N] [--json] [--train.* ...] [--model.* ...]`."""
    import dataclasses

    if args and args[0] in ("-h", "--help"):
        return explain("hwm bench RECIPE [--steps N] [--json] [OPTIONS]", f"{bench_help}\n{bench_options}")
    if not args or args[0].startswith("-"):
        raise HwmError("say which recipe to measure: hwm bench RECIPE; hwm bench --help lists them")
    find_recipe(args[0])
    from hwm.recipes import Recipe, make_recipe

    recipe = make_recipe(args[0])

    @dataclass(frozen=True, kw_only=True)
    class Options(Recipe):
        steps: int = 5
        """Training steps that are timed, after a first that is not."""
        json: bool = False
        """Print one JSON object."""

    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    words = todays_options(args[1:], recipe.model)
    o = tyro.cli(Options, args=words, prog=f"hwm bench {args[0]}", default=Options(**fields), description=bench_help)
    if o.steps < 1:
        raise HwmError(f"steps must be at least 1, got {o.steps}")
    import torch

    from hwm.train.bench import bench as run

    if o.train.threads:
        torch.set_num_threads(o.train.threads)
    figures = run(args[0], o, o.steps)
    print(json.dumps(dataclasses.asdict(figures), indent=1) if o.json else figures)


bench_help = "Time a recipe on random clips: training steps and predictions, against this machine's matrix products."
bench_options = "Each field of a recipe is an option, as of hwm train; hwm bench RECIPE --help lists them."


def train_recipe(recipe: Any, run: Path, init: str | None = None, tokenizer: str = "") -> Any:
    """Train a recipe in a run folder; returns the trained module.

    Args:
        init: begin from these weights.
        tokenizer: show rollouts by this one, instead of by the one that the data name, or else the recipe.

    Raises:
        HwmError: data of two tokenizers, or of another than is named; weights that do not fit, or are not given.
    """
    import torch

    from hwm.commands.samples import show_progress
    from hwm.train.checkpoint import step_folders
    from hwm.train.distributed import building, leading
    from hwm.train.trainer import Trainer, same_kind, write_run

    data = recipe.data.open()
    held_out = recipe.data.open(validation=True) if recipe.data.paths(validation=True) else None
    if held_out:
        try:
            same_kind(data.spec, held_out.spec)
        except HwmError as error:
            stores = ", ".join(recipe.data.paths(validation=True))
            raise HwmError(
                f"{error}. Held out are {stores}: name stores that go with yours by --data.val-stores, or none, by "
                "giving it no value"
            ) from error
    _check_cameras(recipe, data.spec)
    rollouts = _rollouts(recipe, data.spec, held_out, tokenizer)
    torch.manual_seed(recipe.train.seed)
    with building(recipe.train.shard):
        module = recipe.model.build(data.spec)
    if init and not next(module.parameters()).is_meta:
        from hwm.loading import copy_weights

        copy_weights(init, module)
    elif module.keeps and not (init or step_folders(run)):
        raise HwmError(f"this run keeps weights of {module.keeps}: name where they are with --init")
    if leading():
        count = sum(p.numel() for p in module.parameters())
        print(f"{module.name}: {count:,} parameters; {data.describe()}")
        for text in [*data.warnings(data.spec), *(held_out.warnings(data.spec) if held_out else ())]:
            print(text, file=sys.stderr)
        write_run(run, recipe)
    return Trainer(recipe.train, module, data, held_out, run, show_progress(rollouts, recipe.train.dtype)).run()


def _check_cameras(recipe: Any, spec: DataSpec) -> None:
    """Raise `HwmError` where a tokenizer would be trained on pictures of several cameras as if they were one's."""
    from hwm.types import Tokenizer

    if spec.latent.views and issubclass(recipe.model.owner, Tokenizer):
        raise HwmError(
            f"a tokenizer is trained on the pictures of one camera, and these show {', '.join(spec.latent.views)}: "
            "encode each by itself (--camera NAME) and train on all these stores"
        )


def _rollouts(recipe: Any, spec: DataSpec, held_out: Mixture | None, named: str) -> tuple[Clips, Tokenizer] | None:
    """Held-out windows and the tokenizer of their latents, to show rollouts of; None where there are none to show.

    Raises:
        HwmError: there is no tokenizer of the name that was asked for, or the data are another's.
    """
    from hwm.data.clips import Clips
    from hwm.loading import load_tokenizer

    of_data, views = spec.tokenizer, spec.latent.views
    asked = load_tokenizer(named, views=views) if named else None
    if asked and not hasattr(recipe.model, "past"):
        raise HwmError(
            f"--tokenizer {named}: {recipe.model.owner.name} is no world model, whose rollouts could be shown"
        )
    if asked and of_data and not asked.answers_to(of_data):
        raise HwmError(
            f"--tokenizer {named} is {asked.id}, to which the data mean nothing: they are latents of {of_data}. Leave "
            "the option out, or encode them by it"
        )
    if not held_out or not (asked or recipe.tokenizer):
        return None
    try:
        clips = held_out.clips[0]
        shown = Clips(clips.store, recipe.model.past + 8, stride=clips.stride, part=clips.part)
        return shown, asked or load_tokenizer(of_data or recipe.tokenizer, views=views)
    except HwmError as error:
        print(f"no pictures of rollouts while training: {error}")
        return None


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
    chosen = known_recipes(o.names)
    if o.memory:
        print_memory([recipe.name for recipe in chosen], o.memory, o.json)
        return
    counts = {recipe.name: count_parameters(recipe.name) for recipe in chosen} if o.params else {}
    if o.json:
        print(json.dumps(counts or {recipe.name: recipe.what for recipe in chosen}, indent=1))
    else:
        print_recipes(chosen, counts)


def print_memory(names: list[str], size: str, as_json: bool) -> None:
    """How recipes can be trained in so much memory: what each takes, and the options to add."""
    from hwm.progress import track
    from hwm.recipes import make_recipe
    from hwm.train.memory import GIB, fit, read_size

    limit = read_size(size)
    out: dict[str, Any] = {}
    shown = names if as_json else track(names, len(names), "looking at recipes", unit="recipes")
    for name in shown:
        made = make_recipe(name)
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

    from hwm.recipes import make_recipe

    made = make_recipe(name)
    spec = made.data.expects or made.data.open().spec
    with torch.device("meta"):
        module = made.model.build(spec)
    return sum(p.numel() for p in module.parameters())
