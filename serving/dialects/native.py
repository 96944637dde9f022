"""The native websocket dialect (`roboserve.v1`): the contract first, then requests that may overlap, by their ids."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from clients.errors import RoboserveError
from clients.wire import encode
from serving.fields import request_id_of
from serving.ingress import log_error
from serving.websocket import PeerGoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from serving.auth import Principal
    from serving.dialects.messages import Messages
    from serving.websocket import WebsocketSession


class Speaker(Protocol):
    """What the dialect needs of a served model."""

    @property
    def name(self) -> str:
        """Name of the served model."""
        ...

    def decode(self, data: bytes) -> dict[str, Any]:
        """Decode a native message to a map."""
        ...

    async def end_session(self, session: str, principal: Principal) -> None:
        """Forget a session whose connection ended."""
        ...


class NativeDialect:
    """Speaks the native protocol for a served model of any family.

    A bad field costs its request an error and nothing else. Bytes that are no message of the protocol end the session
    after a typed error, since nothing that follows them can be trusted to line up.

    Args:
        contract: gives the wire form of what the server says of itself on connect; `messages`: what it answers.
    """

    def __init__(self, server: Speaker, contract: Callable[[], Mapping[str, Any]], messages: Messages) -> None:
        self._server = server
        self._messages = messages
        self._contract = contract

    async def serve(self, session: WebsocketSession) -> None:
        """Speak until the peer leaves."""
        running: set[asyncio.Task[None]] = set()
        try:
            await session.send(encode(self._contract()))
            await self._converse(session, running)
        except RoboserveError as error:
            log_error(error, service=self._server.name, transport="websocket")
            await session.send(encode(error.to_map()))
            await session.close(error.kind.websocket, str(error))
        finally:
            for task in running:
                task.cancel()
            await self._server.end_session(session.id, session.principal)

    async def _converse(self, session: WebsocketSession, running: set[asyncio.Task[None]]) -> None:
        while True:
            data = await session.receive(awaited=running)
            received = time.perf_counter()
            message = self._server.decode(data)
            if len(running) >= session.limits.in_flight:
                text = f"session: {len(running)} requests are unanswered, limit {session.limits.in_flight}"
                error = RoboserveError("overloaded", text, request_id=request_id_of(message))
                await session.send(encode(error.to_map()))
                continue
            task = asyncio.create_task(self._answer(session, message, received))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _answer(self, session: WebsocketSession, message: dict[str, Any], received: float) -> None:
        answer = await self._messages.answer(message, session.principal, session=session.id, received=received)
        try:
            await session.send(answer.body)
        except PeerGoneError:  # the session itself notices on its next receive
            return
