"""Memory between updates on a CPU: what one update frees, the next one needs again."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free for the next ones; says whether it does, as glibc's does alone.

    Otherwise it gives large blocks back to the system at once and asks for them again, and the system fills each page
    with zeros: thousands of faults an update. Peak memory stays what it was, and is held until the process ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    return all(mallopt(option, size) == 1 for option, size in ((MMAP_THRESHOLD, 2**30), (TRIM_THRESHOLD, MOST)))
