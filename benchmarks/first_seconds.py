"""How long the command line takes to explain itself: processor seconds of `hwm VERB --help` and its kin.

Each command is a process of its own; the kernel's time for it counts, and the least of several runs is taken. Ours
is the slowest of them all, the baseline the same command where PyTorch is imported first.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from common import parser, report

from hwm.cli import VERBS

COMMANDS = ["--help", "evalaute", "recipes", "train masked_hwm_tyo", *(f"{verb} --help" for verb in VERBS)]
MAIN = "import sys; from hwm.cli import main; sys.exit(main(sys.argv[1:]))"


def seconds(command: str, code: str, repeats: int) -> float:
    """The least processor time of a command."""
    times = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--repeats", type=int, default=3)
    a = p.parse_args()
    commands, repeats = (COMMANDS[:3], 1) if a.quick else (COMMANDS, a.repeats)
    found = {command: seconds(command, MAIN, repeats) for command in commands}
    slowest = max(found, key=found.__getitem__)
    report(
        a.json,
        ours=found[slowest],
        baseline=seconds(slowest, f"import torch; {MAIN}", repeats),
        unit="processor seconds to an answer",
        command=f"hwm {slowest}",
        **{f"hwm {command}": time for command, time in found.items()},
    )


if __name__ == "__main__":
    main()
