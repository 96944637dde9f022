"""OpenAI's API over HTTP: `/models`, `/chat/completions`, plain and streamed; the `openai` SDK works unchanged."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import TYPE_CHECKING, Any, Protocol

from clients.errors import RoboserveError
from serving.dialects.openai_schema import parse_chat
from serving.ingress import log_error
from serving.service import HttpReply, HttpStream, Route
from serving.vlm.contract import VlmRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from serving.config import LimitSettings
    from serving.dialects.openai_schema import Chat
    from serving.metrics import ServiceMetrics
    from serving.service import HttpRequest
    from serving.vlm.config import VlmLimits
    from serving.vlm.contract import Token, VlmChunk, VlmEngine

_JSON = "application/json"
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ChatServer(Protocol):
    """What the dialect needs of a served model."""

    name: str
    created: int
    engine: VlmEngine
    limits: LimitSettings
    vlm_limits: VlmLimits

    @property
    def metrics(self) -> ServiceMetrics:
        """Where requests are counted."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """What the model may be called, its own name first."""
        ...

    def adapter_of(self, model: str) -> str | None:
        """Return the adapter that a name stands for; raises `not_found`."""
        ...

    def answer(self, request: VlmRequest) -> AsyncGenerator[VlmChunk]:
        """Ask the engine, and count what it says."""
        ...


class OpenaiChat:
    """The dialect of one served model.

    Args:
        server: what answers.
    """

    def __init__(self, server: ChatServer) -> None:
        self._server = server
        self.routes = {
            ("GET", "/models"): Route(handler=self._models, error_body=error_body),
            ("POST", "/chat/completions"): Route(handler=self._chat, error_body=error_body),
        }

    async def _models(self, _request: HttpRequest) -> HttpReply:
        server = self._server
        listed = [
            {
                "id": name,
                "object": "model",
                "created": server.created,
                "owned_by": "roboserve",
                "root": server.engine.spec.id,
                "parent": None if name == server.name else server.name,
                "max_model_len": server.engine.spec.context,
            }
            for name in server.names
        ]
        return HttpReply(body=json.dumps({"object": "list", "data": listed}).encode(), content_type=_JSON)

    async def _chat(self, request: HttpRequest) -> HttpReply | HttpStream:
        server = self._server
        with server.metrics.counted(request.received):
            chat = await asyncio.to_thread(
                parse_chat,
                request.body,
                server.vlm_limits,
                images=server.engine.spec.images,
                pixels=server.limits.image_pixels,
            )
            asked = VlmRequest(
                messages=chat.messages,
                sampling=chat.sampling,
                constraint=chat.constraint,
                adapter=server.adapter_of(chat.model),
            )
            answer = _Answer(chat, server.engine.spec.content_hash)
            chunks = server.answer(asked)
            if not chat.stream:
                return HttpReply(body=await answer.whole(chunks), content_type=_JSON)
            first = await anext(chunks)  # what is refused is refused with a status, before the stream begins
        return HttpStream(chunks=self._events(answer, first, chunks, request.received))

    async def _events(
        self, answer: _Answer, first: VlmChunk, rest: AsyncGenerator[VlmChunk], received: float
    ) -> AsyncGenerator[bytes]:
        try:
            with self._server.metrics.counted(received):
                yield answer.event({"role": "assistant", "content": ""})
                for event in answer.events(first):
                    yield event
                async for chunk in rest:
                    for event in answer.events(chunk):
                        yield event
        except RoboserveError as error:
            log_error(error, service=self._server.name, transport="http")
            yield b"data: " + json.dumps(error_body(error)).encode() + b"\n\n"
        finally:
            await rest.aclose()
        yield b"data: [DONE]\n\n"


class _Answer:
    """One answer in OpenAI's words."""

    def __init__(self, chat: Chat, content_hash: str) -> None:
        self._chat = chat
        self._facts = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": chat.model,
            "system_fingerprint": f"fp_{content_hash[:12]}" if content_hash else None,
        }

    async def whole(self, chunks: AsyncIterator[VlmChunk]) -> bytes:
        """Return the whole reply."""
        texts: list[str] = []
        tokens: list[Token] = []
        last: VlmChunk | None = None
        async for chunk in chunks:
            texts.append(chunk.text)
            tokens += chunk.tokens
            last = chunk
        if last is None or last.finish is None:
            raise RoboserveError("internal", "vlm: the engine's answer has no end")
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
            "finish_reason": last.finish,
            "logprobs": self._logprobs(tokens),
        }
        reply = {**self._facts, "object": "chat.completion", "choices": [choice], "usage": _usage(last)}
        return json.dumps(reply).encode()

    def events(self, chunk: VlmChunk) -> list[bytes]:
        """Return the events of a chunk; the last chunk brings the reason, and the usage where it was asked for."""
        found = []
        if chunk.text or chunk.tokens:
            found.append(self.event({"content": chunk.text}, chunk.tokens))
        if chunk.finish is not None:
            found.append(self.event({}, finish=chunk.finish))
            if self._chat.include_usage:
                found.append(self._line({"choices": [], "usage": _usage(chunk)}))
        return found

    def event(self, delta: dict[str, str], tokens: tuple[Token, ...] = (), finish: str | None = None) -> bytes:
        """Return one event."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        if tokens:
            choice["logprobs"] = self._logprobs(list(tokens))
        return self._line({"choices": [choice]})

    def _line(self, rest: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps({**self._facts, "object": "chat.completion.chunk", **rest}).encode() + b"\n\n"

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if self._chat.sampling.logprobs is None:
            return None
        return {"content": [_token(token) for token in tokens], "refusal": None}


def error_body(error: RoboserveError) -> dict[str, Any]:
    """Return an error in OpenAI's form, with our code in it."""
    kind = _KINDS.get(error.kind.http, "invalid_request_error" if error.kind.http < 500 else "server_error")
    field = error.message.partition(":")[0]
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": field if field.replace(".", "").replace("_", "").isalnum() else None,
            "code": error.code,
            "retryable": error.retryable,
        }
    }


def _usage(last: VlmChunk) -> dict[str, int]:
    total = last.prompt_tokens + last.answer_tokens
    return {"prompt_tokens": last.prompt_tokens, "completion_tokens": last.answer_tokens, "total_tokens": total}


def _token(token: Token) -> dict[str, Any]:
    top = [{"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in token.top]
    return {
        "token": token.text,
        "logprob": token.logprob,
        "bytes": list(token.text.encode()),
        "top_logprobs": top,
    }
