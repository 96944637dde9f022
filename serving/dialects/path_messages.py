"""The native messages of a path service (path, open, get, requery, close, ping), whatever carries them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from clients.wire import encode
from serving.dialects.messages import Answer, answered, in_time, kind_of_message
from serving.fields import short_text
from serving.path_answers import Answered, PathTally
from serving.path_planner import UnreadableAnswerError
from serving.path_requests import PathQuery, named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serving.auth import Principal
    from serving.path_planner import Plan
    from serving.path_requests import PathOptions
    from serving.path_server import PathServer
    from serving.path_sessions import KeptPath

KINDS = ("path", "open", "get", "requery", "close", "ping")
_LATE = "every path was there"


class PathMessages:
    """Answers native messages for a path predictor.

    Args:
        server: the predictor's server.
    """

    def __init__(self, server: PathServer) -> None:
        self._server = server

    async def answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> Answer:
        """Answer one decoded message, errors included.

        Args:
            session: unused: a kept path is always named, and outlives the connection that it was asked on.
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
        if kind == "path":
            reply = await self.path(message, received)
        elif kind == "open":
            reply = await self._open(message, principal, received)
        elif kind == "requery":
            reply = await self._requery(message, principal, received)
        elif kind == "get":
            reply = self._get(message, principal)
        elif kind == "close":
            self._server.sessions.close(principal, named(message))
            reply = {"type": "closed"}
        else:
            reply = {"type": "pong"}
        return encode({**reply, "request_id": request_id})

    async def path(self, message: dict[str, Any], received: float) -> dict[str, Any]:
        """Return the reply to a `path` message, without an id; `received`: `time.perf_counter` at receipt.

        Raises:
            RoboserveError: as `PathParser.path` and `PathAnswers.answer`, and `deadline_exceeded`.
        """
        request, tally = self._server.parser.path(message), PathTally()
        work = self._server.answers.answer(request.queries, request.options, tally)
        found = await in_time(work, request.deadline_ms, received, missing=_LATE)
        paths = [_told(one, request.options) for one in found]
        return {"type": "paths", "paths": paths, **self._ridden(tally, received)}

    async def _open(self, message: dict[str, Any], principal: Principal, received: float) -> dict[str, Any]:
        server, tally = self._server, PathTally()
        request = server.parser.open(message)
        key = server.sessions.key(principal, request.session)
        one = await self._ask_one(request.query, request.options, tally, request.deadline_ms, received)
        kept = server.sessions.keep(key, request.query.instruction, request.options, one.plan)
        return {**_kept_map(kept), "path": _answered_map(one, request.options), **self._ridden(tally, received)}

    async def _requery(self, message: dict[str, Any], principal: Principal, received: float) -> dict[str, Any]:
        server, tally = self._server, PathTally()
        request = server.parser.requery(message)
        kept = server.sessions.find(principal, request.session)
        async with kept.lock:
            options = server.parser.options(request.options, kept.options)
            instruction = request.instruction or kept.instruction
            query = PathQuery(image=request.image, instruction=instruction, field="")
            one = await self._ask_one(query, options, tally, request.deadline_ms, received)
            server.sessions.replace(kept, instruction, options, one.plan)
        return {**_kept_map(kept), "path": _answered_map(one, options), **self._ridden(tally, received)}

    def _get(self, message: dict[str, Any], principal: Principal) -> dict[str, Any]:
        kept = self._server.sessions.find(principal, named(message))
        path = _plan_map(kept.plan, audit=kept.options.audit)
        return {**_kept_map(kept), "path": path, "model": self._server.planner.described()}

    async def _ask_one(
        self, query: PathQuery, options: PathOptions, tally: PathTally, deadline_ms: float | None, received: float
    ) -> Answered:
        work = self._server.answers.answer((query,), options, tally)
        [one] = await in_time(work, deadline_ms, received, missing=_LATE)
        if isinstance(one, UnreadableAnswerError):
            raise one
        return one

    def _ridden(self, tally: PathTally, received: float) -> dict[str, Any]:
        return {
            "model": self._server.planner.described(),
            "usage": {
                "calls": tally.calls,
                "prompt_tokens": tally.prompt_tokens,
                "answer_tokens": tally.answer_tokens,
            },
            "timings": {
                "decode": tally.decode_s * 1e3,
                "answer": tally.answer_s * 1e3,
                "total": (time.perf_counter() - received) * 1e3,
            },
        }


def _told(one: Answered | UnreadableAnswerError, options: PathOptions) -> dict[str, Any]:
    if isinstance(one, Answered):
        return _answered_map(one, options)
    error = {**one.to_map(), "reason": one.reason}
    return {"error": error, "answer": one.answer} if options.audit else {"error": error}


def _answered_map(one: Answered, options: PathOptions) -> dict[str, Any]:
    found = _plan_map(one.plan, audit=options.audit)
    return found if one.drawing is None else {**found, "drawing": one.drawing}


def _plan_map(plan: Plan, *, audit: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "points": plan.path.points,
        "gripper_open": plan.path.gripper_open,
        "answered": plan.answered,
        "form": plan.form,
        "finish": plan.said.finish,
        "issues": _issues(plan),
    }
    return {**found, "answer": plan.said.text} if audit else found


def _issues(plan: Plan) -> Sequence[dict[str, Any]]:
    return [{"code": code, "points": list(points)} for code, points in plan.issues.items()]


def _kept_map(kept: KeptPath) -> dict[str, Any]:
    return {
        "type": "kept",
        "session": kept.key.session,
        "instruction": kept.instruction,
        "queries": kept.queries,
    }
