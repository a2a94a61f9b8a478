"""The kinds of worlds that the simulated humanoid lives in."""

from typing import Literal, TypeAlias

World: TypeAlias = Literal["rooms", "home"]
"""``rooms``: another room for each seed. ``home``: one home of three rooms, known by heart."""
