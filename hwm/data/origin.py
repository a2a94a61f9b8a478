"""Where in the simulator a step of a recording is, so that the true simulator can be put there."""

from __future__ import annotations

import numpy as np

from hwm.data.store import Episode, Store
from hwm.sim.twin import Origin
from hwm.sim.worlds import HEAD


def origin_of(store: Store, episode: Episode, steps: int) -> Origin | None:
    """How the simulator gets to the end of the first `steps` steps of an episode.

    None for one of no simulator, and for a clip from later in a recording: what led to it is not in it.
    """
    seed = episode.info.get("seed")
    if episode.first_frame or store.header.embodiment != "sim_g1" or not isinstance(seed, int):
        return None
    actions = np.asarray(store.actions[episode.start : episode.start + steps], np.float32)
    cameras = tuple(episode.info.get("cameras", HEAD))
    return Origin(seed, actions, episode.info.get("world", "rooms"), cameras)
