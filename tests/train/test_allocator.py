"""Memory that an update frees stays at hand for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from hwm.train.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def update():
    hidden = (torch.ones(16384, 512) @ weight).relu() @ weight
    hidden.square().mean().backward()
    weight.grad = None
weight = torch.ones(512, 512, requires_grad=True)
for _ in range(7):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    update()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_used_again() -> None:
    def faults(how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout
        )

    assert faults("keep") * 10 < faults("leave")
