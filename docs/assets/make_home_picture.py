"""Make `home.jpg` of the data page: the three rooms of the simulated home from eight sides each.

python docs/assets/make_home_picture.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwm.pictures.files import jpeg
from hwm.sim.plan import SPACES
from hwm.sim.simulator import HumanoidSim

SEED, SIZE, BACK = 2, 128, 0.5


def main() -> None:
    views = []
    with HumanoidSim(SEED, 2 * SIZE, world="home") as sim:
        for space in SPACES:
            for yaw in np.arange(8) * np.pi / 4:
                sim.place(np.array([space.x, space.y]) - BACK * np.array([np.cos(yaw), np.sin(yaw)]), yaw)
                views.append(sim.frame().reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3)).round().astype(np.uint8))
    rows = [np.concatenate(views[i : i + 8], 1) for i in range(0, len(views), 8)]
    (Path(__file__).parent / "home.jpg").write_bytes(jpeg(np.concatenate(rows), 90))


if __name__ == "__main__":
    main()
