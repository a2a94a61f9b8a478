"""Mutation testing of the parts whose faults no picture shows: `make mutants`.

mutmut changes the code named in pyproject.toml in one place at a time and runs the tests that reach it; a mutant that
no test notices has survived. There are thousands, so a run takes a sample: the mutants of each function whose numbers
end in one of the digits given, every one of them under `0123456789`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).parents[1]
CAUGHT = {"killed", "timeout", "segfault", "suspicious"}


def tested(digits: str) -> dict[str, Counter[str]]:
    """File -> how many of its sampled mutants were caught, and how many survived; prints the survivors."""
    found: dict[str, Counter[str]] = {}
    for meta in sorted((ROOT / "mutants").rglob("*.meta")):
        counts = found.setdefault(str(meta.relative_to(ROOT / "mutants")).removesuffix(".meta"), Counter())
        for name, code in json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].items():
            if name[-1] in digits:
                if code is None:
                    sys.exit(f"{name} was not tested: see above what stopped mutmut")
                caught = status_by_exit_code[code] in CAUGHT
                counts["caught" if caught else "survived"] += 1
                if not caught:
                    print(f"survived: mutmut show {name}")
    return found


def main() -> int:
    """Run a sample and print the share of mutants that were caught, by file; 1 where it is below the bar."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("digits", nargs="?", default="7", help="last digits of the mutants' numbers")
    options.add_argument("--at-least", type=float, default=0.9, help="share that has to be caught")
    o = options.parse_args()
    patterns = [f"*__mutmut_*{digit}" for digit in o.digits]
    subprocess.run([sys.executable, "-m", "mutmut", "run", *patterns], cwd=ROOT, check=False)
    found = tested(o.digits)
    for file, counts in found.items():
        print(f"{counts['caught']:5} of {counts.total():5}  {file}")
    caught, total = sum(c["caught"] for c in found.values()), sum(c.total() for c in found.values())
    print(f"{caught} of {total} mutants were caught: {caught / max(1, total):.1%}")
    return int(caught < o.at_least * total or not total)


if __name__ == "__main__":
    sys.exit(main())
