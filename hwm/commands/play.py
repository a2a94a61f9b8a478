"""The verbs that act in a model: options in, the library called, the result shown."""

from __future__ import annotations

import secrets
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from hwm.computing import Computing
from hwm.errors import HwmError


@dataclass(frozen=True, kw_only=True)
class PlayOptions(Computing):
    """Drive and move a humanoid through a world that exists only in the model, in the browser.

    Attributes:
        model: a shipped model, a checkpoint folder or a run.
        store: starts come from this encoded store; "none" for a model without one.
        host: address to listen on; any other than this machine's own needs a token.
        port: 0 takes a free one.
        token: what a browser must show; by default made up where the host is not local.
        threads: CPU threads of the model; 0 leaves one core to pictures and browser.
        batch: sessions computed together; 0 is 1 on a CPU, where replays in float32 are exact, and 16 on a GPU.
        sessions: players at once.
        rate: messages a second and player.
        open: show the page in a browser at once.
    """

    model: str = "masked_hwm_mini"
    store: str = "mini_heldout"
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    threads: int = 0
    batch: int = 0
    sessions: int = 32
    rate: float = 120.0
    open: bool = True


def play(args: list[str]) -> None:
    """`hwm play [--model NAME] [--port N]`."""
    o = tyro.cli(PlayOptions, args=args, prog="hwm play")
    try:
        import uvicorn

        from hwm.interact.server import application
        from hwm.interact.shared import LOCAL, Server, ServerLimits
    except ImportError as error:
        raise HwmError(f"play needs the extra `web`: pip install 'humanoid-world-models[web]' ({error})") from error
    import asyncio
    import contextlib
    import socket
    import webbrowser

    from hwm.interact.engine import Engine
    from hwm.interact.presets import load_presets
    from hwm.interact.session import World
    from hwm.loading import find_model

    if o.threads < 0 or o.batch < 0 or o.sessions < 1 or o.rate <= 0:
        raise HwmError("threads and batch cannot be negative, sessions and rate must be positive")
    device = o.start().device
    world = World.open(o.model, store=None if o.store == "none" else o.store, device=device, dtype=o.dtype)
    token = o.token or (None if o.host in LOCAL else secrets.token_urlsafe(16))
    try:
        listening = socket.create_server((o.host, o.port), family=socket.AF_INET6 if ":" in o.host else socket.AF_INET)
    except OSError as error:
        raise HwmError(f"cannot listen on {o.host}:{o.port}: {error.strerror}; choose another --port") from error
    port = listening.getsockname()[1]
    engine = Engine(world, batch=o.batch, threads=o.threads)
    server = Server(
        world,
        load_presets(find_model(o.model), world.model),
        engine=engine,
        limits=ServerLimits(sessions=o.sessions, rate=o.rate),
        token=token,
    )
    address = f"http://{o.host if ':' not in o.host else f'[{o.host}]'}:{port}/" + (f"?token={token}" if token else "")
    config = uvicorn.Config(
        application(server),
        log_level="warning",
        ws_max_size=server.limits.message_bytes,
        ws_per_message_deflate=False,  # JPEG does not shrink
        timeout_graceful_shutdown=3,
    )
    print(f"play at {address} on {world.runtime}   (Ctrl-C ends)", flush=True)
    if o.open:
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):  # raised again after everybody was sent away
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))


@dataclass(frozen=True, kw_only=True)
class PresetsOptions(Computing):
    """Measure the named ways to sample a model: quality on held-out clips, and frames a second when played.

    Attributes:
        model: a shipped model, a checkpoint folder or a run; its presets lie beside its weights, in presets.json.
        store: an encoded store of held-out clips, best with video.
        clips: how many clips, spread evenly over the part.
        split: which part of the store, as of `hwm evaluate`: `test`, `validation` or `all`.
        seconds: how long each is played.
        threads: CPU threads of the model; 0 leaves one core to pictures, as play does.
        write: note the figures in presets.json, and make the one that they speak for the default: the first there, and
            the model's own sampler.
        json: print one JSON object instead of a table.
    """

    model: str = "masked_hwm_mini"
    store: str = "mini_heldout"
    clips: int = 96
    split: Literal["test", "validation", "all"] = "test"
    seconds: float = 20.0
    write: bool = False
    json: bool = False


def presets(args: list[str]) -> None:
    """`hwm presets [--model M] [--store S] [--write]`."""
    o = tyro.cli(PresetsOptions, args=args, prog="hwm presets")
    import json

    from rich.console import Console
    from rich.progress import track

    from hwm.data.clips import Clips
    from hwm.data.readers import open_store
    from hwm.interact.presets import COLUMNS, HORIZON, load_presets, measure, save_presets, settle
    from hwm.interact.session import World
    from hwm.loading import find_model
    from hwm.tables import Figures

    if o.clips < 1 or o.threads < 0 or o.seconds <= 0:
        raise HwmError("clips must be at least 1, threads cannot be negative, seconds must be positive")
    device = o.start().device
    world, folder = World.open(o.model, store=o.store, device=device, dtype=o.dtype), find_model(o.model)
    clips = Clips(open_store(o.store), world.model.config.past + HORIZON, part=o.split)
    console = Console(stderr=True)
    measured = [
        measure(preset, world, clips, count=o.clips, seconds=o.seconds, threads=o.threads)
        for preset in track(
            list(load_presets(folder, world.model).values()), "presets", console=console,
            transient=True, disable=not console.is_terminal,
        )
    ]  # fmt: skip
    if o.json:
        print(json.dumps({preset.name: preset.figures for preset in measured}, indent=1))
    else:
        table = Figures("preset", *COLUMNS.values(), ruled=False)
        for preset in measured:
            f = preset.figures or {}
            table.add(preset.name, *("" if f[key] is None else f"{f[key]:.2f}" for key in COLUMNS))
        Console().print(table)
    if o.write:
        path = save_presets(folder, settle(folder, world.model, measured))
        print(f"{path}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class PoliciesOptions(Computing):
    """Judge policies in a model: is the better one there also the better one in the true simulator?

    Attributes:
        model: a shipped model, a checkpoint folder or a run.
        store: an encoded store of recordings, whose places the episodes start from.
        policies: recorded, still, random, turn_left, turn_right, forward, or importable ones as package.module:object.
        task: turn (how far the view turns to the left) or reach_view (how near it comes to the recording's).
        episodes: starts, spread evenly over the store; every policy begins from each.
        steps: of an episode.
        simulator: run the same in the true simulator (extra `sim`), and compare.
        sampler: changes to the model's sampler as NAME=VALUE.
        seed: of the model's and of the random policy's randomness.
        json: print one JSON object instead of a table.
        out: also write that object here.
    """

    model: str = "masked_hwm_mini"
    store: str = "mini_heldout"
    policies: tuple[str, ...] = ("turn_left", "still", "turn_right")
    task: str = "turn"
    episodes: int = 8
    steps: int = 20
    simulator: bool = True
    sampler: tuple[str, ...] = ()
    seed: int = 0
    json: bool = False
    out: Path | None = None


def policies(args: list[str]) -> None:
    """`hwm policies [--policies A B C] [--task turn]`."""
    o = tyro.cli(PoliciesOptions, args=args, prog="hwm policies")
    import json

    from hwm.files import write_atomically
    from hwm.interact.policies import evaluate_policies, find_policy, spread_starts
    from hwm.interact.session import World

    if o.episodes < 1 or o.steps < 1 or o.threads < 0:
        raise HwmError("episodes and steps must be at least 1, threads at least 0")
    runtime = o.start()
    chosen = {name: find_policy(name) for name in o.policies}
    world = World.open(o.model, store=o.store, device=runtime.device, dtype=o.dtype)
    found = evaluate_policies(
        world,
        chosen,
        spread_starts(world, o.episodes, o.steps),
        steps=o.steps,
        task=o.task,
        simulator=o.simulator,
        seed=o.seed,
        sampler=world.model.sampler_with(o.sampler) if o.sampler else None,
        progress=not o.json,
    )
    text = json.dumps({**found.json(), "command": shlex.join(["hwm", "policies", *args])}, indent=1, allow_nan=False)
    if o.out:
        o.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(o.out, (text + "\n").encode())
    if o.json:
        print(text)
    else:
        from rich.console import Console

        Console().print(found.table())
        if o.out:
            print(o.out)
