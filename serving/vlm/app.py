"""A served vision-language model: one Ray Serve application, whose engine other applications may ask by a handle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from ray import serve

from serving.replica import Replica, check_door
from serving.vlm.config import VlmArgs
from serving.vlm.server import VlmServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from models.vlm.messages import Message
    from serving.vlm.contract import LabelReading, VlmChunk, VlmRequest, VlmSpec


# The reasons of these values: as for policies (`serving.policy`), but for two.
# - graceful shutdown: an answer under way is let end; it takes seconds.
# - health checks: a start of vLLM takes tens of seconds, and nobody's robot holds for it.
@serve.deployment(
    name="VlmService",
    max_ongoing_requests=1024,
    max_queued_requests=64,
    health_check_period_s=5,
    health_check_timeout_s=30,
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress()
class VlmService(Replica):
    """The deployment: a `VlmServer` inside a Ray Serve replica."""

    async def __init__(self, args: VlmArgs) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        check_door(args)
        self._vlm = await VlmServer.start(args, replica=serve.get_replica_context().replica_id.unique_id)
        # After the model is there: a start that yields to a busy fleet would take for ever. Threads made later, such as
        # the one that forwards run on, inherit it.
        os.nice(args.niceness)
        self._serve(self._vlm)

    async def describe(self) -> tuple[VlmSpec, dict[str, str]]:
        """Tell another application what the engine runs; see `serving.vlm.app_engine`."""
        return self._vlm.engine.spec, dict(self._vlm.engine.adapters)

    async def engine_stream(self, request: VlmRequest) -> AsyncIterator[VlmChunk]:
        """Answer another application."""
        async for chunk in self._vlm.answer(request):
            yield chunk

    async def engine_labels(
        self, messages: tuple[Message, ...], labels: tuple[str, ...], adapter: str | None
    ) -> LabelReading:
        """Read labels for another application."""
        return await self._vlm.engine.labels(messages, labels, adapter=adapter)


def build(args: VlmArgs) -> serve.Application:
    """Build the application: the `import_path` of a configuration file.

    Ray Serve hands over a plain map, for it reads annotations that are evaluated and ours are not.
    """
    deployment = cast("serve.Deployment", VlmService)  # what the decorators make of the class
    return deployment.bind(VlmArgs.model_validate(args))
