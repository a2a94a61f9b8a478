"""What the players of one server share: the engine, presets, starts that were uploaded, and who is there."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from fastapi import Request, WebSocket

from hwm.errors import HwmError
from hwm.interact.engine import Engine, jpeg
from hwm.interact.presets import Preset
from hwm.interact.replay import Replay
from hwm.interact.session import Session, World
from hwm.interact.starts import Start, start_of_file
from hwm.pictures.stack import side_by_side

STATM = Path("/proc/self/statm")
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one server bears.

    Attributes:
        sessions: players at once.
        rate: messages a second and player, twice that in a burst.
        message_bytes: largest websocket message.
        upload_bytes: largest picture, video or replay.
        uploads: starts kept that were uploaded; the oldest make room.
        twins: true simulators at once, each a process of some 400 MB.
        in_flight: steps of a player sent and not yet answered.
        idle_seconds: a player who sends nothing for so long is disconnected.
    """

    sessions: int = 32
    rate: float = 120.0
    message_bytes: int = 1 << 18
    upload_bytes: int = 16 << 20
    uploads: int = 32
    twins: int = 4
    in_flight: int = 3
    idle_seconds: float = 900.0


class Connected(Protocol):
    """A player, as far as the others are concerned."""

    session: Session
    twin: Any

    async def leave(self) -> None:
        """Say goodbye and close the connection."""

    async def begin(self, replay: Replay) -> None:
        """Reset to where a replay began."""


class Server:
    """All that players share: the engine, presets, uploads, and who is there."""

    def __init__(
        self,
        world: World,
        presets: dict[str, Preset],
        *,
        engine: Engine,
        limits: ServerLimits = ServerLimits(),
        token: str | None = None,
        hosts: tuple[str, ...] = LOCAL,
    ) -> None:
        self.world, self.presets, self.engine, self.limits, self.token = world, presets, engine, limits, token
        self.hosts = hosts
        self.players: dict[str, Connected] = {}
        self.uploads: OrderedDict[str, Start] = OrderedDict()
        self.thumbs: dict[str, bytes] = {}
        # files are read and made beside the engine, so that a long download holds up no step
        self.files = ThreadPoolExecutor(1, thread_name_prefix="files")
        self.eyes = ThreadPoolExecutor(1, thread_name_prefix="eyes")  # compares dreams with the truth

    def start(self, name: str) -> str | Start:
        """A start of the gallery, or one that was uploaded."""
        if name.startswith("upload:"):
            if name not in self.uploads:
                raise HwmError(f"the upload {name[:80]!r} is not here (any more): upload it again")
            return self.uploads[name]
        return name

    def allows(self, request: Request | WebSocket) -> bool:
        """Whether a request may be answered: the token where there is one; else asked for under a local name, and not
        by the page of another site."""
        if self.token is not None:
            given = request.query_params.get("token") or request.headers.get("authorization", "").removeprefix(
                "Bearer "
            )
            return secrets.compare_digest(given.encode(), self.token.encode())
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        return urlsplit(f"//{host}").hostname in self.hosts and (origin is None or urlsplit(origin).netloc == host)

    async def in_files(self, work: Callable[[], Any]) -> Any:
        """Something slow, outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.files, work)

    def metrics(self) -> str:
        """Prometheus' text format."""
        c = self.engine.counters
        values = {
            "hwm_sessions": len(self.players),
            "hwm_steps_total": c.steps,
            "hwm_jobs_total": c.jobs,
            "hwm_errors_total": c.errors,
            "hwm_step_seconds_total": c.step_seconds,
            "hwm_queue_seconds_total": c.queue_seconds,
            "hwm_decode_seconds_total": c.decode_seconds,
        }
        if STATM.exists():  # Linux
            values["process_resident_memory_bytes"] = int(STATM.read_text(encoding="utf-8").split()[1]) * os.sysconf(
                "SC_PAGE_SIZE"
            )
        lines = []
        for name, value in values.items():
            lines += [f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}", f"{name} {value}"]
        return "\n".join(lines) + "\n"

    def upload(self, name: str, data: bytes) -> str:
        """Keep a picture or video as a start; its name."""
        spec = self.world.model.spec
        embodiment = self.world.gallery.store.header.embodiment if self.world.gallery else next(iter(spec.actions))
        with tempfile.NamedTemporaryFile(suffix=Path(name).suffix if Path(name).suffix.isalnum() else "") as file:
            file.write(data)
            file.flush()
            try:
                start = start_of_file(
                    file.name,
                    self.world.tokenizer,
                    self.world.model.config.past,
                    action=spec.actions[embodiment],
                    embodiment=embodiment,
                )
            except HwmError as error:
                raise HwmError(str(error).replace(file.name, "the upload")) from None
        key = f"upload:{secrets.token_hex(8)}"
        self.uploads[key] = start
        while len(self.uploads) > self.limits.uploads:
            self.uploads.popitem(last=False)
        return key

    def thumb(self, name: str) -> bytes:
        """The picture of a start of the gallery."""
        if name not in self.thumbs:
            session = Session(self.world)
            picture = jpeg(side_by_side(session.reset(name)[-1], self.world.views))
            if len(self.thumbs) > 256:
                self.thumbs.clear()
            self.thumbs[name] = picture
        return self.thumbs[name]
