"""What every native service says over HTTP: is it well, what it promises, what it counts; and its messages by POST."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Protocol, cast

from clients.errors import RoboserveError
from clients.wire import WireLimits, decode, encode
from serving.service import MSGPACK, HttpReply, HttpRequest, Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving.auth import Principal
    from serving.metrics import ServiceMetrics


class Described(Protocol):
    """A service with health, a contract and metrics."""

    @property
    def metrics(self) -> ServiceMetrics:
        """What it counts."""
        ...

    def check_health(self) -> None:
        """Raise RuntimeError when it can serve no more."""
        ...


class Answer(Protocol):
    """A native reply: its bytes, and the error that it is, if it is one."""

    @property
    def body(self) -> bytes:
        """The message."""
        ...

    @property
    def error(self) -> RoboserveError | None:
        """The error."""
        ...


class Messages(Protocol):
    """Who answers a service's native messages."""

    async def answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> Answer:
        """Answer one message; errors are answers."""
        ...


def standard_routes(service: Described, contract: Callable[[], dict[str, Any]]) -> dict[tuple[str, str], Route]:
    """Return `/healthz` (public), `/contract` (JSON, or msgpack where asked) and `/metrics` (the operator's)."""

    async def healthz(_request: HttpRequest) -> HttpReply:
        try:
            service.check_health()
        except RuntimeError as error:
            raise RoboserveError("unavailable", str(error)) from error
        return HttpReply(body=b"OK\n", content_type="text/plain")

    async def described(request: HttpRequest) -> HttpReply:
        if MSGPACK.encode() in request.headers.get(b"accept", b""):
            return HttpReply(body=encode(contract()))
        return HttpReply(body=json.dumps(contract(), indent=2).encode(), content_type="application/json")

    async def counted(_request: HttpRequest) -> HttpReply:
        return HttpReply(body=service.metrics.text(), content_type="text/plain; version=0.0.4")

    return {
        ("GET", "/healthz"): Route(handler=healthz, access="public"),
        ("GET", "/contract"): Route(handler=described),
        ("GET", "/metrics"): Route(handler=counted, access="operator"),
    }


def read_map(data: bytes, limits: WireLimits) -> dict[str, Any]:
    """Decode a native message to a map.

    Raises:
        RoboserveError: `malformed` or `too_large`.
    """
    message = decode(data, limits)
    if not isinstance(message, dict):
        raise RoboserveError("malformed", "message: must be a map")
    return message


class NativeRoute:
    """The HTTP route of one kind of native message.

    Args:
        messages: who answers.
        kind: of the message; one that names another is refused.
        limits: of decoding.
        replicas: how many answer here, for a kind that must find the same one again; 1 for the others.
        inline_bytes: bodies up to this size are decoded on the event loop, where a thread would take longer.
    """

    def __init__(
        self, messages: Messages, kind: str, limits: WireLimits, *, replicas: int = 1, inline_bytes: int = 1 << 16
    ) -> None:
        self._messages, self._kind, self._limits = messages, kind, limits
        self._replicas, self._inline_bytes = replicas, inline_bytes

    async def __call__(self, request: HttpRequest) -> HttpReply:
        """Answer one request."""
        if len(request.body) <= self._inline_bytes:
            message = read_map(request.body, self._limits)
        else:
            message = await asyncio.to_thread(read_map, request.body, self._limits)
        given = message.setdefault("type", self._kind)
        if given != self._kind:
            raise RoboserveError("invalid_request", f"type: {given!r:.40} does not belong to this route")
        if self._replicas > 1:
            raise RoboserveError(
                "invalid_request",
                f"type: {self._kind} over HTTP, where any of {self._replicas} replicas may get the next request; "
                "open the session over the websocket, which stays with one",
            )
        principal = cast("Principal", request.principal)  # no native route is public
        # A request that names no session has none: callers of HTTP must not replace each other's requests.
        answer = await self._messages.answer(message, principal, session="", received=request.received)
        return HttpReply(body=answer.body, status=200 if answer.error is None else answer.error.kind.http)
