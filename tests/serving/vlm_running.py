"""A VLM server behind a real socket, without Ray: uvicorn in a thread."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

import uvicorn

from serving.ports import free_port
from serving.vlm.config import VlmArgs
from serving.vlm.server import VlmServer

if TYPE_CHECKING:
    from pathlib import Path


def vlm_arguments(folder: Path, *, engine: Any = None, **changes: Any) -> VlmArgs:
    settings = {"kind": "transformers", "checkpoint": str(folder), "context": 512, **(engine or {})}
    return VlmArgs.model_validate({"name": "mine", "engine": settings, **changes})


class RunningVlm:
    """Serves until the block ends."""

    def __init__(self, args: VlmArgs) -> None:
        self._args = args
        self.port = free_port()
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        while not self._ready.wait(0.05):
            assert self._thread.is_alive(), "the server did not start"
        return self

    def __exit__(self, *details: object) -> None:
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join(20)

    async def _serve(self) -> None:
        self.server = await VlmServer.start(self._args)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(self.server.app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
        )
        serving = asyncio.create_task(self._uvicorn.serve())
        while not self._uvicorn.started:  # noqa: ASYNC110  uvicorn offers nothing to wait for
            await asyncio.sleep(0.01)
        self._ready.set()
        await serving
        await self.server.close()
