"""The documentation is held to what it says.

- Every ```python block of a page runs, in order, in one namespace and one empty folder. A comment before a block can
  say otherwise: `<!-- not run: reason -->`; `<!-- needs: mini gymnasium -->` (assets or modules without which it is
  skipped);
  `<!-- file: name.py -->` (the block is that file, and is imported).
- Every `hwm` command line, in ```bash blocks and in `inline code`, is parsed by the real command line, and not run;
  but those of a block after `<!-- walk: SOURCE as PLACE -->` are, one after the other, with SOURCE lying at PLACE.
- Links lead somewhere; options, figures, actions and parameter counts agree with the code.
- No paths of one machine, no marks of unfinished work, no praise without a figure.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import tyro

from hwm import cli
from hwm.assets import ROOT as ASSETS
from hwm.assets import STORES
from hwm.commands.tokens import EncodeOptions
from hwm.commands.training import count_parameters
from hwm.config import REGISTRY, registered
from hwm.data.mixture import DataConfig
from hwm.data.record import SimRecording
from hwm.data.store import Store
from hwm.evaluate import evaluate, moments, results
from hwm.evaluate.endurance import Endurance
from hwm.objectives.flow import FlowSampler
from hwm.objectives.maskgit import MaskGITSampler
from hwm.objectives.next_token import NextTokenSampler
from hwm.objectives.reconstruction import LossWeights
from hwm.recipes import RECIPES
from hwm.recipes.specs import ACTIONS_1X
from hwm.train.config import TrainConfig
from tests.outside import forgotten

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block: its language, text, first line, and the comment before it."""

    language: str
    text: str
    line: int
    note: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The fenced blocks of a page, indented ones included."""
    out: list[Block] = []
    lines, note, i = page.read_text(encoding="utf-8").splitlines(), "", 0
    while i < len(lines):
        opening = re.match(r"( *)```(\w*)\s*$", lines[i])
        if opening:
            indent, start = len(opening[1]), i + 1
            i = next(j for j in range(start, len(lines)) if lines[j].strip() == "```")
            out.append(Block(opening[2], "\n".join(line[indent:] for line in lines[start:i]) + "\n", start + 1, note))
            note = ""
        elif comment := re.match(r"\s*<!--\s*(.*?)\s*-->\s*$", lines[i]):
            note = comment[1]
        elif lines[i].strip():
            note = ""
        i += 1
    return tuple(out)


def prose(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    text = re.sub(r"^ *```.*?^ *```\s*$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def test_every_fence_names_its_language_and_is_closed() -> None:
    for page in PAGES:
        assert page.read_text(encoding="utf-8").count("```") % 2 == 0, page
        for block in blocks(page):
            kind = block.note.split(":")[0]
            assert kind in {"", "not run", "needs", "file", "figures", "walk"}, (
                f"{name(page)}:{block.line}: {block.note!r}"
            )


# ---------------------------------------------------------------------- python
@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """An empty module in an empty folder; what a page registers or imports is forgotten afterwards."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    with forgotten(tmp_path):
        yield module
    torch.set_rng_state(random)
    torch.set_num_threads(threads)


def absent(needs: str) -> list[str]:
    """Those of the named assets and modules that are not there."""
    return [n for n in needs.split() if not STORES.get(n, ASSETS / n).exists() and importlib.util.find_spec(n) is None]


def run(block: Block, page: Path, module: types.ModuleType) -> None:
    kind, _, value = (part.strip() for part in block.note.partition(":"))
    if kind == "file":
        Path(value).parent.mkdir(parents=True, exist_ok=True)
        Path(value).write_text(block.text, encoding="utf-8")
        importlib.invalidate_caches()
        made = importlib.import_module(value.removesuffix(".py").replace("/", "."))
        vars(module).update({k: v for k, v in vars(made).items() if not k.startswith("__")})
        return
    padded = "\n" * (block.line - 1) + block.text  # so that a traceback shows the line of the page
    exec(compile(padded, str(page), "exec"), vars(module))


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=name)
def test_python_runs(page: Path, clean: types.ModuleType) -> None:
    left_out = []
    for block in blocks(page):
        if block.language != "python" or block.note.startswith("not run:"):
            continue
        missing = absent(block.note.removeprefix("needs:")) if block.note.startswith("needs:") else []
        if missing:
            left_out.append(f"line {block.line} needs {', '.join(missing)}")
        else:
            run(block, page, clean)
    if left_out:
        pytest.skip(f"the other blocks ran; {'; '.join(left_out)}")


# ---------------------------------------------------------------------- commands
def command_lines(page: Path) -> list[str]:
    """All command lines of `hwm`, of ```bash blocks and of inline code.

    Inline code without options (`hwm record sim`) speaks of a verb and is no complete command: the verb alone counts.
    """
    joined = "\n".join(b.text for b in blocks(page) if b.language == "bash").replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines()]
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page)):
        words = span.split()
        lines.append(" ".join(words if any(w.startswith("--") for w in words) else words[:2]))
    return [line for line in lines if arguments(line) is not None]


def arguments(line: str) -> list[str] | None:
    """The arguments of an `hwm` command line, None for any other line. `...` stands for more of the same."""
    try:
        words = [w for w in shlex.split(line, comments=True) if w != "..."]
    except ValueError:
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[:1] == ["hwm"]:
        return words[1:]
    launched = next((i for i in range(len(words) - 1) if words[i : i + 2] == ["-m", "hwm.cli"]), None)
    return None if launched is None else words[launched + 2 :]


class Parsed(BaseException):
    """Raised in place of running a command."""


@pytest.mark.parametrize("page", [p for p in PAGES if command_lines(p)], ids=name)
def test_commands_parse(page: Path, clean: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(page):
        if block.language == "python" and block.note.startswith("file:"):
            run(block, page, clean)
    all_parse(name(page), command_lines(page), monkeypatch)


def test_what_ships_is_remade_by_commands_that_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make weights` runs the stages in their order, all of commands that there are, and none that is done already."""

    def lines() -> list[str]:
        command = ["make", "--dry-run", "--file", str(ROOT / "weights.mk"), "HWM=hwm", f"OUT={tmp_path}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        return [line for line in text.replace("\\\n", " ").splitlines() if arguments(line) is not None]

    every = lines()
    assert [line.split()[1] for line in every] == [
        *("record", "encode", "record", "encode", "train", "encode", "encode", "train", "evaluate"),
    ]
    all_parse("weights.mk", every, monkeypatch)
    for stage in ("train", "pixels"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "meta.json").touch()
    assert lines() == [line for line in every if not line.endswith((f"{tmp_path}/train", f"{tmp_path}/pixels"))]


def all_parse(where: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a command line is none of `hwm`."""
    real = tyro.cli

    def parse(*args: object, **options: object) -> None:
        raise Parsed(real(*args, **options))  # type: ignore[call-overload]

    monkeypatch.setattr(tyro, "cli", parse)
    verbs = cli._verbs()
    for line in lines:
        words = arguments(line) or []
        given = cli.named_modules(words)[1]
        if not given or given in (["--help"], ["--version"]):
            continue
        verb = given[0]
        assert verb in verbs, f"{where}: `{line}`: there is no verb {verb}"
        if given[1:] == []:
            continue  # the verb alone, as it is spoken of in prose
        if "tyro.cli(" not in inspect.getsource(verbs[verb]):
            continue
        try:
            end: object = cli.main(words)
        except Parsed:
            continue
        except SystemExit as stop:
            end = stop.code
        if end == 0 and words[-1] == "--help":
            continue
        pytest.fail(f"{where}: `{line}` does not parse, or runs without being parsed (status {end})")


# ---------------------------------------------------------------------- links and tables
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), f"{name(page)}: {target} leads out of the project"
        assert file.exists(), f"{name(page)}: {target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{name(page)}: {target}: there is no such heading"


def test_readme_counts_every_recipe() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|.*$", readme, flags=re.MULTILINE))
    assert stated == {entry.name: f"{count_parameters(entry.name):,}" for entry in RECIPES.shipped}


def test_pages_name_every_option_figure_and_action() -> None:
    training, evaluation, data = (
        (ROOT / "docs" / f"{p}.md").read_text(encoding="utf-8") for p in ("training", "evaluation", "data")
    )
    for option in dataclasses.fields(TrainConfig):
        assert f"`{option.name.replace('_', '-')}`" in training, f"docs/training.md lacks {option.name}"
    figures = set(results.LABELS) | {f"psnr_{n}" for n in evaluate.SWAPPED.values()} | set(evaluate.DELTA.values())
    figures |= {f.name for f in dataclasses.fields(results.Results)} - {"figures", "examples", "further"}
    figures |= {f.name for f in dataclasses.fields(Endurance)} - {"about", "values", "films"}
    figures |= {*moments.FIGURES, "perceptual"}
    for figure in figures:
        assert f"`{figure}`" in evaluation, f"docs/evaluation.md lacks {figure}"
    for option in dataclasses.fields(SimRecording):
        assert f"`{option.name.replace('_', '-')}`" in data, f"docs/data.md lacks {option.name}"
    for option in dataclasses.fields(EncodeOptions):
        assert option.name == "source" or f"--{option.name.replace('_', '-')}" in data, (
            f"docs/data.md lacks {option.name}"
        )
    listed = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", data, flags=re.MULTILINE)
    assert listed == [(str(i), action) for i, action in enumerate(ACTIONS_1X)]


def test_data_page_describes_the_embedded_set() -> None:
    if missing := absent("mini mini_heldout"):
        pytest.skip(f"needs {', '.join(missing)}")
    data = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    mini, held_out = (Store(STORES[n]) for n in ("mini", "mini_heldout"))
    for row in (
        f"| steps, minutes | {mini.steps:,}, {minutes(mini):g} | {held_out.steps:,}, {minutes(held_out):g} |",
        f"| rooms, seeds | {len(mini.episodes)}, from 0 | {len(held_out.episodes)}, from 1,000,000 |",
        f"| camera video | {'yes' if mini.has_video else 'no'} | {'yes' if held_out.has_video else 'no'} |",
    ):
        assert row in data, row


def minutes(store: Store) -> float:
    return round(store.steps / store.header.fps / 60, 1)


def test_recipe_options_exist() -> None:
    """Options of recipes, wherever a page names them: `--train.lr`, `--model.sampler.steps`, `--train.no-compile`."""
    classes = [registered(entry.name) for entry in REGISTRY.shipped]
    samplers = {type(tiny.sampler) for tiny in (c.tiny() for c in classes) if hasattr(tiny, "sampler")}
    assert {MaskGITSampler, NextTokenSampler, FlowSampler} <= samplers
    known = {
        "train": {f.name for f in dataclasses.fields(TrainConfig)},
        "data": {f.name for f in dataclasses.fields(DataConfig)},
        "model": {f.name for c in classes for f in dataclasses.fields(c.Config)}
        | {f"sampler.{f.name}" for sampler in samplers for f in dataclasses.fields(sampler)}
        | {f"loss_weights.{f.name}" for f in dataclasses.fields(LossWeights)},
    }
    for page in PAGES:
        for group, option in re.findall(r"--(train|data|model)\.([\w.-]*\w)", page.read_text(encoding="utf-8")):
            field = option.removeprefix("no-").replace("-", "_")
            assert field in known[group], f"{name(page)}: there is no option --{group}.{option}"


# ---------------------------------------------------------------------- words
BANNED = {
    "a path of one machine": r"(?<![\w.])/(?:home|root|work|mnt|media|Users)/\w",
    "a mark of unfinished work": r"\b(?:TODO|FIXME|XXX|TBD|coming soon)\b",
    "an issue number": r"(?<![\w&])#\d+\b",
    "praise without a figure": (
        r"\b(?:state[- ]of[- ]the[- ]art|cutting[- ]edge|seamless(?:ly)?|blazing(?:ly)?|powerful|effortless(?:ly)?|"
        r"best[- ]in[- ]class|world[- ]class|lightning|game[- ]chang\w+|robust(?:ly)?|comprehensive)\b"
    ),
}


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "log.md"], ids=name)
def test_words(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for what, pattern in BANNED.items():
        found = re.search(pattern, text, flags=re.IGNORECASE)
        assert not found, f"{name(page)}: {what}: {found and found[0]!r}"
