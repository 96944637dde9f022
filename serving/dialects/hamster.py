"""HAMSTER's own server: `POST /chat/completions` with its field names, on the replica that serves paths.

The route, the fields and their defaults are those of HAMSTER_beta's server (derived from VILA). Its demo writes the
whole prompt itself and reads `content[0]["text"]`, so a request with its fields (`use_cache`, `num_beams`) is answered
in that form; any other request is one of OpenAI's, and gets what an OpenAI client expects. Unlike there, an image comes
inline or not at all, both spellings of the model's name pass, and answers keep to the grammar where the service is
structured, so that the demo's parser finds a path in each.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from clients.errors import RoboserveError
from serving.dialects.openai_chat import OpenaiChat, error_body
from serving.dialects.openai_schema import Turn, read_model, read_turns
from serving.service import HttpReply, Route
from serving.vlm.contract import Sampling

if TYPE_CHECKING:
    from models.vlm.messages import Message
    from serving.path_planner import Said
    from serving.path_server import PathServer
    from serving.service import HttpRequest, HttpStream

NAMES = ("HAMSTER_dev", "Hamster_dev")
"""What upstream's server and its demo call the model; they differ."""
_MARKS = ("use_cache", "num_beams")


class HamsterRequest(BaseModel):
    """One request in upstream's words; `stream` and `use_cache` change nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    messages: list[Turn] = Field(min_length=1)
    max_tokens: int = Field(512, ge=1)
    top_p: float = Field(0.9, gt=0, le=1)
    temperature: float = Field(0.2, ge=0, le=2)
    stream: bool = False
    use_cache: bool = True
    num_beams: Annotated[int, Field(ge=1, le=1)] = 1


class HamsterChat:
    """The dialect of one path predictor.

    Args:
        server: what answers.
    """

    def __init__(self, server: PathServer) -> None:
        self._server = server
        stock = OpenaiChat(server).routes
        self._openai = stock["POST", "/chat/completions"].handler
        chat = Route(handler=self._chat, error_body=error_body)
        models = stock["GET", "/models"]
        self.routes = {
            (method, prefix + path): route
            for prefix in ("", "/v1")
            for method, path, route in (("POST", "/chat/completions", chat), ("GET", "/models", models))
        }

    async def _chat(self, request: HttpRequest) -> HttpReply | HttpStream:
        if not await asyncio.to_thread(has_marks, request.body):
            return await self._openai(request)
        server = self._server
        with server.metrics.counted(request.received):
            asked, messages = await asyncio.to_thread(self._read, request.body)
            server.adapter_of(asked.model)
            sampling = Sampling(max_tokens=asked.max_tokens, temperature=asked.temperature, top_p=asked.top_p)
            planner, parser = server.planner, server.parser
            constraint = planner.constraint(parser.most_points) if parser.defaults.structured else None
            said = await planner.say(messages, sampling, constraint)
            server.metrics.on_said(prompt=said.prompt_tokens, answer=said.answer_tokens)
        return HttpReply(body=json.dumps(_reply(asked.model, said)).encode(), content_type="application/json")

    def _read(self, body: bytes) -> tuple[HamsterRequest, tuple[Message, ...]]:
        server = self._server
        asked = read_model(body, HamsterRequest)
        if asked.max_tokens > server.vlm_limits.answer_tokens:
            limit = server.vlm_limits.answer_tokens
            raise RoboserveError("too_large", f"max_tokens: {asked.max_tokens}, limit {limit}")
        images, pixels = server.engine.spec.images, server.limits.image_pixels
        return asked, read_turns(asked.messages, server.vlm_limits, images=images, pixels=pixels)


def has_marks(body: bytes) -> bool:
    """Whether a request has a field that only HAMSTER's clients send."""
    if not any(f'"{mark}"'.encode() in body for mark in _MARKS):
        return False  # most requests need not be read twice
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and any(mark in found for mark in _MARKS)


def _reply(model: str, said: Said) -> dict[str, Any]:
    total = said.prompt_tokens + said.answer_tokens
    return {
        "id": secrets.token_hex(16),
        "object": "chat.completion",
        "created": time.time(),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": [{"type": "text", "text": said.text}]},
                "finish_reason": said.finish,
            }
        ],
        "usage": {
            "prompt_tokens": said.prompt_tokens,
            "completion_tokens": said.answer_tokens,
            "total_tokens": total,
        },
    }
