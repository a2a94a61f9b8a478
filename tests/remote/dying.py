"""Part of an encoding that is killed once, after two episodes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from hwm.commands.tokens import EncodeOptions, encode_here
from hwm.data.writer import Writer


def encode_and_die_once(o: EncodeOptions) -> None:
    killed = Path(os.environ["HWM_TEST_KILLED"])
    add, count = Writer.add, 0

    def dying(self: Writer, *args: Any, **named: Any) -> None:
        nonlocal count
        add(self, *args, **named)
        count += 1
        if count == 2 and o.shard == 1 and not killed.exists():
            killed.write_text(",".join(sorted(self.done())), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)

    Writer.add = dying  # type: ignore[method-assign]
    try:
        encode_here(o)
    finally:
        Writer.add = add  # type: ignore[method-assign]
