"""The native messages of a reward service (score, compare, open, append, close, ping), whatever carries them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from clients.wire import encode
from serving.dialects.messages import Answer, answered, kind_of_message
from serving.fields import short_text
from serving.reward_errands import Tally

if TYPE_CHECKING:
    from models.rewards.contract import RewardSpec
    from serving.auth import Principal
    from serving.reward_server import RewardServer

KINDS = ("score", "compare", "open", "append", "close", "ping")


def described(name: str, spec: RewardSpec) -> dict[str, Any]:
    """Return what every answer says of the model behind it; `name`: the one it is served under."""
    return {
        "id": name,
        "revision": spec.revision,
        "content_hash": spec.content_hash,
        "architecture": spec.architecture,
        "dtype": spec.dtype,
        "prompt_version": spec.prompt_version,
    }


class RewardMessages:
    """Answers native messages for a reward model.

    Args:
        server: the model's server.
    """

    def __init__(self, server: RewardServer) -> None:
        self._server = server
        self._model = described(server.name, server.spec)

    async def answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> Answer:
        """Answer one decoded message, errors included.

        Args:
            session: unused: a streaming session is always named.
            received: `time.perf_counter` at receipt.
        """
        del session
        return await answered(self._counted(message, principal, received), message, service=self._server.name)

    async def _counted(self, message: dict[str, Any], principal: Principal, received: float) -> bytes:
        with self._server.metrics.counted(received):
            return await self._answer(message, principal, received)

    async def _answer(self, message: dict[str, Any], principal: Principal, received: float) -> bytes:
        kind = kind_of_message(message, KINDS, service=self._server.name)
        request_id = short_text(message, "request_id")
        if kind == "score":
            reply = await self._score(message, received)
        elif kind == "compare":
            reply = await self._compare(message, received)
        elif kind == "open":
            reply = self._open(message, principal)
        elif kind == "append":
            reply = await self._append(message, principal, received)
        elif kind == "close":
            self._server.close_stream(message, principal)
            reply = {"type": "closed"}
        else:
            reply = {"type": "pong"}
        return encode({**reply, "request_id": request_id})

    async def _score(self, message: dict[str, Any], received: float) -> dict[str, Any]:
        server, tally = self._server, Tally()
        request = server.parser.score(message)
        clips = await server.answers.score(request, server.deadline(request.header, received), tally)
        policy = request.policy.name if request.indices is None else "indices"
        reply = {"type": "scores", "mode": request.mode, "frame_policy": policy, "clips": clips}
        return reply | self._ridden(tally, received)

    async def _compare(self, message: dict[str, Any], received: float) -> dict[str, Any]:
        server, tally = self._server, Tally()
        request = server.parser.compare(message)
        pairs = await server.answers.compare(request, server.deadline(request.header, received), tally)
        reply = {"type": "preferences", "frame_policy": request.policy.name, "pairs": pairs}
        return reply | self._ridden(tally, received)

    def _open(self, message: dict[str, Any], principal: Principal) -> dict[str, Any]:
        request = self._server.parser.open(message)
        stream = self._server.streams.open(
            principal, request.session, request.instruction, request.cameras, request.policy
        )
        return {
            "type": "opened",
            "session": stream.key.session,
            "frame_policy": stream.policy.name,
            "model": self._model,
        }

    async def _append(self, message: dict[str, Any], principal: Principal, received: float) -> dict[str, Any]:
        server, tally = self._server, Tally()
        request = server.parser.append(message)
        stream, values = await server.append(request, principal, server.deadline(request.header, received), tally)
        reply = {"type": "value", "mode": "final", "session": stream.key.session, "frame_policy": stream.policy.name}
        return {**reply, **values, **self._ridden(tally, received)}

    def _ridden(self, tally: Tally, received: float) -> dict[str, Any]:
        timings = {name: seconds * 1e3 for name, seconds in tally.times.items()}
        timings["total"] = (time.perf_counter() - received) * 1e3
        return {"model": self._model, "batch_size": tally.batch_size, "timings": timings}
