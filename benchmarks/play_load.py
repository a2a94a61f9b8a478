"""Many players at once: time a step of all of them together against one player alone, in one run.

Each player drives at random in a session of its own, as fast as frames come. Afterwards every session's replay is
computed again, alone and in another process, and must give the same frames: nothing was lost or mixed up. Memory is the
server's at a quarter of the time and at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import torch
from common import parser, report
from websockets.asyncio.client import connect

from hwm.interact.replay import Replay
from hwm.interact.session import Session, World


@contextlib.contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """`hwm play` in a process of its own: its host and port, and its process number."""
    command = [sys.executable, "-m", "hwm.cli", "play", "--port", "0", "--no-open", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://([\d.]+:\d+)/", line)
        if not found:
            raise SystemExit(f"the server did not start: {line}")
        yield found[1], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


async def player(address: str, number: int, until: float) -> tuple[list[float], dict[str, object]]:
    """Drive until the time is over: the seconds of each step, and the session's replay file."""
    rng, seconds, n = random.Random(number), list[float](), 0
    async with connect(f"ws://{address}/ws", max_size=None) as socket:
        welcome = json.loads(await socket.recv())
        names = [a["name"] for a in welcome["actions"]]
        await socket.send(json.dumps({"type": "reset", "start": f"start:{number % 12}", "seed": number}))
        assert header(await socket.recv())["kind"] == "reset"
        while time.perf_counter() < until:
            action = {name: rng.uniform(-1, 1) for name in rng.sample(names, 3)}
            begun = time.perf_counter()
            await socket.send(json.dumps({"type": "step", "action": action, "id": n}))
            head = header(await socket.recv())
            n += 1
            seconds.append(time.perf_counter() - begun)
            if (head["n"], head["id"]) != (n, n - 1):
                raise SystemExit(f"player {number} asked for step {n} and got {head}")
        url = f"http://{address}/session/{welcome['session']}/replay.json"
        data = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read())
    return seconds, json.loads(data)


def header(data: str | bytes) -> dict[str, object]:
    if isinstance(data, str):
        raise SystemExit(f"the server says {data}")
    size = struct.unpack(">I", data[:4])[0]
    head: dict[str, object] = json.loads(data[4 : 4 + size])
    return head


async def probe(address: str, until: float) -> tuple[float, list[float]]:
    """The longest that the server took to say it is well, and its memory in MiB at a quarter of the time and after."""
    longest, memory, begun = 0.0, list[float](), time.perf_counter()
    while (now := time.perf_counter()) < until:
        await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://{address}/healthz", timeout=60).read())
        longest = max(longest, time.perf_counter() - now)
        if not memory and now - begun > (until - begun) / 4:
            memory.append(await resident(address))
        await asyncio.sleep(0.2)
    return longest, [*memory, await resident(address)]


async def resident(address: str) -> float:
    text = await asyncio.to_thread(
        lambda: urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
    )
    found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.M)
    return float(found[1]) / 2**20 if found else float("nan")


async def load(
    address: str, players: int, seconds: float
) -> tuple[list[list[float]], list[Replay], float, list[float]]:
    until = time.perf_counter() + seconds
    *played, health = await asyncio.gather(*(player(address, i, until) for i in range(players)), probe(address, until))
    replays = [Replay.from_json(plain) for _, plain in played]
    return [times for times, _ in played], replays, health[0], health[1]


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--players", type=int, default=20)
    p.add_argument("--seconds", type=float, default=120)
    a = p.parse_args()
    players, seconds = (3, 3.0) if a.quick else (a.players, a.seconds)
    with server("--threads", str(a.threads), "--dtype", "float32") as (address, _):
        alone, _, _, _ = asyncio.run(load(address, 1, max(2.0, seconds / 10)))
        times, replays, longest, memory = asyncio.run(load(address, players, seconds))
    world = World.open(dtype="float32")
    torch.set_num_threads(max(1, a.threads or torch.get_num_threads() - 1))
    departed = [i for i, replay in enumerate(replays) if Session(world).play(replay) is not None]
    if departed:
        raise SystemExit(f"the replays of players {departed} show other frames than they saw")
    every = sorted(t for each in times for t in each)
    report(
        a.json,
        ours=1e3 * seconds / len(every),
        baseline=1e3 * max(2.0, seconds / 10) / len(alone[0]),
        unit="ms a step, of all players together (baseline: of one alone)",
        players=players,
        seconds=seconds,
        steps=len(every),
        replays_verified=len(replays),
        fewest_steps=min(map(len, times)),
        most_steps=max(map(len, times)),
        median_ms=1e3 * every[len(every) // 2],
        p99_ms=1e3 * every[int(len(every) * 0.99)],
        longest_healthz_ms=1e3 * longest,
        memory_mib_quarter=memory[0],
        memory_mib_end=memory[-1],
    )


if __name__ == "__main__":
    main()
