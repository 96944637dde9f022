"""What the clients of served models share, for one event loop; see `clients.patient`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Generic, Mapping, Optional, Type

from clients import wire
from clients.channel_async import AsyncChannel, open_connection
from clients.connection import parse_address
from clients.errors import RoboserveError
from clients.patient import FIRST_PAUSE_S, LONGEST_PAUSE_S, Answer, Contract, most_bytes, ready

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    from typing_extensions import Self


class AsyncPatientClient(Generic[Contract]):
    """A served model for one event loop; open it with `await ....open(...)`.

    Calls beyond the server's limit of requests under way wait here for their turn.
    """

    CONTRACT: ClassVar[Type[Any]]
    """What the family's servers say of themselves."""
    PATIENCE_S: ClassVar[float] = 60.0

    def __init__(
        self, connect: Callable[[], Any], channel: AsyncChannel[Contract], *, timeout_s: float, codec: str
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._timeout_s, self._codec = timeout_s, codec
        self._closed = False
        self._connecting = asyncio.Lock()
        self._room = asyncio.Semaphore(int(channel.contract.limits["in_flight"]))

    @classmethod
    async def open(
        cls,
        server: str,
        *,
        model: Optional[str] = None,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 10.0,
        timeout_s: Optional[float] = None,
        codec: str = "png",
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> Self:
        """Connect and read the server's contract; arguments and errors as for `clients.patient.PatientClient`."""
        address = parse_address(server, model, family=cls.CONTRACT.FAMILY)
        limit_s = cls.PATIENCE_S if timeout_s is None else timeout_s

        async def connect() -> AsyncChannel[Contract]:
            connection, contract = await open_connection(
                address,
                cls.CONTRACT.read,
                api_key=api_key,
                connect_timeout_s=connect_timeout_s,
                timeout_s=limit_s,
                limits=wire.DEFAULT_LIMITS,
                ssl=ssl,
            )
            return AsyncChannel(connection, contract, uri=address.uri, timeout_s=limit_s, limits=wire.DEFAULT_LIMITS)

        return cls(connect, await connect(), timeout_s=limit_s, codec=codec)

    @property
    def contract(self) -> Contract:
        """What the server said of itself on the latest connect."""
        return self._channel.contract

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

    async def _live(self) -> AsyncChannel[Contract]:
        async with self._connecting:
            if self._closed:
                raise RoboserveError("unavailable", "this client was closed")
            if self._channel.failed:
                await self._channel.close()
                self._channel = await self._connect()
            return self._channel

    async def _exchange(
        self, channel: AsyncChannel[Contract], message: Mapping[str, Any], timeout_s: float
    ) -> Mapping[str, Any]:
        """Send a message in its turn and wait for the reply."""
        give_up = time.monotonic() + timeout_s
        async with self._room:
            left = max(0.001, give_up - time.monotonic())
            return await channel.exchange(ready(message), left, max_bytes=most_bytes(channel.contract))

    async def _patiently(
        self,
        message: Callable[[Contract], Mapping[str, Any]],
        read: Callable[[Mapping[str, Any]], Answer],
        timeout_s: Optional[float],
    ) -> Answer:
        """Send what `message` makes of the contract, read the reply; again, with growing pauses, where it may pass."""
        give_up = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                channel = await self._live()
                return read(await self._exchange(channel, message(channel.contract), give_up - time.monotonic()))
            except RoboserveError as error:
                if self._closed or not error.retryable or time.monotonic() + pause_s > give_up:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
