"""The play server: a page, and a websocket for each player. What goes over the wire: docs/protocol.md."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles

from hwm.errors import HwmError
from hwm.interact import export
from hwm.interact.engine import Engine, jpeg
from hwm.interact.player import Player
from hwm.interact.presets import Preset
from hwm.interact.replay import Replay
from hwm.interact.session import Session, World
from hwm.interact.starts import Start, start_of_file

STATIC = Path(__file__).parent / "static"
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
        self.players: dict[str, Player] = {}
        self.uploads: OrderedDict[str, Start] = OrderedDict()
        self.thumbs: dict[str, bytes] = {}
        # files are read and made beside the engine, so that a long download holds up no step
        self.files = ThreadPoolExecutor(1, thread_name_prefix="files")

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
            values["process_resident_memory_bytes"] = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
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
            picture = jpeg(session.reset(name)[-1])
            if len(self.thumbs) > 256:
                self.thumbs.clear()
            self.thumbs[name] = picture
        return self.thumbs[name]


def application(server: Server) -> FastAPI:
    """The routes of `Server`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(player.leave() for player in list(server.players.values())))
        await asyncio.to_thread(server.engine.close)
        server.files.shutdown()

    app = FastAPI(title="hwm play", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        open_to_all = request.url.path == "/healthz" or request.url.path.startswith("/static/")
        if not open_to_all and not server.allows(request):
            return JSONResponse({"error": "give the server's token as ?token=..., or ask under its local name"}, 403)
        response: Response = await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = (
            "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
            "frame-ancestors 'none'"
        )
        return response

    @app.exception_handler(HwmError)
    async def mistake(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(server.metrics())

    @app.get("/")
    async def page() -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/thumb/{name:path}")
    async def thumb(name: str) -> Response:
        return Response(await server.in_files(lambda: server.thumb(name)), media_type="image/jpeg")

    @app.post("/upload")
    async def upload(request: Request) -> Response:
        data = await body(request, server.limits.upload_bytes)
        name = request.headers.get("x-filename", "")
        return JSONResponse({"start": await server.in_files(lambda: server.upload(name, data))})

    @app.get("/session/{sid}/{what}")
    async def download(sid: str, what: str, first: int = 0, last: int | None = None) -> Response:
        if what not in DOWNLOADS:
            raise HwmError(f"a session's files are {', '.join(DOWNLOADS)}")
        session = player_of(server, sid).session.snapshot()
        kind, make = DOWNLOADS[what]
        data = await server.in_files(lambda: make(session, first, last))
        return Response(data, media_type=kind, headers={"Content-Disposition": f'attachment; filename="hwm_{what}"'})

    @app.post("/session/{sid}/replay")
    async def replay(sid: str, request: Request) -> Response:
        player = player_of(server, sid)
        data = await body(request, server.limits.upload_bytes)
        try:
            recorded = Replay.from_json(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise HwmError(f"this is not a replay file: {str(error)[:100]}") from None
        await player.begin(recorded)
        return JSONResponse({"ok": True, "actions": recorded.actions.tolist(), "hashes": list(recorded.hashes)})

    @app.websocket("/ws")
    async def play(socket: WebSocket) -> None:
        if not server.allows(socket):
            await socket.close(1008, "give the server's token as ?token=..., or ask under its local name")
            return
        await socket.accept()
        if len(server.players) >= server.limits.sessions:
            await socket.close(1013, f"all {server.limits.sessions} sessions are taken; try again later")
            return
        player = Player(server, socket)
        server.players[player.id] = player
        try:
            await player.run()
        finally:
            del server.players[player.id]

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def player_of(server: Server, sid: str) -> Player:
    if sid not in server.players:
        raise HwmError("there is no such session (any more)")
    player = server.players[sid]
    if player.session.start is None:
        raise HwmError("this session has not begun: reset it to a start first")
    return player


async def body(request: Request, most: int) -> bytes:
    """A request's body, refused as soon as it is too large."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HwmError(f"this is larger than the {most >> 20} MiB that are taken")
        parts.append(part)
    return b"".join(parts)


def _replay_file(session: Session, first: int, last: int | None) -> bytes:
    return json.dumps(session.replay().to_json()).encode()


DOWNLOADS: dict[str, tuple[str, Callable[[Session, int, int | None], bytes]]] = {
    "video.mp4": ("video/mp4", export.mp4),
    "store.zip": ("application/zip", export.zip_store),
    "replay.json": ("application/json", _replay_file),
}
