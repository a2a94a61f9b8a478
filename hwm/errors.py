"""Mistakes that the user can mend, and the message for a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwmError(Exception):
    """A mistake that the user can mend: the message says what was wrong, where, and what to do."""


class CheckpointError(HwmError):
    """A checkpoint that is missing, damaged, or of something else."""


def unknown(kind: str, name: str, known: Iterable[str]) -> HwmError:
    """The error for a name that is not there: it shows the nearest names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return HwmError(f"there is no {kind} called {name!r}; {hint}")
