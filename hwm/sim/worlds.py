"""The kinds of worlds that the simulated humanoid lives in, and the cameras that it is seen through."""

from typing import Literal, TypeAlias

World: TypeAlias = Literal["rooms", "home"]
"""``rooms``: another room for each seed. ``home``: one home of three rooms, known by heart."""

Camera: TypeAlias = Literal["head", "chest", "wrist"]
"""``head``: the robot's own, on its neck. ``wrist``: above the back of its right hand."""

HEAD: tuple[Camera, ...] = ("head",)
"""The camera that is used where none is named."""
