"""The engine of another application of the platform: one heavy model, asked by many services.

An answer takes hundreds of milliseconds, so the hop that a deployment handle costs is worth what it saves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from models.vlm.messages import Message
    from serving.vlm.contract import LabelReading, VlmChunk, VlmRequest, VlmSpec
    from serving.vlm.engines import AppSettings


_REFRESH_S = 5.0
"""How long an adapter, or a model, that was put in the place of another may go unnoticed here."""


class AppEngine:
    """Asks a VLM application's deployment; `connect` makes one."""

    def __init__(self, handle: Any, spec: VlmSpec, adapters: Mapping[str, str]) -> None:
        self._handle = handle
        self.spec = spec
        self._adapters = dict(adapters)
        self._refreshing: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, settings: AppSettings) -> AppEngine:
        """Find the application and ask what it runs.

        Raises:
            RoboserveError: `unavailable` where there is no such application, or it does not answer.
        """
        try:
            handle = serve.get_deployment_handle(settings.deployment, app_name=settings.application)
            spec, adapters = await handle.describe.remote()
        except (RayError, RayServeException) as error:
            raise RoboserveError("unavailable", f"engine: no application {settings.application!r} answers") from error
        engine = cls(handle, spec, adapters)
        engine._refreshing = asyncio.create_task(engine._refresh())
        return engine

    @property
    def adapters(self) -> Mapping[str, str]:
        """Name to content hash of the adapters, as of a few seconds ago."""
        return dict(self._adapters)

    async def stream(self, request: VlmRequest) -> AsyncGenerator[VlmChunk]:
        """Go on with a conversation; see `VlmEngine`."""
        answers = self._handle.options(stream=True).engine_stream.remote(request)
        try:
            async for chunk in answers:
                yield chunk
        except (RayError, RayServeException) as error:
            raise _typed(error) from error
        finally:
            answers.cancel()

    async def labels(
        self, messages: tuple[Message, ...], labels: tuple[str, ...], *, adapter: str | None = None
    ) -> LabelReading:
        """Return how probable each label is as the next token; see `VlmEngine`."""
        try:
            reading: LabelReading = await self._handle.engine_labels.remote(messages, labels, adapter)
        except (RayError, RayServeException) as error:
            raise _typed(error) from error
        return reading

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Refused: adapters are changed at the application that has them."""
        del folder
        raise RoboserveError("invalid_request", f"adapter: {name[:64]!r} must be loaded at the VLM application")

    async def unload_adapter(self, name: str) -> None:
        """Refused: adapters are changed at the application that has them."""
        raise RoboserveError("invalid_request", f"adapter: {name[:64]!r} must be unloaded at the VLM application")

    def check_health(self) -> None:
        """Nothing of its own can fail; a lost application shows at the next request."""

    async def close(self) -> None:
        """Ask no more what the application runs."""
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def _refresh(self) -> None:
        """Ask now and then what the application runs: what others keep is filed under it."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                self.spec, adapters = await self._handle.describe.remote()
            except (RayError, RayServeException):
                continue  # a request will say so
            self._adapters = dict(adapters)


def _typed(error: Exception) -> RoboserveError:
    """Return the error that the engine raised on the other side, or say that it cannot be reached."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RoboserveError):
        return cause
    return RoboserveError("unavailable", "vlm: the application that runs the model does not answer")
