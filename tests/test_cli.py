"""The command line answers at once: what it is asked to explain needs no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys

from hwm import cli

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
    verbs = [*(verb for verb in cli.VERBS if verb not in ("train", "bench")), *parts, "evaluate cosmos-ar"]
    for command, said in answers(*(f"{verb} --help" for verb in verbs)).items():
        assert said.startswith(f"usage: hwm {command.removesuffix(' --help').split()[0]}"), command
