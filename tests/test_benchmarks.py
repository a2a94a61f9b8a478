"""Every benchmark runs, on a model too small for its figures to mean anything, and prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(p for p in (Path(__file__).parents[1] / "benchmarks").glob("*.py") if p.name != "common.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_benchmark_prints_ours_and_a_baseline(script: Path) -> None:
    command = [sys.executable, str(script), "--json", "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert {"ours", "baseline", "ratio", "unit", "device", "versions"} <= set(result)
    assert result["ratio"] == pytest.approx(result["baseline"] / result["ours"])
    assert result["ours"] > 0
