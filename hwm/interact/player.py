"""One player of the server: messages in, frames out, in order, and nobody else is held up by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

from hwm.config import to_json
from hwm.errors import HwmError, unknown
from hwm.interact.engine import Shown, jpeg
from hwm.interact.likeness import Likeness
from hwm.interact.limits import Action, number, short
from hwm.interact.replay import Replay
from hwm.interact.session import Session
from hwm.interact.shared import Server
from hwm.interact.twin import TwinProcess
from hwm.pictures.stack import side_by_side
from hwm.sim.twin import available as twin_available

VERSION = 1


class Player:
    """A websocket and its session.

    Frames are awaited and sent by a task of their own, so that the next step is computed while one is under way to the
    browser. A slow browser fills its own queue, and then it is no longer listened to: only its own steps wait.
    """

    def __init__(self, server: Server, socket: WebSocket) -> None:
        self.server, self.socket = server, socket
        self.id = secrets.token_urlsafe(16)
        self.session = Session(server.world)
        self.quality = 85
        self.preset = next(iter(server.presets))
        self.session.sampler = server.presets[self.preset].build(server.world.model)
        self.twin: TwinProcess | None = None
        self.twin_wanted, self.sent = False, 0
        self.likeness, self.comparing = Likeness(), set[asyncio.Task[None]]()
        self.sending: asyncio.Queue[Coroutine[Any, Any, list[bytes]]] = asyncio.Queue(8)
        self.in_flight = 0
        self.allowance, self.heard = 2 * server.limits.rate, time.monotonic()
        self.handlers: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "reset": self.reset,
            "step": self.step,
            "undo": self.undo,
            "preset": self.choose_preset,
            "twin": self.choose_twin,
            "quality": self.choose_quality,
            "ping": self.ping,
        }

    async def run(self) -> None:
        """Until the browser leaves."""
        await self.say(self.welcome())
        writer = asyncio.create_task(self.write())
        try:
            while True:
                async with asyncio.timeout(self.server.limits.idle_seconds):
                    received = await self.socket.receive()
                if received["type"] == "websocket.disconnect":
                    break
                await self.take(received.get("text"))
        except TimeoutError:
            await self.leave(1000, "nothing was heard for too long")
        except (WebSocketDisconnect, RuntimeError, OSError):
            pass  # gone while something was sent to it
        finally:
            for task in (writer, *self.comparing):
                task.cancel()
            while not self.sending.empty():
                self.sending.get_nowait().close()
            await self.stop_twin()

    async def leave(self, code: int = 1001, why: str = "the server is shutting down") -> None:
        """Close the connection, if it is still there."""
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self.socket.close(code, why)

    async def write(self) -> None:
        """Send what was queued, in order."""
        while True:
            for part in await (await self.sending.get()):
                try:
                    await (self.socket.send_bytes(part) if part[:1] != b"{" else self.socket.send_text(part.decode()))
                except (WebSocketDisconnect, RuntimeError, OSError):
                    return

    async def say(self, message: dict[str, Any]) -> None:
        """Queue a text message behind the frames that were asked for before it."""
        await self.sending.put(_ready([json.dumps(message).encode()]))

    async def take(self, text: str | None) -> None:
        """One message; whatever is wrong with it is answered by an error."""
        echo: Any = None
        try:
            self.count()
            message = parse(text)
            echo = message.get("id")
            kind = message["type"]
            if kind not in self.handlers:
                raise unknown("type of message", short(kind), self.handlers)
            await self.handlers[kind](message)
        except HwmError as error:
            self.server.engine.counters.errors += 1
            await self.say({"type": "error", "message": str(error)[:1000], "id": echo})

    def count(self) -> None:
        """Raise `HwmError` when messages come faster than they may."""
        now, rate = time.monotonic(), self.server.limits.rate
        self.allowance = min(2 * rate, self.allowance + rate * (now - self.heard)) - 1
        self.heard = now
        if self.allowance < 0:
            self.allowance = 0
            raise HwmError(f"more than {rate:g} messages a second; slow down")

    def welcome(self) -> dict[str, Any]:
        """What a page must know."""
        server, world = self.server, self.server.world
        spec, gallery = world.model.spec, world.gallery
        embodiment = gallery.store.header.embodiment if gallery else next(iter(spec.actions))
        limits = world.limits[embodiment]
        columns = zip(limits.names, limits.low, limits.high, limits.change, limits.rest, strict=True)
        starts = [gallery[name] for name in gallery.names()] if gallery else []
        twin = twin_available()
        return {
            "type": "welcome",
            "version": VERSION,
            "session": self.id,
            "model": world.name,
            "embodiment": embodiment,
            "actions": [
                {
                    "name": name,
                    "low": float(low),
                    "high": float(high),
                    "change": float(change),
                    "rest": None if np.isnan(rest) else float(rest),
                }
                for name, low, high, change, rest in columns
            ],
            "actions_per_step": spec.actions[embodiment].per_step,
            "fps": spec.fps,
            "size": [world.tokenizer.size[0] // world.views, world.tokenizer.size[1] * world.views],
            "views": list(spec.latent.views),
            "starts": [{"name": s.name, "label": s.name, "twin": twin and s.origin is not None} for s in starts],
            "presets": [p.describe() for p in server.presets.values()],
            "preset": self.preset,
            "sampler": to_json(self.session.sampler),
            "twin": twin and any(s.origin is not None for s in starts),
            "limits": {"rate": server.limits.rate, "bytes": server.limits.message_bytes},
        }

    async def reset(self, message: dict[str, Any]) -> None:
        start = self.server.start(word(message, "start"))
        seed = whole(message.get("seed", 0), "seed", 0, (1 << 63) - 1)
        await self.change(lambda s: s.reset(start, seed), "reset", message.get("id"))

    async def begin(self, replay: Replay) -> None:
        """Reset to where a replay began; its frame is sent like that of any reset."""

        def change(session: Session) -> None:
            if replay.tokenizer != session.world.tokenizer.id:
                raise HwmError(f"the replay is of tokenizer {replay.tokenizer}; here is {session.world.tokenizer.id}")
            sampler = None if replay.sampler is None else session.world.model.sampler_with(replay.sampler)
            session.reset(replay.start, replay.seed)
            session.sampler = sampler

        done = asyncio.wrap_future(self.server.engine.change(self.session, change, self.quality))
        await done  # whoever sent the file is told what is wrong with it
        await self.sending.put(self.frame(done, "reset", None))

    async def step(self, message: dict[str, Any]) -> None:
        if self.in_flight >= self.server.limits.in_flight:
            raise HwmError(f"at most {self.server.limits.in_flight} steps may be in flight; wait for a frame")
        exact = message.get("exact", False)
        if not isinstance(exact, bool):
            raise HwmError(f"'exact' is true or false, got {short(exact)}")
        action = command(message.get("action"))
        done = asyncio.wrap_future(self.server.engine.step(self.session, action, not exact, self.quality))
        self.in_flight += 1
        await self.sending.put(self.frame(done, "step", message.get("id")))

    async def undo(self, message: dict[str, Any]) -> None:
        steps = whole(message.get("steps", 1), "steps", 0, 1 << 20)
        await self.change(lambda s: s.undo(steps), "undo", message.get("id"))

    async def change(self, change: Callable[[Session], Any], kind: str, echo: Any) -> None:
        done = asyncio.wrap_future(self.server.engine.change(self.session, change, self.quality))
        await self.sending.put(self.frame(done, kind, echo))

    async def choose_preset(self, message: dict[str, Any]) -> None:
        name, presets = word(message, "name"), self.server.presets
        if name not in presets:
            raise unknown("preset", name, presets)
        model = self.server.world.model
        sampler, changes = presets[name].build(model), message.get("sampler")
        if changes is not None:
            if not isinstance(changes, dict):
                raise HwmError(f"'sampler' is an object of fields, got {short(changes)}")
            sampler = model.sampler_with({**presets[name].sampler, **changes})
        self.preset, self.session.sampler = name, sampler
        await self.say({"type": "preset", "name": name, "sampler": to_json(sampler), "id": message.get("id")})

    async def choose_quality(self, message: dict[str, Any]) -> None:
        self.quality = whole(message.get("jpeg"), "jpeg", 10, 95)
        await self.say({"type": "quality", "jpeg": self.quality, "id": message.get("id")})

    async def choose_twin(self, message: dict[str, Any]) -> None:
        if not isinstance(message.get("on"), bool):
            raise HwmError(f"'on' is true or false, got {short(message.get('on'))}")
        self.twin_wanted = message["on"]
        if self.twin_wanted and not twin_available():
            self.twin_wanted = False
            raise HwmError("the true simulator is not installed here (extra `sim`)")
        # in its turn among the frames, so that the simulator is put where the last of them was
        await self.sending.put(self.switch_twin(message.get("id")))

    async def switch_twin(self, echo: Any) -> list[bytes]:
        error = await self.follow(self.sent)
        answer = {"type": "twin", "on": self.twin is not None, "id": echo}
        return [json.dumps(answer).encode(), *error]

    async def follow(self, steps: int) -> list[bytes]:
        """Put the true simulator where this session was after these steps, if it is wanted and can be; an error
        message where it fails."""
        await self.stop_twin()
        start = self.session.start
        if not self.twin_wanted or start is None or start.origin is None:
            return []
        first, group = self.session.prompt, self.server.world.model.group
        actions = self.session.actions[first : first + steps * group]
        try:
            if sum(player.twin is not None for player in self.server.players.values()) >= self.server.limits.twins:
                raise HwmError(f"all {self.server.limits.twins} simulators are taken; try again later")
            self.twin = await TwinProcess.start(start.origin, self.server.world.tokenizer.size[1])
            for action in actions:
                await self.twin.step(action)
        except HwmError as error:
            return await self.twin_failed(error)
        return []

    async def twin_failed(self, error: HwmError) -> list[bytes]:
        await self.stop_twin()
        self.twin_wanted = False
        return [json.dumps({"type": "error", "message": f"true simulator: {error}"[:1000]}).encode()]

    async def stop_twin(self) -> None:
        if self.twin is not None:
            twin, self.twin = self.twin, None
            await twin.close()

    async def ping(self, message: dict[str, Any]) -> None:
        await self.say({"type": "pong", "id": message.get("id")})

    async def frame(self, done: asyncio.Future[Shown], kind: str, echo: Any) -> list[bytes]:
        """A job's answer as it goes over the wire: a frame, or why there is none."""
        try:
            shown = await done
        except HwmError as error:
            return [json.dumps({"type": "error", "message": str(error)[:1000], "id": echo}).encode()]
        finally:
            self.in_flight -= kind == "step"
        pictures, errors, self.sent = [("model", picture) for picture in shown.pictures], [], shown.n
        if self.twin_wanted:
            if kind != "step":
                errors = await self.follow(shown.n)
            try:
                if self.twin is not None:
                    for action in shown.actions:
                        await self.twin.step(action)
                    seen = await self.twin.frame()
                    beside = side_by_side(seen, self.server.world.views)
                    pictures.append(("twin", await asyncio.to_thread(jpeg, beside, self.quality)))
                    self.compare(shown, seen)
            except HwmError as error:
                errors = await self.twin_failed(error)
        header = {
            "type": "frame",
            "kind": kind,
            "n": shown.n,
            "id": echo,
            "pictures": [{"name": name, "mime": "image/jpeg", "bytes": len(data)} for name, data in pictures],
            "applied": [round(float(x), 5) for x in shown.applied],
            "hash": shown.hash,
            "queue_ms": round(shown.queue_ms, 2),
            "step_ms": round(shown.step_ms, 2),
            "decode_ms": round(shown.decode_ms, 2),
            "batch": shown.batch,
        }
        text = json.dumps(header).encode()
        return [struct.pack(">I", len(text)) + text + b"".join(data for _, data in pictures), *errors]

    def compare(self, shown: Shown, seen: np.ndarray) -> None:
        """Say how like the truth the dream is, as soon as that is known; no frame waits for it."""

        async def tell() -> None:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self.server.eyes, self.likeness.see, shown.n, shown.last, seen)
            await self.say({"type": "likeness", "n": shown.n, **{k: round(v, 4) for k, v in found.items()}})

        task = asyncio.create_task(tell())
        self.comparing.add(task)
        task.add_done_callback(self.comparing.discard)


async def _ready(parts: list[bytes]) -> list[bytes]:
    return parts


def parse(text: str | None) -> dict[str, Any]:
    """A message as an object with a type; raises `HwmError` for anything else."""
    if text is None:
        raise HwmError("messages are JSON objects in text frames, not bytes")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HwmError(f"this is not JSON: {str(error)[:100]}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise HwmError(f"a message is an object with a 'type', got {short(message)}")
    echo = message.get("id")
    if not (echo is None or (isinstance(echo, int | float | str) and len(str(echo)) <= 64)):
        message["id"] = None
        raise HwmError("an 'id' is a number or a string of at most 64 characters")
    return message


def word(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or len(value) > 200:
        raise HwmError(f"{key!r} is a string of at most 200 characters, got {short(value)}")
    return value


def whole(value: Any, key: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise HwmError(f"{key!r} is a whole number from {low} to {high}, got {short(value)}")
    return value


def command(value: Any) -> Action:
    """An action as it came: numbers, K rows of numbers, or numbers by name. The session checks names and widths."""
    if isinstance(value, dict):
        return {str(k): number(v, str(k)) for k, v in value.items()}
    if not isinstance(value, list) or not 1 <= len(value) <= 4096:
        raise HwmError(f"'action' is a list of numbers or an object of them, got {short(value)}")
    if isinstance(value[0], list):
        rows = [row if isinstance(row, list) else [row] for row in value]
        if len({len(row) for row in rows}) != 1 or sum(map(len, rows)) > 1 << 16:
            raise HwmError("the rows of an 'action' are of one length")
        return np.array([[number(x, "action") for x in row] for row in rows], np.float32)
    return np.array([number(x, "action") for x in value], np.float32)
