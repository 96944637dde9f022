"""The native messages (`act`, `reset`, `ping`), whatever carries them: one map in, one encoded reply out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from clients.errors import RoboserveError
from clients.wire import encode, with_entry
from serving.fields import request_id_of, short_text
from serving.ingress import log_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from serving.auth import Principal
    from serving.policy_server import ActOutcome, PolicyServer
    from serving.requests import ActRequest

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An encoded reply; `error` where it is one."""

    body: bytes
    error: RoboserveError | None = None


class Messages(Protocol):
    """Answers the native messages of a family."""

    async def answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> Answer:
        """Answer one decoded message, errors included."""
        ...


async def answered(work: Awaitable[bytes], message: dict[str, Any], *, service: str) -> Answer:
    """Wait for an encoded reply; what is raised becomes a typed error that names the request, and a line in the log."""
    try:
        body = await work
    except RoboserveError as raised:
        error = raised.with_request_id(request_id_of(message))
        error.__cause__ = raised.__cause__
    except Exception as raised:  # noqa: BLE001  a fault of ours: the peer gets a typed error, the log gets the cause
        error = RoboserveError("internal", "the server failed on this request", request_id=request_id_of(message))
        error.__cause__ = raised
    else:
        return Answer(body=body)
    log_error(error, service=service, transport="native")
    return Answer(body=encode(error.to_map()), error=error)


async def in_time(work: Awaitable[Result], deadline_ms: float | None, received: float, *, missing: str) -> Result:
    """Wait for work until a request's deadline; what is late is withdrawn.

    Args:
        deadline_ms: from receipt; None waits for ever.
        received: `time.perf_counter` at receipt.
        missing: what was not there by then, for the message.

    Raises:
        RoboserveError: `deadline_exceeded`.
    """
    if deadline_ms is None:
        return await work
    left = deadline_ms / 1e3 - (time.perf_counter() - received)
    try:
        async with asyncio.timeout(max(0.0, left)):
            return await work
    except TimeoutError:
        text = f"deadline_ms: {deadline_ms:g}, passed before {missing}"
        raise RoboserveError("deadline_exceeded", text) from None


def kind_of_message(message: dict[str, Any], known: Sequence[str], *, service: str) -> str:
    """Return the type of a message, the first of `known` where it names none, and check the model that it names.

    Raises:
        RoboserveError: `invalid_request` for another type, `not_found` for another model.
    """
    kind = message.get("type", known[0])
    if not isinstance(kind, str) or kind not in known:
        raise RoboserveError("invalid_request", f"type: {kind!r:.40}; known are {', '.join(known)}")
    wanted = short_text(message, "model")
    if wanted is not None and wanted != service:
        raise RoboserveError("not_found", f"model: {wanted!r} is not served here; this is {service!r}")
    return kind


class NativeMessages:
    """Answers native messages for a policy.

    Args:
        server: the policy's server.
    """

    def __init__(self, server: PolicyServer) -> None:
        self._server = server

    async def answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> Answer:
        """Answer one decoded message, errors included.

        Args:
            session: the session of a message that names none; "" for a message on its own.
            received: `time.perf_counter` at receipt.
        """
        work = self._answer(message, principal, session=session, received=received)
        return await answered(work, message, service=self._server.name)

    async def _answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> bytes:
        kind = kind_of_message(message, ("act", "reset", "ping"), service=self._server.name)
        if kind == "act":
            with self._server.counted(received):
                request = await self._server.parse(message, session=session)
                decode_s = time.perf_counter() - received
                outcome = await self._server.act(request, principal, received=received, decode_s=decode_s)
                return self._reply(request, outcome, received)
        request_id = short_text(message, "request_id")
        if kind == "reset":
            await self._server.reset(short_text(message, "session") or session, principal)
            return encode({"type": "reset", "request_id": request_id})
        return encode({"type": "pong", "request_id": request_id})

    def _reply(self, request: ActRequest, outcome: ActOutcome, received: float) -> bytes:
        started = time.perf_counter()
        reply: dict[str, Any] = {
            "type": "action",
            "request_id": request.request_id,
            "actions": outcome.chunk.actions,
            "model": outcome.model,
            "batch_size": outcome.batch_size,
        }
        if request.return_model_actions:
            reply["model_actions"] = outcome.chunk.model_actions
        chunk = outcome.chunk
        told = {"seed": chunk.seed, "context_level": chunk.context_level, "summary": chunk.summary}
        reply |= {name: value for name, value in told.items() if value is not None}
        packed = encode(reply)
        now = time.perf_counter()
        timings = {**outcome.timings, "encode": (now - started) * 1e3, "total": (now - received) * 1e3}
        return with_entry(packed, "timings", timings)
