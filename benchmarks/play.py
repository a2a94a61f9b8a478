"""Playing, in one process: frames a second of one player with the engine, against a plain loop without its savings.

The engine keeps what the past left in the network, and makes pictures of a step while the next is computed. The loop
sees the same windows, shows the model all of them at every step, and makes its pictures before it goes on. Both give
the same tokens, which is checked in float32: in a narrower format caches and whole windows round differently.
"""

from __future__ import annotations

import time

import torch
from common import parser, report

from hwm.interact.engine import Engine, jpeg
from hwm.interact.presets import Preset, frames_per_second, load_presets
from hwm.interact.session import Session, World
from hwm.loading import find_model


def plain_loop(world: World, preset: Preset, seconds: float) -> tuple[float, Session]:
    """Frames a second without caches and overlap, and the session that came of it."""
    session = Session(world, preset.build(world.model))
    session.reset()
    frames, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds or session.steps < 2:
        session._cache = None  # forgets what the past left
        frames += len([jpeg(frame) for frame in session.step({}, ramp=True)])
    return frames / spent, session


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--model", default="masked_hwm_mini")
    p.add_argument("--seconds", type=float, default=20, help="of each way to play, for each preset")
    p.add_argument("--repeats", type=int, default=3, help="in turns; the best of each counts")
    a = p.parse_args()
    seconds, repeats = (0.5, 1) if a.quick else (a.seconds / a.repeats, a.repeats)
    world = World.open(a.model, dtype="float32")
    found: dict[str, dict[str, float]] = {}
    for name, preset in load_presets(find_model(a.model), world.model).items():
        both = found.setdefault(name, {"engine": 0.0, "loop": 0.0})
        for _ in range(repeats):
            both["engine"] = max(both["engine"], frames_per_second(world, preset, seconds, a.threads))
            fps, loop = plain_loop(world, preset, seconds)
            both["loop"] = max(both["loop"], fps)
        engine, session = Engine(world, threads=a.threads), Session(world, preset.build(world.model))
        engine.change(session, Session.reset).result()
        for _ in range(loop.steps):
            engine.step(session, {}).result()
        engine.close()
        if session.hashes != loop.hashes:
            raise SystemExit(f"{name}: engine and loop show other tokens")
    first = next(iter(found.values()))
    report(
        a.json,
        ours=1e3 / first["engine"],
        baseline=1e3 / first["loop"],
        unit="ms a frame (baseline: without cache and overlap)",
        threads=torch.get_num_threads(),
        presets={n: {k: round(v, 2) for k, v in both.items()} for n, both in found.items()},
    )


if __name__ == "__main__":
    main()
