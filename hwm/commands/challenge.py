"""What `hwm challenge` does: write a submission to either track, or look one over."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from hwm.challenge.formats import Sender
from hwm.computing import Computing
from hwm.errors import HwmError, unknown
from hwm.files import write_atomically

if TYPE_CHECKING:
    from hwm.challenge.submission import Submission
    from hwm.devices import Runtime

RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class WriteOptions(Computing):
    """
    Attributes:
        model: a shipped model, a checkpoint folder or a run.
        data: the samples: a test folder, or data whose continuation is known, which are then scored.
        out: folder of the submission; if it holds a part of this one, the work goes on there.
        clips: at most so many samples; by default all of a test folder, and of other data as many as the challenge has
            (450 and 250), spread evenly.
        sender: what README.txt says.
        zip: also pack everything into OUT/submission.zip.
        json: print one JSON object instead of tables.
    """

    model: str
    data: str
    out: Path
    clips: int | None = None
    sender: Sender = field(default_factory=Sender)
    zip: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class CompressionOptions(WriteOptions):
    """Write the likeliest ids of the steps that follow: 1X's compression track.

    Attributes:
        train: training data, which the baselines are made of; without it only copying ids is compared with.
        prompt: context frames (latent steps) that are known.
        horizon: latent steps to predict.
        top: ids that are kept of each cell.
    """

    train: str | None = None
    prompt: Annotated[int, tyro.conf.arg(aliases=("--context",))] = 3
    horizon: int = 3
    top: int = 500


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(WriteOptions):
    """Paint the frame two seconds ahead: 1X's sampling track.

    Attributes:
        tokenizer: whose latents the model reads; by default the one that the model names.
        samples: how many are drawn for each picture and averaged, in pixels.
        sampler: changes to the model's sampler as NAME=VALUE, such as temperature=1.0 pick=sample.
        known: frames that are seen.
        target: number of the frame that is asked for; the first that is seen is number 0.
        size: height and width of the pictures.
        batch_size: samples drawn at once.
        seed: of the drawing.
    """

    tokenizer: str | None = None
    samples: int = 1
    sampler: tuple[str, ...] = ()
    known: int = 17
    target: int = 76
    size: tuple[int, int] = (512, 512)
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """Name every file of a submission that is missing or broken.

    Attributes:
        folder: of the submission.
        track: by default what the folder says, or what its files tell.
        samples: how many files there have to be; by default what the folder says, else 450 and 250.
    """

    folder: tyro.conf.Positional[Path]
    track: Literal["compression", "sampling"] | None = None
    samples: int | None = None


class Made(NamedTuple):
    """What a command made: the submission, its figures as JSON and as tables, and what else is to be said."""

    entry: Submission
    found: dict[str, Any]
    tables: list[Any]
    unknown: Sequence[str]
    notes: list[str]


def make_compression(o: CompressionOptions) -> Made:
    from hwm.challenge import compression as track
    from hwm.data.clips import Clips

    model, about = _model(o)
    asked = track.questions(o.data, o.prompt, o.horizon, o.clips)
    train = Clips(track.open_blocks(o.train), o.prompt + o.horizon) if o.train else None
    settings = {"model": about.fingerprint, "dtype": about.dtype, "data": o.data, "train": o.train, "prompt": o.prompt}
    entry, scores = track.write_compression(
        model, asked, o.out, k=o.top, train=train, settings=settings, dtype=about.dtype
    )
    found: dict[str, Any] = {
        "track": "compression", "samples": len(entry.names), "top": o.top, "device": about.device, "dtype": about.dtype,
        "scores": scores.json(),
    }  # fmt: skip
    return Made(entry, found, [_compression_table(found["scores"], o.top)] if scores.of else [], track.UNKNOWN, [])


def make_sampling(o: SamplingOptions) -> Made:
    from hwm.challenge import sampling as track
    from hwm.challenge.recordings import recordings
    from hwm.challenge.submission import summary
    from hwm.loading import load_tokenizer

    model, about = _model(o)
    if not (o.tokenizer or model.spec.tokenizer):
        raise HwmError(f"{o.model} does not say whose latents it reads: name them with --tokenizer")
    name, views = o.tokenizer or model.spec.tokenizer, model.spec.latent.views
    tokenizer = load_tokenizer(name, about.runtime.device, views=views)
    data = recordings(o.data, o.known, o.target, o.clips)
    painter = track.Painter(
        model,
        tokenizer,
        track.plan_for(model, tokenizer, data),
        data.embodiment,
        samples=o.samples,
        batch_size=o.batch_size,
        sampler=model.sampler_with(o.sampler) if o.sampler else None,
        seed=o.seed,
        size=o.size,
        dtype=about.dtype,
    )
    settings = {
        "model": about.fingerprint, "dtype": about.dtype, "tokenizer": tokenizer.id, "data": o.data,
        "known": o.known, "target": o.target, "samples": o.samples, "sampler": list(o.sampler), "seed": o.seed,
    }  # fmt: skip
    print("\n".join(track.describe(painter, data)))
    entry, figures = track.write_sampling(painter, data, o.out, settings=settings)
    scores = {name: summary(values, data.episodes) for name, values in figures.items()}
    found = {
        "track": "sampling", "samples": len(entry.names), "drawn": o.samples, "device": about.device,
        "dtype": about.dtype, "scores": scores,
    }  # fmt: skip
    notes = [track.SAME] if o.samples > 1 and "spread" in scores and not scores["spread"]["mean"] else []
    return Made(entry, found, [_sampling_table(scores, o.samples)] if scores else [], track.UNKNOWN, notes)


def write(o: WriteOptions, make: Callable[[Any], Made]) -> None:
    """Make a submission, look all of it over, pack it, and say how it went."""
    from hwm.challenge.submission import validate

    with redirect_stdout(sys.stderr) if o.json else nullcontext():  # so that nothing but JSON is on the standard output
        made = make(o)
        made.entry.sign(o.sender)
        if problems := validate(o.out):
            raise HwmError(
                f"{o.out}: {len(problems)} problems, the first {problems[0]}; the same command writes these files again"
            )
        write_atomically(o.out / RESULTS, json.dumps(made.found, indent=1).encode())
        packed = made.entry.pack() if o.zip else None
    if o.json:
        print(json.dumps(made.found, indent=1))
        return
    from rich.console import Console

    for table in made.tables:
        Console().print(table)
    packed_in = f"; packed in {packed}" if packed else ""
    print(f"{o.out}: {len(made.entry.names):,} samples, looked over and whole{packed_in}")
    if blank := [key for key, value in json.loads(o.sender.text()).items() if not value]:
        print(f"README.txt says nothing of {', '.join(blank)}: see --sender.*")
    for note in made.notes:
        print(note)
    print("Not publicly documented, and decided here:")
    for what in made.unknown:
        print(f"  - {what}")


def run_validate(o: ValidateOptions) -> None:
    from hwm.challenge.submission import validate

    problems = validate(o.folder, o.track or "", o.samples)
    for problem in problems:
        print(problem)
    if problems:
        raise HwmError(f"{o.folder}: {len(problems)} problems in {len({p.file for p in problems})} files")
    print(f"{o.folder}: all files are whole and as they have to be")


class Where(NamedTuple):
    """What a model computes with, and what tells it from others."""

    runtime: Runtime
    fingerprint: str

    @property
    def device(self) -> str:
        from hwm.devices import name_of

        return name_of(self.runtime.device)

    @property
    def dtype(self) -> str:
        return self.runtime.format


def _model(o: WriteOptions) -> tuple[Any, Where]:
    """The model on its device, and what is to be noted of it."""
    from hwm.devices import runtime_of
    from hwm.loading import load, weights_fingerprint

    model = load(o.model, o.start().device)
    return model, Where(runtime_of(model, o.dtype), f"{model.name}@{weights_fingerprint(model)}")


def _compression_table(scores: dict[str, Any], k: int) -> Any:
    from hwm.tables import Figures

    first = scores["model"]["top_ce"]
    labels = {
        "top_ce": (f"Top-{k} CE, nats", 1, 4),
        "ce": ("full CE, nats", 1, 4),
        "coverage": (f"truth among the {k}, %", 100, 1),
        "accuracy": ("likeliest id right, %", 100, 1),
    }
    steps = (f"step {i + 1}" for i in range(len(first["steps"])))
    table = Figures(f"{first['clips']} clips", "", "mean", "±", *steps, words=2, ruled=False)
    for figure, (label, scale, digits) in labels.items():
        for who in ("model", "copy", "unigram"):
            if found := scores.get(who, {}).get(figure):
                values = (found["mean"], found["standard_error"], *found["steps"])
                table.add(label, who, *(_number(v, scale, digits) for v in values))
                label = ""
    table.add("a uniform guess, nats", "", _number(scores["uniform"], 1, 4))
    return table


def _sampling_table(scores: dict[str, Any], drawn: int) -> Any:
    from hwm.tables import Figures

    labels = {
        "psnr": f"the picture, mean of {drawn}" if drawn > 1 else "the picture, one sample",
        "psnr_one": "one sample",
        "psnr_copy": "the last frame seen, repeated",
        "psnr_reconstruction": "the truth as the tokenizer shows it",
    }
    table = Figures(f"PSNR of {scores['psnr']['clips']} samples, dB", "mean", "±", ruled=False)
    for name, label in labels.items():
        if name != "psnr_one" or drawn > 1:
            table.add(label, _number(scores[name]["mean"]), _number(scores[name]["standard_error"]))
    return table


def _number(value: float | None, scale: float = 1, digits: int = 2) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


VERBS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "compression": (CompressionOptions, lambda o: write(o, make_compression)),
    "sampling": (SamplingOptions, lambda o: write(o, make_sampling)),
    "validate": (ValidateOptions, run_validate),
}


def challenge(args: list[str]) -> None:
    """`hwm challenge compression|sampling --model M --data DIR --out OUT`, `hwm challenge validate DIR`."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: hwm challenge VERB [OPTIONS]   (hwm challenge VERB --help tells the options)\n")
        for name, (options, _) in VERBS.items():
            print(f"  {name:<12} {options.__doc__.splitlines()[0]}")
        return
    if args[0] not in VERBS:
        raise unknown("verb of hwm challenge", args[0], VERBS)
    options, run = VERBS[args[0]]
    run(tyro.cli(options, args=args[1:], prog=f"hwm challenge {args[0]}"))
