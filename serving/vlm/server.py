"""A vision-language model with its engine and transports: everything of the deployment that needs no Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from clients.errors import RoboserveError
from models.vlm import ADAPTER_NAME
from serving.auth import KeyRing
from serving.config import Strict
from serving.dialects.openai_chat import OpenaiChat
from serving.dialects.openai_schema import read_model
from serving.ingress import Ingress
from serving.metrics import VlmMetrics
from serving.native_http import standard_routes
from serving.service import Dialect, HttpReply, HttpRequest, Route
from serving.vlm.engines import make_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from serving.vlm.config import VlmArgs
    from serving.vlm.contract import VlmChunk, VlmEngine, VlmRequest


class AdapterChange(Strict):
    """What the operator's routes are told: a name, and for loading the folder, on the server's own disk."""

    name: str = Field(pattern=f"^{ADAPTER_NAME}$")
    folder: str | None = None


class VlmServer:
    """A served vision-language model; `start` makes one.

    Args:
        args: the application's arguments.
        engine: what answers.
        replica: id of this replica, for metrics.
    """

    family = "vlm"

    def __init__(self, args: VlmArgs, engine: VlmEngine, *, replica: str = "local") -> None:
        self.name = args.name
        self.limits = args.limits
        self.vlm_limits = args.vlm
        self.engine = engine
        self.created = int(time.time())
        self.metrics = VlmMetrics(model=args.name, replica=replica)
        self.dialects: dict[str | None, Dialect] = {}
        self.routes = {
            **standard_routes(self, self._contract),
            ("POST", "/adapters/load"): Route(handler=self._load_adapter, access="operator"),
            ("POST", "/adapters/unload"): Route(handler=self._unload_adapter, access="operator"),
            **OpenaiChat(self).routes,
        }
        keys = KeyRing.load(Path(args.auth.keys_file) if args.auth.keys_file else None)
        self.app = Ingress(self, limits=args.limits, keys=keys, metrics=self.metrics)

    @classmethod
    async def start(cls, args: VlmArgs, *, replica: str = "local") -> VlmServer:
        """Start the engine and the server; raises as `make_engine`."""
        return cls(args, await make_engine(args.engine), replica=replica)

    @property
    def names(self) -> tuple[str, ...]:
        """What callers may name: the model, and its adapters."""
        return (self.name, *self.engine.adapters)

    def adapter_of(self, model: str) -> str | None:
        """Return the adapter that a caller's model name stands for; None is the base.

        Raises:
            RoboserveError: `not_found`.
        """
        if model in (self.name, self.engine.spec.id):
            return None
        if model in self.engine.adapters:
            return model
        known = ", ".join(self.names)
        raise RoboserveError("not_found", f"model: no {model[:64]!r} is served here; served are {known}")

    async def answer(self, request: VlmRequest) -> AsyncGenerator[VlmChunk]:
        """Ask the engine, and count what it says."""
        started = time.perf_counter()
        stream = self.engine.stream(request)
        first = True
        try:
            async for chunk in stream:
                if first:
                    self.metrics.on_first_token(time.perf_counter() - started)
                    first = False
                if chunk.finish is not None:
                    self.metrics.on_tokens(prompt=chunk.prompt_tokens, answer=chunk.answer_tokens)
                yield chunk
        finally:
            await stream.aclose()

    def check_health(self) -> None:
        """Raise when this replica can serve no more."""
        self.engine.check_health()

    async def close(self) -> None:
        """End the engine."""
        await self.engine.close()

    def _contract(self) -> dict[str, Any]:
        spec = self.engine.spec
        return {
            "model": self.name,
            "id": spec.id,
            "revision": spec.revision,
            "content_hash": spec.content_hash,
            "engine": spec.engine,
            "dtype": spec.dtype,
            "adapters": dict(self.engine.adapters),
            "limits": {
                "context_tokens": spec.context,
                "images": spec.images,
                "image_pixels": self.limits.image_pixels,
                "message_bytes": self.limits.message_bytes,
                **self.vlm_limits.model_dump(),
            },
        }

    async def _load_adapter(self, request: HttpRequest) -> HttpReply:
        change = read_model(request.body, AdapterChange)
        if change.folder is None:
            raise RoboserveError("invalid_request", "folder: must name a folder on the server")
        await self.engine.load_adapter(change.name, Path(change.folder))
        return self._adapters_reply()

    async def _unload_adapter(self, request: HttpRequest) -> HttpReply:
        await self.engine.unload_adapter(read_model(request.body, AdapterChange).name)
        return self._adapters_reply()

    def _adapters_reply(self) -> HttpReply:
        body = json.dumps({"adapters": dict(self.engine.adapters)}).encode()
        return HttpReply(body=body, content_type="application/json")
