"""The same client of a served path predictor for asyncio: any number of calls under way on one connection."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Sequence, Type, TypeVar, Union

from clients import wire
from clients.channel_async import AsyncChannel, open_connection
from clients.connection import parse_address
from clients.errors import RoboserveError
from clients.path import DEFAULTS, one_path
from clients.path_contract import PathContract, read_path_contract
from clients.path_messages import (
    KeptReply,
    PathAsk,
    PathQuery,
    PathReplies,
    PathReply,
    read_kept,
    read_paths,
    wire_image,
)
from clients.reward import FIRST_PAUSE_S, LONGEST_PAUSE_S, ready

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    from typing_extensions import Self

    from clients.images import Array

_Answer = TypeVar("_Answer")


class AsyncPathClient:
    """A served path predictor for one event loop; open it with `await AsyncPathClient.connected(...)`.

    Its calls, arguments and errors are those of `clients.path.PathClient`. Calls beyond the server's limit of requests
    under way wait here for their turn.
    """

    def __init__(
        self, connect: Callable[[], Any], channel: AsyncChannel[PathContract], *, timeout_s: float, codec: str
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._timeout_s, self._codec = timeout_s, codec
        self._closed = False
        self._connecting = asyncio.Lock()
        self._room = asyncio.Semaphore(int(channel.contract.limits["in_flight"]))

    @classmethod
    async def connected(
        cls,
        server: str,
        *,
        model: Optional[str] = None,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 120.0,
        codec: str = "png",
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> AsyncPathClient:
        """Connect and read the server's contract.

        Raises:
            RoboserveError: as `clients.path.PathClient`.
        """
        address = parse_address(server, model, family="path")

        async def connect() -> AsyncChannel[PathContract]:
            connection, contract = await open_connection(
                address,
                read_path_contract,
                api_key=api_key,
                connect_timeout_s=connect_timeout_s,
                timeout_s=timeout_s,
                limits=wire.DEFAULT_LIMITS,
                ssl=ssl,
            )
            return AsyncChannel(connection, contract, uri=address.uri, timeout_s=timeout_s, limits=wire.DEFAULT_LIMITS)

        return cls(connect, await connect(), timeout_s=timeout_s, codec=codec)

    @property
    def contract(self) -> PathContract:
        """What the server said of itself on the latest connect."""
        return self._channel.contract

    async def path(
        self,
        image: Union[bytes, Array],
        instruction: str,
        ask: PathAsk = DEFAULTS,
        *,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> PathReply:
        """Ask for the path through one image; see `clients.path.PathClient.path`."""
        query = PathQuery(image, instruction)
        return one_path(await self.paths([query], ask, deadline_ms=deadline_ms, timeout_s=timeout_s))

    async def paths(
        self,
        queries: Sequence[PathQuery],
        ask: PathAsk = DEFAULTS,
        *,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> PathReplies:
        """Ask for the paths through several images; see `clients.path.PathClient.paths`."""
        return await self._patiently(
            lambda contract: {**ask.path(queries, contract, self._codec), "deadline_ms": deadline_ms},
            lambda reply: read_paths(reply, queries=len(queries)),
            timeout_s,
        )

    async def open(
        self,
        image: Union[bytes, Array],
        instruction: str,
        ask: PathAsk = DEFAULTS,
        *,
        session: Optional[str] = None,
        timeout_s: Optional[float] = None,
    ) -> KeptReply:
        """Ask once and have the server keep the path; see `clients.path.PathClient.open`."""
        wired = wire_image(image, self._codec, "image")
        message = {"type": "open", "image": wired, "instruction": instruction, "options": ask.options()}
        return await self._patiently(lambda _: {**message, "session": session}, read_kept, timeout_s)

    async def get(self, session: str) -> KeptReply:
        """Read a kept path again; see `clients.path.PathSession.get`."""
        return read_kept(await self._exchange({"type": "get", "session": session}, self._timeout_s))

    async def requery(
        self,
        session: str,
        image: Union[bytes, Array],
        instruction: Optional[str] = None,
        ask: PathAsk = DEFAULTS,
        *,
        timeout_s: Optional[float] = None,
    ) -> KeptReply:
        """Ask the model anew for a kept path; see `clients.path.PathSession.requery`."""
        wired = wire_image(image, self._codec, "image")
        message = {"type": "requery", "session": session, "image": wired, "instruction": instruction}
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return read_kept(await self._exchange({**message, "options": ask.options()}, limit_s))

    async def forget(self, session: str) -> None:
        """Tell the server to forget a kept path; one that is lost already is no error."""
        await self._exchange({"type": "close", "session": session}, self._timeout_s)

    async def close(self) -> None:
        """Close the connection; calls that wait end with `unavailable`."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()

    async def _patiently(
        self,
        message: Callable[[PathContract], Dict[str, Any]],
        read: Callable[[Mapping[str, Any]], _Answer],
        timeout_s: Optional[float],
    ) -> _Answer:
        give_up = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                channel = await self._live()
                return read(await self._exchange(message(channel.contract), give_up - time.monotonic()))
            except RoboserveError as error:
                if self._closed or not error.retryable or time.monotonic() + pause_s > give_up:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _exchange(self, message: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        channel = await self._live()
        most = int(channel.contract.limits["message_bytes"])
        async with self._room:
            return await channel.exchange(ready(message), max(0.001, timeout_s), max_bytes=most)

    async def _live(self) -> AsyncChannel[PathContract]:
        async with self._connecting:
            if self._closed:
                raise RoboserveError("unavailable", "this client was closed")
            if self._channel.failed:
                await self._channel.close()
                self._channel = await self._connect()
            return self._channel
