"""The native websocket dialect (`roboserve.v1`): the contract first, then requests that may overlap, by their ids."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from clients.wire import encode
from serving.ingress import PeerGoneError, log_error

if TYPE_CHECKING:
    from serving.ingress import WebsocketSession
    from serving.policy import PolicyServer


class NativeDialect:
    """Speaks the native protocol for a policy.

    A bad field costs its request an error and nothing else. Bytes that are no message of the protocol end the session
    after a typed error, since nothing that follows them can be trusted to line up.
    """

    def __init__(self, server: PolicyServer) -> None:
        self._server = server

    async def serve(self, session: WebsocketSession) -> None:
        """Speak until the peer leaves."""
        await session.send(encode(self._server.contract.to_map()))
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                data = await session.receive()
                received = time.perf_counter()
                message = self._server.decode(data)
                if len(running) >= session.limits.in_flight:
                    await self._refuse(session, message)
                    continue
                task = asyncio.create_task(self._answer(session, message, received))
                running.add(task)
                task.add_done_callback(running.discard)
        except RoboserveError as error:
            log_error(error, service=self._server.name, transport="websocket")
            await session.send(encode(error.to_map()))
            await session.close(error.kind.websocket, str(error))
        finally:
            for task in running:
                task.cancel()
            await self._server.reset(session.id, session.principal)

    async def _answer(self, session: WebsocketSession, message: dict[str, Any], received: float) -> None:
        reply = await self._server.answer(message, session.principal, session=session.id, received=received)
        try:
            await session.send(reply)
        except PeerGoneError:
            return

    async def _refuse(self, session: WebsocketSession, message: dict[str, Any]) -> None:
        text = f"session: {session.limits.in_flight} requests are unanswered, which is the limit"
        error = RoboserveError("overloaded", text, request_id=str(message.get("request_id"))[:128])
        await session.send(encode(error.to_map()))
