"""A reward server behind a real socket, without Ray: uvicorn in a thread, which a test can stop and start again."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

import uvicorn

from serving.ports import free_port
from tests.serving.rewards import reward_server

if TYPE_CHECKING:
    from serving.reward_server import RewardServer


class RunningReward:
    """Serves until `stop`; `start` again on the same port."""

    def __init__(self, config: Any = None, **changes: Any) -> None:
        self.port = free_port()
        self._arguments = (config, changes)
        self.start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/reward/mine"

    def start(self) -> None:
        config, changes = self._arguments
        self.server: RewardServer = reward_server(config, **changes)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(self.server.app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            threading.Event().wait(0.01)

    def _run(self) -> None:
        async def serve() -> None:
            await self._uvicorn.serve()
            await self.server.close()

        asyncio.run(serve())

    def stop(self) -> None:
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join(20)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port)) != 0, "the server outlived its stop"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        if self._thread.is_alive():
            self.stop()
