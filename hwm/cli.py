"""The command `hwm`: one table of verbs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hwm.errors import HwmError, unknown


def _verbs() -> dict[str, tuple[str, Callable[[list[str]], Any]]]:
    from hwm.commands import evaluation, play, stores, tokens, training
    from hwm.commands.challenge import challenge
    from hwm.commands.convert import convert
    from hwm.commands.data import data
    from hwm.commands.demo import demo

    return {
        "demo": ("evaluate the shipped model, train a toy one for a minute, write a report with videos", demo),
        "record": ("record the simulated humanoid as a store of video and actions", stores.record),
        "encode": ("turn a recording or anybody's data into a store of latents, or videos into files", tokens.encode),
        "decode": ("turn files of latents into videos", tokens.decode),
        "tokenizer": ("fetch a published tokenizer, or measure how well one shows a video again", tokens.tokenizer),
        "data": ("fetch 1X's published data, or make a small set in its layout", data),
        "merge": ("join stores into one", stores.merge),
        "view": ("show what is in a store or other data: episodes, statistics, a page or a contact sheet", stores.view),
        "export": ("write a recording, a store or other data as a LeRobot data set", stores.export),
        "train": ("train a recipe, or any importable function that returns one", training.train),
        "bench": ("time a recipe's training step and prediction, with FLOP utilisation and memory", training.bench),
        "evaluate": ("measure a model on held-out clips against honest baselines", evaluation.evaluate),
        "generate": ("write videos of a model's rollouts beside the truth", evaluation.generate),
        "play": ("drive a humanoid through a model's world, in the browser", play.play),
        "presets": ("measure the named ways to sample a model: quality and frames a second", play.presets),
        "policies": ("judge policies in a model, and by the true simulator", play.policies),
        "challenge": ("write and check submissions to the two tracks of the 1X World Model Challenge", challenge),
        "convert": ("turn a published checkpoint into one of this program, or back", convert),
        "recipes": ("list the recipes, their exact parameter counts, and how they fit into memory", training.recipes),
    }


def help_text() -> str:
    lines = ["usage: hwm VERB [OPTIONS]   (hwm VERB --help tells the options)", ""]
    lines += [f"  {name:<10} {what}" for name, (what, _) in _verbs().items()]
    lines += ["", "start with: hwm demo", "then:       hwm train masked_hwm_toy --out runs/toy"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; mistakes of the user end in one clear message and exit status 2."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if args[0] == "--version":
        from hwm.version import __version__

        print(__version__)
        return 0
    try:
        verbs = _verbs()
        if args[0] not in verbs:
            raise unknown("verb", args[0], verbs)
        verbs[args[0]][1](args[1:])
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
