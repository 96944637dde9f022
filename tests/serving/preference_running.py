"""A preference server behind a real socket, without Ray: uvicorn in a thread."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Self

import uvicorn

from serving.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from serving.preference_server import PreferenceServer


class RunningPreference:
    """Serves until `stop`; `start` again on the same port.

    Args:
        make: makes the server, on the loop that it then runs on.
    """

    def __init__(self, make: Callable[[], Awaitable[PreferenceServer]]) -> None:
        self.port = free_port()
        self._make = make
        self.start()

    @classmethod
    def of(cls, server: PreferenceServer) -> RunningPreference:
        async def make() -> PreferenceServer:
            return server

        return cls(make)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/preference/mine"

    def start(self) -> None:
        self._ready, self._failure = threading.Event(), None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(240), "the server did not start"
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        async def serve() -> None:
            try:
                self.server = await self._make()
            except BaseException as error:
                self._failure = error
                self._ready.set()
                raise
            config = uvicorn.Config(
                self.server.app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off"
            )
            self._uvicorn = uvicorn.Server(config)
            self.loop = asyncio.get_running_loop()
            running = asyncio.create_task(self._uvicorn.serve())
            while not self._uvicorn.started:  # noqa: ASYNC110  uvicorn tells it by nothing else
                await asyncio.sleep(0.01)
            self._ready.set()
            await running
            await self.server.close()

        asyncio.run(serve())

    def stop(self) -> None:
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        if self._thread.is_alive():
            self.stop()
