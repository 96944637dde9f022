"""The native messages of a preference service (label, ping); over a websocket labels may be sent as they come."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from clients.wire import encode
from serving.dialects.messages import Answer, answered, in_time, kind_of_message
from serving.dialects.native import NativeDialect
from serving.fields import short_text
from serving.preference_answers import LabelTally
from serving.preference_budget import Account
from serving.websocket import PeerGoneError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from serving.auth import Principal
    from serving.preference_answers import PairAnswer
    from serving.preference_server import PreferenceServer
    from serving.websocket import WebsocketSession

KINDS = ("label", "ping")


class PreferenceMessages:
    """Answers native messages for a labeller.

    Args:
        server: the labeller's server.
    """

    def __init__(self, server: PreferenceServer) -> None:
        self._server = server

    async def answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> Answer:
        """Answer one decoded message, errors included.

        Args:
            session: unused: nothing is remembered of a connection.
            received: `time.perf_counter` at receipt.
        """
        del session
        return await self.respond(message, principal, received=received, emit=None)

    async def respond(
        self,
        message: dict[str, Any],
        principal: Principal,
        *,
        received: float,
        emit: Callable[[bytes], Awaitable[None]] | None,
    ) -> Answer:
        """Answer as `answer` does; `emit` sends what comes before the reply, None where nothing can be."""
        work = self._counted(message, principal, received, emit)
        return await answered(work, message, service=self._server.name)

    async def _counted(
        self,
        message: dict[str, Any],
        principal: Principal,
        received: float,
        emit: Callable[[bytes], Awaitable[None]] | None,
    ) -> bytes:
        with self._server.metrics.counted(received):
            kind = kind_of_message(message, KINDS, service=self._server.name)
            if kind == "ping":
                return encode({"type": "pong", "request_id": short_text(message, "request_id")})
            return await self._label(message, principal, received, emit)

    async def _label(
        self,
        message: dict[str, Any],
        principal: Principal,
        received: float,
        emit: Callable[[bytes], Awaitable[None]] | None,
    ) -> bytes:
        server, tally = self._server, LabelTally()
        request_id = short_text(message, "request_id")
        request = server.parser.label(message)
        if request.stream and emit is None:
            raise RoboserveError("invalid_request", "stream: over HTTP, which has one reply; ask over the websocket")
        account = Account(principal.id, request.job)

        async def send(index: int, answer: PairAnswer) -> None:
            if emit is not None and request.stream:
                part = {"type": "label", "request_id": request_id, "index": index}
                await emit(encode({**part, "pair": _pair_map(answer, audit=request.audit)}))

        work = server.answers.label(request, account, tally, on_label=send)
        pairs = await in_time(work, request.deadline_ms, received, missing="every pair had its label")
        reply = {
            "type": "labels",
            "request_id": request_id,
            "protocol": request.options.protocol,
            "pairs": [] if request.stream else [_pair_map(pair, audit=request.audit) for pair in pairs],
            "counts": _counts(pairs),
            "usage": asdict(tally.usage),
            "left": server.budget.left(account),
            "model": server.described(),
        }
        return encode({**reply, "timings": {"total": (time.perf_counter() - received) * 1e3}})


class PreferenceDialect(NativeDialect):
    """The native dialect whose answer to one message may come in parts.

    Args:
        server: as for `NativeDialect`; `messages`: what it answers.
    """

    def __init__(self, server: PreferenceServer, messages: PreferenceMessages) -> None:
        super().__init__(server, self._described, messages)
        self._labeller, self._parts = server, messages

    def _described(self) -> dict[str, Any]:
        return self._labeller.contract.to_map()  # that of the adapter that answers now

    async def _answer(self, session: WebsocketSession, message: dict[str, Any], received: float) -> None:
        try:
            answer = await self._parts.respond(message, session.principal, received=received, emit=session.send)
            await session.send(answer.body)
        except PeerGoneError:  # the session itself notices on its next receive
            return


def _pair_map(answer: PairAnswer, *, audit: bool) -> dict[str, Any]:
    judgement = answer.judgement
    found: dict[str, Any] = {
        "label": judgement.label,
        "chances": list(judgement.chances),
        "source": answer.source,
        "abstained": judgement.abstained,
        "unparsed": judgement.unparsed,
        "given": None if judgement.given is None else list(judgement.given),
        "swapped": None if judgement.swapped is None else list(judgement.swapped),
        "order_gap": judgement.order_gap,
        "towards_first_shown": judgement.towards_first_shown,
        "mass": judgement.mass,
        "keys": [key.hex() for key in answer.keys],
    }
    return {**found, "replies": [asdict(reply) for reply in judgement.replies]} if audit else found


def _counts(pairs: Sequence[PairAnswer]) -> dict[str, int]:
    counts = {source: sum(pair.source == source for pair in pairs) for source in ("asked", "cached", "joined", "alike")}
    return counts | {
        "ties": sum(pair.judgement.label == -1 for pair in pairs),
        "abstained": sum(pair.judgement.abstained for pair in pairs),
        "unparsed": sum(pair.judgement.unparsed for pair in pairs),
    }
