"""The command line answers at once: what it is asked to explain needs no PyTorch."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from hwm import cli
from hwm.catalogue import RECIPES

EXPLAIN = """
import json, sys
from contextlib import redirect_stdout
from io import StringIO
from hwm import cli

found = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as said:
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = end.code
    found.append((words, code, said.getvalue(), "torch" in sys.modules))
print(json.dumps(found))
"""


def answers(*commands: str) -> dict[str, str]:
    """What commands say on standard output, one after the other in one process that never imports torch."""
    words = json.dumps([command.split() for command in commands])
    done = subprocess.run([sys.executable, "-c", EXPLAIN, words], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert [(words, code) for words, code, _, torch in found if code or torch] == [], done.stderr
    return {" ".join(words): said for words, _, said, _ in found}


def test_no_verb_imports_torch_to_explain_itself() -> None:
    parts = ("record sim", "tokenizer report", "data make-onex", "challenge compression", "convert check")
    verbs = [*cli.VERBS, *parts, "evaluate cosmos-ar"]
    for command, said in answers(*(f"{verb} --help" for verb in verbs)).items():
        assert said.startswith(f"usage: hwm {command.removesuffix(' --help').split()[0]}"), command


def test_recipes_are_listed_by_family_without_torch() -> None:
    said = answers("recipes", "recipes genie_35m", "train --help", "bench -h")
    for text in (said["recipes"], said["train --help"], said["bench -h"]):
        lines = text.splitlines()
        first = {line.split()[0]: i for i, line in enumerate(lines) if line.startswith("  ")}
        assert first.keys() >= {entry.name for entry in RECIPES.shipped}
        heading = lines.index("Flow-HWM (arXiv 2506.01182) at the paper's size, and tiny for a first look.")
        assert first["masked_hwm_mini"] < heading < first["flow_hwm_base"] == heading + 1
    assert "masked_hwm_base" not in said["recipes genie_35m"]
    assert "--train.steps" in said["train --help"]


def test_help_of_a_verb_is_what_the_verb_says_of_itself() -> None:
    said = answers("help", "--help", "help demo", "demo --help", "help tokenizer report", "tokenizer report --help")
    texts = list(said.values())
    assert texts[0::2] == texts[1::2]
    assert len(set(texts)) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demmo"], "did you mean demo"),
        (["help", "demmo"], "did you mean demo"),
        (["train", "masked_hwm_tyo"], "did you mean masked_hwm_toy"),
        (["bench", "masked_hwm_tyo"], "did you mean masked_hwm_toy"),
        (["train"], "hwm train --help"),
        (["bench", "--steps", "3"], "hwm bench --help"),
        (["demo", "--clps", "3"], "--clips"),
    ],
)
def test_what_is_misspelt_shows_the_nearest_on_standard_error(words: list[str], message: str, capsys) -> None:
    try:
        code = cli.main(words)
    except SystemExit as end:  # of tyro
        code = end.code  # type: ignore[assignment]
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert message in said.err


def test_a_terminal_that_lacks_a_letter_shows_another(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr(cli, "help_text", lambda: "straße, 把")
    assert cli.main(["--help"]) == 0
    sys.stdout.flush()
    assert written.getvalue().decode("latin-1") == "straße, ?\n"
