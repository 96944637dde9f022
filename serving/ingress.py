"""The ingress that every deployment reuses: bare ASGI with auth, limits, typed errors, health and sessions.

It is an ASGI callable rather than a web framework's, since it stands on the path of every observation: routing is one
dictionary look-up. A service brings its HTTP routes and its websocket dialects; the ingress does the rest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from clients.wire import encode
from serving.service import FAMILIES, MSGPACK, Dialect, HttpReply, HttpRequest, HttpStream, Route, Service
from serving.websocket import PeerGoneError, WebsocketSession

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping

    from serving.auth import KeyRing, Principal
    from serving.config import LimitSettings
    from serving.metrics import ServiceMetrics

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

logger = logging.getLogger("ray.serve")


@dataclass(kw_only=True)
class _Slot:
    """What one HTTP request holds: the bytes of its body so far."""

    bytes: int = 0


class Ingress:
    """The ASGI application of one served model.

    Args:
        service: the model's routes and dialects.
        limits: caps on what one peer may ask for.
        keys: who may call.
        metrics: where requests and sessions are counted.
    """

    def __init__(self, service: Service, *, limits: LimitSettings, keys: KeyRing, metrics: ServiceMetrics) -> None:
        self._service = service
        self._limits = limits
        self._keys = keys
        self._metrics = metrics
        self._sessions = 0
        self._requests = 0
        self._body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request or one websocket connection."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = time.perf_counter()
        headers = dict(scope["headers"])
        route: Route | None = None
        try:
            route = self._route(scope)
            principal = None if route.access == "public" else self._admit(scope, headers, access=route.access)
            with self._slot(route) as slot:
                body = await self._body(headers, receive, slot, limit=route.body_bytes or self._limits.message_bytes)
                request = HttpRequest(principal=principal, body=body, headers=headers, received=received)
                reply = await route.handler(request)
                if isinstance(reply, HttpStream):
                    await _send_stream(send, receive, reply)
                    return
        except PeerGoneError:
            return
        except RoboserveError as error:
            log_error(error, service=self._service.name, transport="http")
            reply = _error_reply(error, headers, route)
        except Exception:
            logger.exception("request failed", extra={"model": self._service.name})
            reply = _error_reply(RoboserveError("internal", "the server failed on this request"), headers, route)
        await _send_reply(send, reply)

    @contextmanager
    def _slot(self, route: Route) -> Iterator[_Slot]:
        """Count a request whose body may take memory; a probe of health is never refused.

        Raises:
            RoboserveError: `overloaded`.
        """
        if route.access != "public" and self._requests >= self._limits.http_requests:
            raise RoboserveError(
                "overloaded", f"http: {self._requests} requests unanswered, limit {self._limits.http_requests}"
            )
        slot = _Slot()
        self._requests += 1
        try:
            yield slot
        finally:
            self._requests -= 1
            self._body_bytes -= slot.bytes

    def _path(self, scope: Scope) -> str:
        """Return the path below the service, with a leading slash.

        Raises:
            RoboserveError: `not_found` when the path names another model.
        """
        path = str(scope["path"])[len(scope.get("root_path", "")) :].rstrip("/")
        own = f"/{self._service.family}/{self._service.name}"
        if path == own or path.startswith(own + "/"):
            return path[len(own) :] or "/"
        family, _, rest = path.lstrip("/").partition("/")
        if family in FAMILIES and rest:
            model = rest.partition("/")[0]
            raise RoboserveError("not_found", f"{family}: no model named {model[:64]!r} is served here")
        return path or "/"

    def _route(self, scope: Scope) -> Route:
        path, method = self._path(scope), str(scope["method"])
        route = self._service.routes.get((method, path))
        if route is None:
            raise RoboserveError("not_found", f"route: no {method} {path[:128]}")
        return route

    def _admit(self, scope: Scope, headers: Mapping[bytes, bytes], *, access: str) -> Principal:
        if sum(name == b"authorization" for name, _ in scope["headers"]) > 1:
            raise RoboserveError("unauthenticated", "authorization: sent more than once")
        client = scope.get("client")
        principal = self._keys.identify(headers, client[0] if client else None)
        if access == "operator" and not principal.operates:
            raise RoboserveError("forbidden", f"key {principal.id!r}: this route needs an admin key")
        if access == "member" and not principal.allows(self._service.family, self._service.name):
            target = f"{self._service.family}/{self._service.name}"
            raise RoboserveError("forbidden", f"key {principal.id!r}: its scope does not cover {target}")
        return principal

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, slot: _Slot, *, limit: int) -> bytes:
        declared = headers.get(b"content-length", b"0")[:20]
        if not declared.isdigit() or int(declared) > limit:
            raise RoboserveError("too_large", f"body: {declared.decode('latin-1')} bytes, limit {limit}")
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise PeerGoneError
                    parts.append(event.get("body", b""))
                    if slot.bytes + len(parts[-1]) > limit:
                        raise RoboserveError("too_large", f"body: over {limit} bytes")
                    self._take(len(parts[-1]), slot)
                    if not event.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            text = f"body: not complete after {self._limits.body_timeout_s:g} s, which is the limit"
            raise RoboserveError("timeout", text) from None

    def _take(self, size: int, slot: _Slot) -> None:
        """Count bytes of a body; a route's own cap must not let bodies hold more than messages could.

        Raises:
            RoboserveError: `overloaded`.
        """
        slot.bytes += size
        self._body_bytes += size
        limit = self._limits.http_requests * self._limits.message_bytes
        if self._body_bytes > limit:
            raise RoboserveError("overloaded", f"http: {self._body_bytes} bytes of bodies under way, limit {limit}")

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            self._path(scope)
            principal = self._admit(scope, headers, access="member")
            subprotocol, dialect = self._dialect(scope)
            if self._sessions >= self._limits.sessions:
                raise RoboserveError("overloaded", f"sessions: {self._sessions} open, limit {self._limits.sessions}")
        except RoboserveError as error:
            log_error(error, service=self._service.name, transport="websocket")
            await _refuse_handshake(scope, send, error)
            return
        session = WebsocketSession(
            id=secrets.token_hex(8),
            principal=principal,
            limits=self._limits,
            metrics=self._metrics,
            receive_event=receive,
            send_event=send,
        )
        with self._open(session):
            await self._converse(session, subprotocol, dialect)

    def _dialect(self, scope: Scope) -> tuple[str | None, Dialect]:
        offered = list(scope.get("subprotocols") or [])
        for name in offered:
            if name in self._service.dialects:
                return name, self._service.dialects[name]
        if offered:
            known = ", ".join(name for name in self._service.dialects if name)
            raise RoboserveError(
                "not_found", f"subprotocol: none of {', '.join(offered)[:128]} is spoken; known are {known}"
            )
        return None, self._service.dialects[None]

    @contextmanager
    def _open(self, session: WebsocketSession) -> Iterator[None]:
        """Count a session from the moment it is let in: many that knock at once must not all pass the limit."""
        extra = {"model": self._service.name, "session": session.id, "principal": session.principal.id}
        self._sessions += 1
        self._metrics.sessions.set(self._sessions)
        logger.info("session opened", extra=extra)
        try:
            yield
        finally:
            session.release()
            self._sessions -= 1
            self._metrics.sessions.set(self._sessions)
            logger.info("session closed", extra=extra)

    async def _converse(self, session: WebsocketSession, subprotocol: str | None, dialect: Dialect) -> None:
        try:
            await session.accept(subprotocol)
            await dialect.serve(session)
        except PeerGoneError:
            return
        except Exception:
            logger.exception("session failed", extra={"model": self._service.name, "session": session.id})
            await _quietly(session.close(1011, "the server failed"))


async def _quietly(closing: Awaitable[None]) -> None:
    """Close a session whose peer may have left already."""
    try:
        await closing
    except PeerGoneError:
        return


def log_error(error: RoboserveError, *, service: str, transport: str) -> None:
    """Write one line for an error; a fault of ours or of a model with its cause, a client's without."""
    extra = {"code": error.code, "request": error.request_id, "model": service, "transport": transport}
    if error.kind.http == 500:
        logger.error("%s", error, extra=extra, exc_info=error.__cause__)
    else:
        logger.info("%s", error, extra=extra)


def _error_reply(error: RoboserveError, headers: Mapping[bytes, bytes], route: Route | None) -> HttpReply:
    if route is not None and route.error_body is not None:
        body = json.dumps(route.error_body(error)).encode()
        return HttpReply(status=error.kind.http, body=body, content_type="application/json")
    if MSGPACK.encode() in headers.get(b"content-type", b"") or MSGPACK.encode() in headers.get(b"accept", b""):
        return HttpReply(status=error.kind.http, body=encode(error.to_map()))
    return HttpReply(status=error.kind.http, body=json.dumps(error.to_map()).encode(), content_type="application/json")


async def _send_reply(send: Send, reply: HttpReply) -> None:
    headers = [(b"content-type", reply.content_type.encode()), (b"content-length", str(len(reply.body)).encode())]
    if reply.status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


async def _send_stream(send: Send, receive: Receive, reply: HttpStream) -> None:
    """Send pieces as they come. Where the peer leaves, or takes nothing, the pieces' generator is closed.

    What fails under way is the generator's to tell in its own protocol; the status has been sent.
    """
    gone = asyncio.ensure_future(_departure(receive))
    headers = [(b"content-type", reply.content_type.encode()), (b"cache-control", b"no-store")]
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            piece = asyncio.ensure_future(anext(reply.chunks, None))
            await asyncio.wait((piece, gone), return_when=asyncio.FIRST_COMPLETED)
            if not piece.done():
                piece.cancel()
                await asyncio.gather(piece, return_exceptions=True)
                return
            if (chunk := piece.result()) is None:
                break
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()
        await reply.chunks.aclose()


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse_handshake(scope: Scope, send: Send, error: RoboserveError) -> None:
    """Answer the upgrade with an HTTP error whose JSON body is the typed error."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": error.kind.websocket, "reason": str(error)[:120]})
        return
    body = json.dumps(error.to_map()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": error.kind.http, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
