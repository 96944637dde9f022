"""A small policy server for tests: it speaks roboserve.v1 over a real socket, and can be made to misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from clients import wire
from clients.contract import PROTOCOL, Camera, PolicyContract, Vector

if TYPE_CHECKING:
    from clients.errors import RoboserveError

Plan = Callable[[dict[str, Any]], np.ndarray]


def vector(size: int, kind: str = "absolute", limit: float = 1.0) -> Vector:
    return Vector(
        names=tuple(f"d{index}" for index in range(size)),
        units=("m",) * size,
        kinds=(kind,) * size,
        low=(-limit,) * size,
        high=(limit,) * size,
    )


def make_contract(**changes: Any) -> PolicyContract:
    base = PolicyContract(
        model="fake",
        revision="1",
        content_hash="ab" * 32,
        cameras=(Camera("top", 32, 48),),
        state=vector(4),
        action=vector(2),
        control_hz=50.0,
        chunk_length=16,
        execute=8,
        integration_steps=10,
        supports=("rtc", "seed", "reset"),
        adapters=(),
        normalization="none",
        limits={"message_bytes": 16 * 1024 * 1024},
    )
    return replace(base, **changes)


@dataclass
class Faults:
    """What the server does wrong, read anew for each request; a test changes it while the server runs."""

    delay_s: float = 0.0
    nan: bool = False
    garbage: bool = False
    silent: bool = False
    mute: bool = False
    drop: bool = False
    error: RoboserveError | None = None
    swap_revision: str | None = None


@dataclass
class FakeServer:
    """Serves on 127.0.0.1 and a free port until `stop`."""

    contract: PolicyContract = field(default_factory=make_contract)
    plan: Plan | None = None
    api_key: str | None = None
    first_frame: bytes | str | None = None
    faults: Faults = field(default_factory=Faults)
    messages: list[dict[str, Any]] = field(default_factory=list)
    connections: list[ServerConnection] = field(default_factory=list)
    port: int = 0
    under_way: int = 0
    most_under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: Server | None = None
    _thread: threading.Thread | None = None

    def start(self) -> FakeServer:
        self._server = serve(
            self._handle,
            "127.0.0.1",
            self.port,
            subprotocols=[PROTOCOL],  # type: ignore[list-item]
            compression=None,
            max_size=2**25,
            close_timeout=0.2,
            process_request=self._authorise,
        )
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End every connection without a goodbye and stop listening, as a killed process does."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.close_socket()
        if self._thread is not None:
            self._thread.join(5.0)

    stop = kill

    def acts(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == "act"]

    def notify(self, message: dict[str, Any]) -> None:
        for connection in list(self.connections):
            connection.send(wire.encode(message))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *details: object) -> None:
        self.kill()

    def _authorise(self, connection: ServerConnection, request: Any) -> Any:
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return connection.respond(401, "no valid key\n")
        return None

    def _handle(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        send_lock = threading.Lock()
        try:
            first = self.first_frame
            connection.send(wire.encode(self.contract.to_map()) if first is None else first)
            for frame in connection:
                message = wire.decode(frame) if isinstance(frame, bytes) else {}
                self.messages.append(message)
                threading.Thread(target=self._answer, args=(connection, message, send_lock), daemon=True).start()
        except (ConnectionClosed, OSError):
            return

    def _answer(self, connection: ServerConnection, message: dict[str, Any], send_lock: threading.Lock) -> None:
        faults = replace(self.faults)
        kind = {"ping": "pong"}.get(message["type"], message["type"])
        if faults.mute:
            return
        reply: Any = {"type": kind, "request_id": message["request_id"]}
        if message["type"] == "act":
            self._count(1)
            time.sleep(faults.delay_s)
            self._count(-1)
            if faults.silent:
                return
            if faults.drop:
                connection.close_socket()
                return
            reply = self._action(message) if faults.error is None else faults.error.to_map()
            reply["request_id"] = message["request_id"]
        try:
            with send_lock:
                connection.send(b"\xc1garbage" if faults.garbage and kind == "act" else wire.encode(reply))
        except (ConnectionClosed, OSError):
            return

    def _count(self, change: int) -> None:
        with self._lock:
            self.under_way += change
            self.most_under_way = max(self.most_under_way, self.under_way)

    def _action(self, message: dict[str, Any]) -> dict[str, Any]:
        contract = self.contract
        shape = (contract.chunk_length, contract.action.size)
        actions = np.zeros(shape, np.float32) if self.plan is None else self.plan(message)
        if self.faults.nan:
            actions = np.full_like(actions, np.nan)
        reply: dict[str, Any] = {
            "type": "action",
            "actions": np.asarray(actions, np.float32),
            "model": {
                "id": contract.model,
                "revision": self.faults.swap_revision or contract.revision,
                "content_hash": contract.content_hash,
            },
            "batch_size": 1,
            "timings": dict.fromkeys(("queue", "batch_wait", "decode", "forward", "encode", "total"), 0.1),
        }
        if message["options"].get("return_model_actions"):
            reply["model_actions"] = reply["actions"] * np.float32(2.0)
        return reply
