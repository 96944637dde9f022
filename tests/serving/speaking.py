"""How the tests speak to a served policy, byte by byte where they must, and the neighbour that watches meanwhile."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from clients.contract import PROTOCOL
from clients.wire import decode, encode
from tests.serving.platforms import SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serving.platforms import Platform

LIMIT_S = 30.0
MSGPACK = {"content-type": "application/msgpack"}


def image(height: int = SIZE, width: int = SIZE, channels: int = 3) -> np.ndarray:
    return np.full((height, width, channels), 127, np.uint8)


def jpeg(height: int = SIZE, width: int = SIZE) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def bomb(height: int = 30000, width: int = 30000) -> bytes:
    """A small JPEG whose header claims a huge picture."""
    data = bytearray(jpeg(16, 16))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def observation(cameras: tuple[str, ...] = ("front",), instruction: str = "go") -> dict[str, Any]:
    return {
        "images": {camera: image() for camera in cameras},
        "state": np.zeros(8, np.float32),
        "instruction": instruction,
    }


def act(request_id: str = "r1", *, cameras: tuple[str, ...] = ("front",), **changes: Any) -> dict[str, Any]:
    message = {"type": "act", "request_id": request_id, "observation": observation(cameras), "options": {}}
    return {**message, **changes}


def flat(**changes: Any) -> dict[str, Any]:
    """An observation in the terms of a stock openpi client."""
    return {
        "observation/front": image(),
        "observation/state": np.zeros(8, np.float32),
        "prompt": "go",
        **changes,
    }


@dataclass
class Talk:
    """One websocket session."""

    socket: ClientConnection
    first: dict[str, Any]

    def ask(self, message: Any) -> Any:
        self.send(message)
        return self.hear()

    def send(self, message: Any) -> None:
        self.socket.send(message if isinstance(message, (bytes, str)) else encode(message))

    def hear(self, timeout: float = LIMIT_S) -> Any:
        frame = self.socket.recv(timeout=timeout)
        return frame if isinstance(frame, str) else decode(frame)


@contextlib.contextmanager
def talk(platform: Platform, path: str = "/", *, key: str | None = None, native: bool = True) -> Iterator[Talk]:
    """Open a session: the native dialect, or openpi's."""
    with connect(
        platform.websocket(path),
        subprotocols=[PROTOCOL] if native else None,
        additional_headers={"Authorization": f"Bearer {key}"} if key else None,
        compression=None,
        max_size=None,
        open_timeout=LIMIT_S,
        close_timeout=1,
    ) as socket:
        yield Talk(socket, decode(socket.recv(timeout=LIMIT_S)))


def post(platform: Platform, path: str, message: Any, *, key: str | None = None) -> httpx.Response:
    body = message if isinstance(message, bytes) else encode(message)
    headers = {**MSGPACK, **({"Authorization": f"Bearer {key}"} if key else {})}
    return httpx.post(platform.url(path), content=body, headers=headers, timeout=LIMIT_S)


@dataclass
class Neighbour:
    """A session that keeps asking: no attack on another connection may cut it off, fail it or hold it up."""

    platform: Platform
    path: str = "/"
    cameras: tuple[str, ...] = ("front",)
    answered: int = 0
    faults: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            with talk(self.platform, self.path) as session:
                while not self._stop.wait(0.02):
                    started = time.monotonic()
                    reply = session.ask(act(cameras=self.cameras))
                    self.longest_s = max(self.longest_s, time.monotonic() - started)
                    if reply["type"] != "action":
                        self.faults.append(str(reply))
                    self.answered += 1
        except Exception as error:  # noqa: BLE001  whatever it is, the attack caused it
            self.faults.append(repr(error))

    def check(self) -> None:
        """Fail unless it was never failed and is answered still."""
        seen, limit = self.answered, time.monotonic() + LIMIT_S
        while self.answered < seen + 2 and not self.faults and time.monotonic() < limit:
            time.sleep(0.005)
        assert not self.faults, f"the neighbour's faults: {self.faults}"
        assert self.answered >= seen + 2, "the neighbour is not answered any more"
        # Not a bound on speed: what an attack of seconds would hold up is many times this.
        assert self.longest_s < 5.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[Neighbour]:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield self
            self.check()
        finally:
            self._stop.set()
            thread.join(LIMIT_S)
