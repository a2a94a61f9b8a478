"""The command `hwm`: one table of verbs."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hwm.errors import HwmError, unknown
from hwm.far import ADDRESS
from hwm.plugins import import_module
from hwm.version import __version__

VERBS = {
    "demo": ("demo", "evaluate the shipped model, train a toy one for a minute, write a report with videos"),
    "record": ("stores", "record the simulated humanoid as a store of video and actions"),
    "encode": ("tokens", "turn a recording or anybody's data into a store of latents"),
    "decode": ("tokens", "turn files of latents into videos"),
    "tokenizer": (
        "tokens",
        "fetch a published tokenizer, turn videos into files of latents, or measure how it shows them",
    ),
    "data": ("data", "fetch 1X's published data, or make a small set in its layout"),
    "merge": ("stores", "join stores into one"),
    "view": ("stores", "show what is in a store or other data: episodes, statistics, a page or a contact sheet"),
    "export": ("stores", "write a recording, a store or other data as a LeRobot data set"),
    "train": ("training", "train a recipe, or any importable function that returns one"),
    "bench": ("training", "time a recipe's training step and prediction, with FLOP utilisation and memory"),
    "evaluate": ("evaluation", "measure a model on held-out clips against honest baselines"),
    "generate": ("evaluation", "write videos of a model's rollouts beside the truth"),
    "play": ("play", "drive a humanoid through a model's world, in the browser"),
    "presets": ("play", "measure the named ways to sample a model: quality and frames a second"),
    "policies": ("play", "judge policies in a model, and by the true simulator"),
    "challenge": ("challenge", "write and check submissions to the two tracks of the 1X World Model Challenge"),
    "convert": ("convert", "turn a published checkpoint into one of this program, or back"),
    "recipes": ("training", "list the recipes, their exact parameter counts, and how they fit into memory"),
}
"""Verb -> the file in `commands` that has a function of its name, and what that does; imported when it is called."""


def _verbs() -> dict[str, Callable[[list[str]], Any]]:
    """The functions of all verbs, imported."""
    return {verb: _function(verb) for verb in VERBS}


def _function(verb: str) -> Callable[[list[str]], Any]:
    function: Callable[[list[str]], Any] = getattr(importlib.import_module(f"hwm.commands.{VERBS[verb][0]}"), verb)
    return function


def help_text() -> str:
    lines = ["usage: hwm VERB [OPTIONS]   (hwm VERB --help, or hwm help VERB, tells the options)", ""]
    lines += [f"  {name:<10} {what}" for name, (_, what) in VERBS.items()]
    lines += ["", "start with: hwm demo", "then:       hwm train masked_hwm_toy --out runs/toy", ""]
    lines += ["--import MODULE, with any verb, makes known the models and other parts of a module of your own"]
    return "\n".join(lines)


def named_modules(args: list[str]) -> tuple[list[str], list[str]]:
    """The modules that `--import` names, wherever it stands, and the other words."""
    modules, rest, words = [], [], iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--import":
            rest.append(word)
            continue
        modules.append(value if equals else next(words, ""))
        if not modules[-1] or modules[-1].startswith("-"):
            raise HwmError("--import takes the name of a module, such as --import my_lab")
    return modules, rest


SENDING = ("record", "encode", "merge", "export")
"""Verbs whose results may be far away."""


def _check_out(args: list[str]) -> None:
    """Refuse an address where a folder would be made that is called like one."""
    given = [word.partition("=")[2] for word in args if word.startswith("--out=")]
    given += [value for word, value in pairwise(args) if word == "--out"]
    if args[0] not in SENDING and (addresses := [value for value in given if ADDRESS.fullmatch(value)]):
        raise HwmError(
            f"hwm {args[0]} writes to folders of this disk, not to {addresses[0]}; to addresses write "
            f"{', '.join(SENDING)}"
        )


def main(argv: list[str] | None = None) -> int:
    """Run one verb; mistakes of the user end in one clear message and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter of a name shows another
    try:
        modules, args = named_modules(sys.argv[1:] if argv is None else argv)
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        if not args or args[0] in ("-h", "--help"):
            print(help_text())
        elif args[0] == "--version":
            print(__version__)
        elif args[0] not in VERBS:
            raise unknown("verb", args[0], VERBS)
        else:
            for module in modules:
                import_module(module)
            _check_out(args)
            _function(args[0])(args[1:])
    except HwmError as error:
        print(f"hwm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhwm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
