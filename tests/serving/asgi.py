"""The server's side of ASGI, played by a test: for what no real network can be made to do on cue."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from clients.contract import PROTOCOL
from clients.wire import decode, encode
from serving.config import PolicyArgs
from serving.policy_server import PolicyServer
from tests.serving.platforms import SIZE

LIMIT_S = 20.0


def arguments(policy: str = "ZeroPolicy", *, config: Any = None, **changes: Any) -> PolicyArgs:
    settings = {"interface": {"image_size": SIZE}, **(config or {})}
    return PolicyArgs.model_validate(
        {
            "name": "mine",
            "policy": {"factory": f"models.policies.scripted:{policy}", "config": settings},
            **changes,
        }
    )


def server(policy: str = "ZeroPolicy", **changes: Any) -> PolicyServer:
    return PolicyServer(arguments(policy, **changes))


def scope(kind: str, path: str = "/", *, headers: Any = (), client: str | None = "127.0.0.1", **more: Any) -> dict:
    return {
        "type": kind,
        "path": path,
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": (client, 1234) if client else None,
        "subprotocols": [PROTOCOL],
        "extensions": {"websocket.http.response": {}},
        **more,
    }


@dataclass
class Peer:
    """One connection: what the peer sends is put in, what the application sends comes out."""

    incoming: asyncio.Queue = field(default_factory=asyncio.Queue)
    outgoing: asyncio.Queue = field(default_factory=asyncio.Queue)
    stuck: bool = False
    """Takes nothing from now on, for ever."""
    takes: int = 1_000_000
    """Messages that it takes before it is gone."""
    task: asyncio.Task | None = None

    async def _send(self, event: Any) -> None:
        if self.takes <= 0:
            raise OSError("the peer is gone")
        self.takes -= 1
        if self.stuck:
            await asyncio.Event().wait()
        self.outgoing.put_nowait(event)

    def run(self, app: Any, where: dict) -> None:
        self.task = asyncio.create_task(app(where, self.incoming.get, self._send))

    async def event(self) -> Any:
        return await asyncio.wait_for(self.outgoing.get(), LIMIT_S)

    async def end(self) -> None:
        """Leave, and wait until the application has noticed."""
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1005})
        await asyncio.wait_for(self.task, LIMIT_S)


class Session(Peer):
    """A websocket to an application."""

    async def open(self, app: Any, **where: Any) -> Session:
        self.run(app, scope("websocket", **where))
        self.incoming.put_nowait({"type": "websocket.connect"})
        self.accepted = await self.event()
        return self

    def say(self, message: Any) -> None:
        data = message if isinstance(message, bytes) else encode(message)
        self.incoming.put_nowait({"type": "websocket.receive", "bytes": data})

    async def hear(self) -> Any:
        event = await self.event()
        if event["type"] == "websocket.close":
            return event["code"]
        return decode(event["bytes"]) if event.get("bytes") is not None else event["text"]

    async def ask(self, message: Any) -> Any:
        self.say(message)
        return await self.hear()


async def http(app: Any, method: str, path: str, body: bytes = b"", **where: Any) -> tuple[int, dict, bytes]:
    """Send one HTTP request; return status, headers and body."""
    peer = Peer()
    peer.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    peer.run(app, scope("http", path, method=method, **where))
    start, content = await peer.event(), await peer.event()
    await asyncio.wait_for(peer.task, LIMIT_S)
    return start["status"], dict(start["headers"]), content["body"]
