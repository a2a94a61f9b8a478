"""A world of a play server, from a script: `hwm play` there, `Client` here.

    with Client("ws://127.0.0.1:8000") as client:
        client.reset("start:3", seed=0)
        for _ in range(20):
            seen = client.step({"LINEAR_VELOCITY": 0.5})
        client.replay().save("drive.json")

What goes over the wire: docs/protocol.md. Needs the extra `web`.
"""

from __future__ import annotations

import json
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import numpy as np

from hwm.errors import HwmError
from hwm.interact.replay import MOST_BYTES, Replay
from hwm.pictures.files import read_picture

try:
    from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException
    from websockets.sync.client import connect
except ImportError as error:
    raise HwmError(f"the client needs the extra `web`: pip install 'humanoid-world-models[web]' ({error})") from error

VERSION = 1


@dataclass(frozen=True)
class Seen:
    """A server's answer to a step, a reset or an undo.

    Attributes:
        frames: (F, H, W, 3) uint8, as JPEG left them.
        twin: (H, W, 3) uint8, the true simulator's, where it runs.
        steps: since the start.
        applied: (A,) the command in force.
        hash: checksum of the step's latents, 0 at a reset.
        header: the answer's header as it came, with times.
    """

    frames: np.ndarray
    twin: np.ndarray | None
    steps: int
    applied: np.ndarray
    hash: int
    header: dict[str, Any]


class Client:
    """A session on a play server.

    Args:
        url: of the server, `ws://HOST:PORT`, or as `hwm play` prints it, `http://HOST:PORT/?token=TOKEN`.
        token: what the server asks for; by default what the URL says.
        timeout: seconds to wait for an answer.

    Attributes:
        welcome: what the server said first: `actions` with their ranges, `starts`, `presets`, `fps` and more.
        likeness: how like the true simulator's the newest pictures were that were compared, where it runs.

    Raises:
        HwmError: nobody answers there, or it is no play server of this protocol, or all its sessions are taken. So
            does every method where the server answers by an error, or ends.
    """

    def __init__(self, url: str = "ws://127.0.0.1:8000", token: str | None = None, timeout: float = 60.0) -> None:
        parts = urlsplit(url if "//" in url else f"ws://{url}")
        query = parts.query if token is None else urlencode({"token": token})
        schemes = ("wss", "https") if parts.scheme in ("wss", "https") else ("ws", "http")
        self.timeout, self._ids = timeout, count(1)
        self._where = parts.netloc
        self._http, self._query = urlunsplit((schemes[1], parts.netloc, "", "", "")), query
        try:
            self._socket = connect(
                urlunsplit((schemes[0], parts.netloc, "/ws", query, "")),
                open_timeout=timeout,
                max_size=MOST_BYTES,
                compression=None,  # JPEG does not shrink
            )
        except (OSError, InvalidHandshake, InvalidURI, TimeoutError) as error:
            raise HwmError(
                f"no play server answers at {parts.netloc}: {error}; start one with hwm play, and give its token"
            ) from error
        try:
            first = self._receive()
            if not isinstance(first, dict) or first.get("type") != "welcome" or first.get("version") != VERSION:
                raise HwmError(f"{parts.netloc} is no play server of version {VERSION} of the protocol")
        except HwmError:
            self.close()
            raise
        self.welcome: dict[str, Any] = first
        self.likeness: dict[str, Any] = {}

    def reset(self, start: str = "start:0", seed: int = 0) -> Seen:
        """Begin anew, at a start of `welcome["starts"]`."""
        return self._see(type="reset", start=start, seed=seed)

    def step(self, action: Mapping[str, float] | np.ndarray, exact: bool = False) -> Seen:
        """One step with a wanted command, as {name: value} or (A,); the server approaches it as commands change in the
        data. `exact` takes it at once; then it may also be the K commands of a step, (K, A)."""
        plain = action.tolist() if isinstance(action, np.ndarray) else {k: float(v) for k, v in action.items()}
        return self._see(type="step", action=plain, exact=exact)

    def undo(self, steps: int = 1) -> Seen:
        """Go back by some steps, at most to the start."""
        return self._see(type="undo", steps=steps)

    def preset(self, name: str, **sampler: Any) -> dict[str, Any]:
        """Choose how the model samples: a preset of `welcome["presets"]`, with fields of it changed; the fields."""
        changes = {"sampler": sampler} if sampler else {}
        fields: dict[str, Any] = self._ask(type="preset", name=name, **changes)["sampler"]
        return fields

    def twin(self, on: bool = True) -> bool:
        """Have the true simulator beside the model from the next frame on; whether it runs already."""
        return bool(self._ask(type="twin", on=on)["on"])

    def replay(self) -> Replay:
        """The session so far as a replay file, to be saved or played again."""
        return Replay.from_json(json.loads(self.download("replay.json")))

    def download(self, name: str, first: int = 0, last: int | None = None) -> bytes:
        """A file of the session: `video.mp4` or `store.zip` of steps `first` to `last`, or `replay.json`."""
        span = {"first": first} | ({} if last is None else {"last": last})
        query = "&".join(part for part in (self._query, urlencode(span)) if part)
        address = f"{self._http}/session/{self.welcome['session']}/{name}?{query}"
        try:
            with urllib.request.urlopen(address, timeout=self.timeout) as answer:
                data: bytes = answer.read()
        except urllib.error.HTTPError as error:
            raise HwmError(f"{self._where}: {_message(error.read())}") from error
        except OSError as error:
            raise HwmError(f"{self._where} did not send {name}: {error}") from error
        return data

    def close(self) -> None:
        """Leave; the server forgets the session."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _see(self, **message: Any) -> Seen:
        header = self._ask(**message)
        pictures: dict[str, list[np.ndarray]] = {"model": [], "twin": []}
        for picture, data in zip(header["pictures"], header.pop("data"), strict=True):
            pictures[picture["name"]].append(read_picture(data))
        return Seen(
            frames=np.stack(pictures["model"]),
            twin=pictures["twin"][0] if pictures["twin"] else None,
            steps=header["n"],
            applied=np.array(header["applied"], np.float32),
            hash=header["hash"],
            header=header,
        )

    def _ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and wait for its answer; answers to earlier ones, which nobody waited for, are passed over."""
        message["id"] = next(self._ids)
        try:
            self._socket.send(json.dumps(message))
        except (WebSocketException, OSError) as error:
            raise HwmError(f"{self._where} is gone: {error}") from error
        while True:
            answer = self._receive()
            if answer["type"] == "likeness":
                self.likeness = answer
            if answer["type"] == "error" and answer.get("id") in (message["id"], None):
                raise HwmError(f"{self._where}: {answer['message']}")
            if answer.get("id") == message["id"]:
                return answer

    def _receive(self) -> dict[str, Any]:
        """The next message; a frame as its header, with its pictures' bytes as `data`."""
        try:
            raw = self._socket.recv(self.timeout)
        except TimeoutError as error:
            raise HwmError(f"{self._where} did not answer within {self.timeout:g} seconds") from error
        except (WebSocketException, OSError) as error:
            raise HwmError(f"{self._where} has ended the session: {error}") from error
        try:
            if isinstance(raw, str):
                answer: dict[str, Any] = json.loads(raw)
            else:
                (length,) = struct.unpack_from(">I", raw)
                answer, at = json.loads(raw[4 : 4 + length]), 4 + length
                answer["data"] = []
                for picture in answer["pictures"]:
                    answer["data"].append(raw[at : at + picture["bytes"]])
                    at += picture["bytes"]
            if not isinstance(answer["type"], str):
                raise TypeError("the type is no word")
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise HwmError(f"{self._where} sent what is not of this protocol: {error}") from error
        return answer


def _message(body: bytes) -> str:
    """What a refused request says."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
