"""One accepted websocket connection: its limits on size, silence and slowness, as typed errors."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from serving.alarm import Alarm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, MutableMapping

    from serving.auth import Principal
    from serving.config import LimitSettings
    from serving.metrics import ServiceMetrics

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class PeerGoneError(Exception):
    """The peer closed the connection, or takes nothing any more."""


@dataclass(kw_only=True)
class WebsocketSession:
    """One accepted websocket connection."""

    id: str
    principal: Principal
    limits: LimitSettings
    metrics: ServiceMetrics
    receive_event: Receive
    send_event: Send
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    dead: bool = False
    _silence: Alarm = field(init=False)
    _stall: Alarm = field(init=False)

    def __post_init__(self) -> None:
        self._silence = Alarm(self.limits.idle_timeout_s)
        self._stall = Alarm(self.limits.send_timeout_s)

    def release(self) -> None:
        """Let go of what outlives the connection."""
        self._silence.stop()
        self._stall.stop()

    async def accept(self, subprotocol: str | None) -> None:
        """Accept the connection.

        Raises:
            PeerGoneError: the peer left.
        """
        await self.receive_event()  # the peer's wish to connect
        await self._emit({"type": "websocket.accept", "subprotocol": subprotocol})

    async def receive(self, *, awaited: Collection[object] = ()) -> bytes:
        """Return the next binary message.

        Args:
            awaited: what the peer still waits for; while there is something, it may be silent.

        Raises:
            PeerGoneError: the peer left.
            RoboserveError: `timeout` after the idle limit, `unauthenticated` once the key has expired, `too_large`, or
                `malformed` for a text frame.
        """
        event: MutableMapping[str, Any] | None = None
        while event is None:
            try:
                with self._silence:
                    event = await self.receive_event()
            except TimeoutError:
                if not awaited:
                    text = f"session: no whole message arrived for {self.limits.idle_timeout_s:g} s, which is the limit"
                    raise RoboserveError("timeout", text) from None
        if self.dead or event["type"] == "websocket.disconnect":
            raise PeerGoneError
        self.principal.require_unexpired()
        data = event.get("bytes")
        if data is None:
            raise RoboserveError("malformed", "message: must be a binary frame, this is text")
        if len(data) > self.limits.message_bytes:
            raise RoboserveError("too_large", f"message: {len(data)} bytes, limit {self.limits.message_bytes}")
        return bytes(data)

    async def send(self, data: bytes) -> None:
        """Send one binary message; sends of one session do not overlap.

        Raises:
            PeerGoneError: the peer left, or does not read.
        """
        await self._emit({"type": "websocket.send", "bytes": data})

    async def send_text(self, text: str) -> None:
        """Send one text message.

        Raises:
            PeerGoneError: the peer left, or does not read.
        """
        await self._emit({"type": "websocket.send", "text": text})

    async def close(self, code: int, reason: str = "") -> None:
        """Close the connection; a reason is cut to the 120 bytes that a close frame holds.

        Raises:
            PeerGoneError: the peer left, or does not read.
        """
        cut = reason.encode()[:120].decode(errors="ignore")
        await self._emit({"type": "websocket.close", "code": code, "reason": cut})

    async def _emit(self, event: MutableMapping[str, Any]) -> None:
        """Hand an event to the server, which holds it back while the peer's window is full."""
        try:
            async with self.lock:
                if self.dead:
                    raise PeerGoneError
                with self._stall:
                    await self.send_event(event)
        except (OSError, RuntimeError) as error:  # how the server says that the peer left; a timeout is an OSError too
            self.dead = True
            raise PeerGoneError from error
