"""The verb `hwm convert`: published checkpoints into ours and back, and ours beside what was recorded of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from hwm.computing import ExactComputing
from hwm.errors import HwmError, unknown
from hwm.files import listed


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Turn a published checkpoint into one of this program, or back.

    `hwm convert check CASE.safetensors` compares instead with what was recorded of a public implementation.

    Attributes:
        kind: whose layout: genie (a folder with config.json and model.safetensors), magvit2 (magvit2.ckpt, or a
            safetensors file of the same names); any other family that has one.
        source: the published folder or file; with --to published a checkpoint folder or a run of this program.
        out: folder to write, which must be empty or absent.
        to: "hwm" for a checkpoint of this program, "published" for the layout of the original.
        legacy: whether a published Cosmos tokenizer of video has a legacy decoder, where its files leave that open.
    """

    kind: tyro.conf.Positional[str]
    source: tyro.conf.Positional[Path]
    out: Path
    to: Literal["hwm", "published"] = "hwm"
    legacy: Literal["yes", "no"] | None = None

    @property
    def answers(self) -> dict[str, Any]:
        """What is said of the published files, by keywords of `Family.read`."""
        return {} if self.legacy is None else {"legacy": self.legacy == "yes"}


def run_convert(o: ConvertOptions) -> None:
    from hwm.convert.family import families
    from hwm.train.checkpoint import load_model, save_model

    layouts = {name: family for name, family in families().items() if family.read and family.write}
    if o.kind not in layouts:
        raise unknown("published layout", o.kind, layouts)
    read, write = layouts[o.kind].read, layouts[o.kind].write
    assert read is not None
    assert write is not None
    if not o.source.exists():
        raise HwmError(f"there is no {o.source}; nothing is downloaded here, fetch it first")
    if o.out.exists() and (not o.out.is_dir() or listed(o.out)):
        raise HwmError(f"{o.out} is there already and is not an empty folder; choose another --out")
    if beside := [name for name in o.answers if o.to != "hwm" or name not in layouts[o.kind].asks]:
        raise HwmError(f"--{beside[0]} says nothing of a {o.kind} to be read or written here: leave it out")
    if o.to == "hwm":
        module = read(o.source, **o.answers)
        save_model(o.out, module, converted_from=o.source.name)
    else:
        module = load_model(o.source)
        if module.name not in (layouts[o.kind].models or (o.kind,)):
            raise HwmError(f"{o.source} is a checkpoint of a {module.name!r}, not of a {o.kind!r}")
        write(module, o.out)
    count = sum(p.numel() for p in module.parameters())
    print(f"{o.out}: {module.name}, {count:,} parameters, from {o.source}")


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ExactComputing):
    """Compare our outputs with those recorded of a public implementation; fail where one is not within its tolerance.

    The table says of each by what it was computed: by methods that users call, such as `predict` or `encode`, or, where
    these do not give it, by what inside the model.

    Attributes:
        cases: recorded cases: .safetensors files, each with a .json file beside it.
    """

    cases: tyro.conf.Positional[tuple[Path, ...]]


def run_check(o: CheckOptions) -> None:
    from hwm.convert.cases import compare, read_case, table

    if not o.cases:
        raise HwmError("name at least one recorded case: hwm convert check CASE.safetensors")
    runtime, failed = o.start(), []
    for path in o.cases:
        try:
            case = read_case(path)
            model, rows = compare(case, runtime)
        except HwmError as error:
            print(f"{path}: {error}\n")
            failed.append(f"{path.stem} ({error})" if len(o.cases) == 1 else f"{path.stem} (not run)")
            continue
        count = sum(p.numel() for p in model.parameters())
        print(f"{case.name}: {case.family}, {count:,} parameters\n{table(rows)}\n")
        wrong = [row.name for row in rows if not row.passed]
        if wrong:
            failed.append(f"{case.name} ({len(wrong)} of {len(rows)} outputs: {', '.join(wrong)})")
    if failed:
        raise HwmError(f"not as recorded: {'; '.join(failed)}")


VERBS: dict[str, tuple[Any, Callable[[Any], None]]] = {"check": (CheckOptions, run_check)}


def convert(args: list[str]) -> None:
    """`hwm convert KIND SOURCE --out DIR [--to published]`, `hwm convert check CASE.safetensors [...]`."""
    if args and args[0] in VERBS:
        options, run = VERBS[args[0]]
        run(tyro.cli(options, args=args[1:], prog=f"hwm convert {args[0]}"))
    else:
        run_convert(tyro.cli(ConvertOptions, args=args, prog="hwm convert"))
