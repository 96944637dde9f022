"""What a served model brings to the ingress: HTTP routes, websocket dialects, and the terms they are written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from clients.errors import RoboserveError
    from serving.auth import Principal
    from serving.websocket import WebsocketSession

MSGPACK = "application/msgpack"
FAMILIES = ("policy", "reward", "preference", "path", "vlm")


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """One HTTP request whose caller is known and whose body is within the limit.

    `principal` is None on public routes only. `received` is `time.perf_counter` at receipt.
    """

    principal: Principal | None
    body: bytes
    headers: Mapping[bytes, bytes]
    received: float


@dataclass(frozen=True, kw_only=True)
class HttpReply:
    """One HTTP reply."""

    body: bytes
    content_type: str = MSGPACK
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class HttpStream:
    """One HTTP reply that comes in pieces; it is closed when the peer leaves."""

    chunks: AsyncGenerator[bytes]
    content_type: str = "text/event-stream"


class Dialect(Protocol):
    """A way to speak over a websocket: serves one session from its accepted connection to its end."""

    async def serve(self, session: WebsocketSession) -> None:
        """Speak until the peer leaves."""
        ...


@dataclass(frozen=True, kw_only=True)
class Route:
    """An HTTP route of a service, and who may call it: all, whoever may use the model, or the operator.

    `body_bytes` is the route's own cap on a body, where messages of the service may be smaller; `error_body` writes a
    typed error as JSON where the route's protocol has a form of its own.
    """

    handler: Callable[[HttpRequest], Awaitable[HttpReply | HttpStream]]
    access: Literal["public", "member", "operator"] = "member"
    body_bytes: int | None = None
    error_body: Callable[[RoboserveError], dict[str, Any]] | None = None


class Service(Protocol):
    """What the ingress needs of a served model."""

    @property
    def family(self) -> str:
        """Family of the model, one of `FAMILIES`."""
        ...

    @property
    def name(self) -> str:
        """Name of the served model."""
        ...

    @property
    def routes(self) -> Mapping[tuple[str, str], Route]:
        """(method, path below the service) to route."""
        ...

    @property
    def dialects(self) -> Mapping[str | None, Dialect]:
        """Websocket subprotocol to dialect; None: for clients that ask for no subprotocol."""
        ...
