"""The engine that asks a server that speaks OpenAI's API: another vLLM, SGLang, or a hosted model.

Its address is the operator's setting; nothing that a caller sends is ever an address. Labels are read from the tokens
that the server shows as likeliest, at most 20: a label that is not among them has no number, which is not zero.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

from clients.errors import RoboserveError
from serving.vlm.contract import LabelReading, Token, VlmChunk, VlmSpec, check_images

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from models.vlm.messages import Message
    from serving.vlm.contract import Constraint, VlmRequest
    from serving.vlm.engines import RemoteSettings

_TOP = 20
_AGAIN = (429, 502, 503)
_ANSWER_BYTES = 16 * 1024 * 1024


class RemoteEngine:
    """Asks another server.

    Args:
        settings: where it is, and what it is called there.

    Raises:
        ValueError: the environment variable that should hold the key is not set.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        headers = {}
        if settings.key_env is not None:
            key = os.environ.get(settings.key_env, "")
            if not key:
                raise ValueError(f"engine.key_env: the environment variable {settings.key_env} is not set")
            headers["authorization"] = f"Bearer {key}"
        self._settings = settings
        limits = httpx.Limits(max_connections=settings.connections)
        self._client = httpx.AsyncClient(
            base_url=settings.base_url.rstrip("/") + "/",
            headers=headers,
            timeout=settings.timeout_s,
            limits=limits,
            follow_redirects=False,
        )
        self._under_way = 0
        self.spec = VlmSpec(
            id=settings.model,
            revision="remote",
            content_hash="",
            engine="openai",
            dtype="remote",
            context=settings.context,
            images=settings.images,
        )

    @property
    def adapters(self) -> Mapping[str, str]:
        """Names of adapters that the server was said to have; their content is not known here."""
        return dict.fromkeys(self._settings.adapters, "")

    async def stream(self, request: VlmRequest) -> AsyncGenerator[VlmChunk]:
        """Go on with a conversation; see `VlmEngine`."""
        sampling = request.sampling
        body = await self._body(request.messages, request.adapter)
        body |= {
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if request.constraint is not None:
            body |= self._constraint(request.constraint)
        response = await self._post(body)
        try:
            async for chunk in _chunks(response):
                yield chunk
        except httpx.HTTPError as error:
            raise _lost() from error
        finally:
            await response.aclose()
            self._under_way -= 1

    async def labels(
        self, messages: tuple[Message, ...], labels: tuple[str, ...], *, adapter: str | None = None
    ) -> LabelReading:
        """Return how probable each label is as the next token; see `VlmEngine`."""
        body = await self._body(messages, adapter)
        body |= {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": _TOP}
        response = await self._post(body)
        try:
            data = _map(await _read(response))
            tops = data["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            table = {str(item["token"]): float(item["logprob"]) for item in tops}
            tokens = int((data.get("usage") or {}).get("prompt_tokens", 0))
        except httpx.HTTPError as error:
            raise _lost() from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RoboserveError("invalid_output", "vlm: the remote server tells no log-probabilities") from error
        finally:
            await response.aclose()
            self._under_way -= 1
        return LabelReading(logprobs=tuple(table.get(label) for label in labels), prompt_tokens=tokens)

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Refused: the server's adapters are the server's."""
        del folder
        raise RoboserveError("invalid_request", f"adapter: {name[:64]!r} must be loaded at the remote server")

    async def unload_adapter(self, name: str) -> None:
        """Refused: the server's adapters are the server's."""
        raise RoboserveError("invalid_request", f"adapter: {name[:64]!r} must be unloaded at the remote server")

    def check_health(self) -> None:
        """A server that cannot be reached shows at the next request; restarting this replica would not mend it."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _body(self, messages: Sequence[Message], adapter: str | None) -> dict[str, Any]:
        check_images(messages, self.spec)
        if adapter is not None and adapter not in self._settings.adapters:
            known = ", ".join(self._settings.adapters) or "none"
            raise RoboserveError("not_found", f"adapter: no {adapter[:64]!r} at the remote server; known are {known}")
        turns = await asyncio.to_thread(_turns, messages)
        return {"model": adapter or self._settings.model, "messages": turns}

    def _constraint(self, constraint: Constraint) -> dict[str, Any]:
        if self._settings.structured == "vllm":
            value = list(constraint.value) if constraint.kind == "choice" else constraint.value
            return {"structured_outputs": {constraint.kind: value}}
        if constraint.kind != "json":
            raise RoboserveError(
                "invalid_request", f"constraint: {constraint.kind} is not known to the remote server; json is"
            )
        schema = {"name": "answer", "strict": True, "schema": constraint.value}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        """Send a request, again where the server says so; the caller closes the response and gives its place back.

        Raises:
            RoboserveError: `overloaded`, `unavailable`, `invalid_request` or `too_large`.
        """
        if self._under_way >= self._settings.max_queue:
            raise RoboserveError(
                "overloaded", f"vlm: {self._under_way} requests under way, limit {self._settings.max_queue}"
            )
        self._under_way += 1
        try:
            return await self._tries(body)
        except BaseException:
            self._under_way -= 1
            raise

    async def _tries(self, body: dict[str, Any]) -> httpx.Response:
        status = 0
        for attempt in range(self._settings.retries + 1):
            if attempt:
                await asyncio.sleep(random.uniform(0.5, 1.0) * 2 ** (attempt - 1))  # noqa: S311  spreads callers out
            request = self._client.build_request("POST", "chat/completions", json=body)
            try:
                response = await self._client.send(request, stream=True)
            except httpx.HTTPError:
                continue
            if response.status_code == 200:
                return response
            status = response.status_code
            await response.aclose()
            if status not in _AGAIN:
                break
        if status == 429:
            raise RoboserveError("overloaded", "vlm: the remote server is overloaded")
        if status in (400, 404, 413, 422):
            raise RoboserveError("invalid_request", f"vlm: the remote server refused the request ({status})")
        raise _lost() if not status else RoboserveError("unavailable", f"vlm: the remote server answered {status}")


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": [_part(part) for part in message.content]} for message in messages]


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


async def _chunks(response: httpx.Response) -> AsyncIterator[VlmChunk]:
    """Read server-sent events; the last chunk comes when the server has told the usage."""
    finish: Any = None
    usage: dict[str, Any] = {}
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        text = line.removeprefix("data:").strip()
        if text == "[DONE]":
            break
        try:
            event = _map(text)
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                finish = choice.get("finish_reason") or finish
                delta, told = choice.get("delta") or {}, (choice.get("logprobs") or {}).get("content") or ()
                tokens = tuple(_token(item) for item in told)
                if delta.get("content") or tokens:
                    yield VlmChunk(text=delta.get("content") or "", tokens=tokens)
        except (KeyError, TypeError, ValueError) as error:
            raise RoboserveError("invalid_output", "vlm: the remote server's answer cannot be read") from error
    if finish is None:
        raise _lost()
    yield VlmChunk(
        text="",
        finish="length" if finish == "length" else "stop",
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        answer_tokens=int(usage.get("completion_tokens", 0)),
    )


def _token(item: dict[str, Any]) -> Token:
    top = tuple((str(other["token"]), float(other["logprob"])) for other in item.get("top_logprobs", ()))
    return Token(text=str(item["token"]), logprob=float(item["logprob"]), top=top)


async def _read(response: httpx.Response) -> str:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > _ANSWER_BYTES:
            raise RoboserveError("invalid_output", f"vlm: the remote server's answer is over {_ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts).decode("utf-8", "replace")


def _map(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("not a map")
    return value


def _lost() -> RoboserveError:
    return RoboserveError("unavailable", "vlm: the remote server cannot be reached")
