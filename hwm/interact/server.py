"""The play server: a page, and a websocket for each player. What goes over the wire: docs/protocol.md."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles

from hwm.errors import HwmError
from hwm.interact import export
from hwm.interact.player import Player
from hwm.interact.replay import Replay
from hwm.interact.session import Session
from hwm.interact.shared import Connected, Server

STATIC = Path(__file__).parent / "static"


def application(server: Server) -> FastAPI:
    """The routes of `Server`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(player.leave() for player in list(server.players.values())))
        await asyncio.to_thread(server.engine.close)
        server.files.shutdown()
        server.eyes.shutdown(cancel_futures=True)

    app = FastAPI(title="hwm play", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _guard(app, server)
    for routes in (_state(server), _page(server), _sessions(server), _players(server)):
        app.include_router(routes)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _guard(app: FastAPI, server: Server) -> None:
    """Let in whom the server allows, send headers that keep a browser to this server, and answer mistakes in JSON."""

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


def _state(server: Server) -> APIRouter:
    """What those who run the server ask."""
    routes = APIRouter()

    @routes.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(server.metrics())

    return routes


def _page(server: Server) -> APIRouter:
    """The page, the pictures of its gallery, and pictures to start from."""
    routes = APIRouter()

    @routes.get("/")
    async def page() -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    @routes.get("/thumb/{name:path}")
    async def thumb(name: str) -> Response:
        return Response(await server.in_files(lambda: server.thumb(name)), media_type="image/jpeg")

    @routes.post("/upload")
    async def upload(request: Request) -> Response:
        data = await body(request, server.limits.upload_bytes)
        name = request.headers.get("x-filename", "")
        return JSONResponse({"start": await server.in_files(lambda: server.upload(name, data))})

    return routes


def _sessions(server: Server) -> APIRouter:
    """Files of a player's session, out and in."""
    routes = APIRouter(prefix="/session/{sid}")

    @routes.get("/{what}")
    async def download(sid: str, what: str, first: int = 0, last: int | None = None) -> Response:
        if what not in DOWNLOADS:
            raise HwmError(f"a session's files are {', '.join(DOWNLOADS)}")
        session = player_of(server, sid).session.snapshot()
        kind, make = DOWNLOADS[what]
        data = await server.in_files(lambda: make(session, first, last))
        return Response(data, media_type=kind, headers={"Content-Disposition": f'attachment; filename="hwm_{what}"'})

    @routes.post("/replay")
    async def replay(sid: str, request: Request) -> Response:
        player = player_of(server, sid)
        data = await body(request, server.limits.upload_bytes)
        try:
            recorded = Replay.from_json(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise HwmError(f"this is not a replay file: {str(error)[:100]}") from None
        await player.begin(recorded)
        told = {"actions": recorded.actions.tolist(), "hashes": list(recorded.hashes), "dtype": recorded.dtype}
        return JSONResponse({"ok": True, **told})

    return routes


def _players(server: Server) -> APIRouter:
    """A websocket for each player, as many as there is room for."""
    routes = APIRouter()

    @routes.websocket("/ws")
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

    return routes


def player_of(server: Server, sid: str) -> Connected:
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
