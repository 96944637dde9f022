"""The same client of a served preference labeller for asyncio: any number of calls under way on one connection."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Optional, Sequence, Tuple, Type

from clients import wire
from clients.channel_async import AsyncChannel, open_connection
from clients.connection import parse_address
from clients.errors import RoboserveError
from clients.preference import is_last, read_part
from clients.preference_contract import PreferenceContract, read_preference_contract
from clients.preference_messages import LabelAsk, LabelPair, PreferenceLabel, PreferenceLabels, read_labels
from clients.reward import FIRST_PAUSE_S, LONGEST_PAUSE_S, ready

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    from typing_extensions import Self


class AsyncPreferenceClient:
    """A served labeller for one event loop; open it with `await AsyncPreferenceClient.open(...)`.

    Its methods, arguments and errors are those of `clients.preference.PreferenceClient`. Calls beyond the server's
    limit of requests under way wait here for their turn.
    """

    def __init__(
        self, connect: Callable[[], Any], channel: AsyncChannel[PreferenceContract], *, timeout_s: float, codec: str
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
        timeout_s: float = 300.0,
        codec: str = "png",
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> AsyncPreferenceClient:
        """Connect and read the server's contract.

        Raises:
            RoboserveError: as `clients.preference.PreferenceClient`.
        """
        address = parse_address(server, model, family="preference")

        async def connect() -> AsyncChannel[PreferenceContract]:
            connection, contract = await open_connection(
                address,
                read_preference_contract,
                api_key=api_key,
                connect_timeout_s=connect_timeout_s,
                timeout_s=timeout_s,
                limits=wire.DEFAULT_LIMITS,
                ssl=ssl,
            )
            return AsyncChannel(connection, contract, uri=address.uri, timeout_s=timeout_s, limits=wire.DEFAULT_LIMITS)

        return cls(connect, await connect(), timeout_s=timeout_s, codec=codec)

    @property
    def contract(self) -> PreferenceContract:
        """What the server said of itself on the latest connect."""
        return self._channel.contract

    async def label(
        self,
        pairs: Sequence[LabelPair],
        *,
        protocol: Optional[str] = None,
        order_swap: bool = False,
        votes: int = 1,
        tie_threshold: float = 0.0,
        audit: bool = False,
        job: Optional[str] = None,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> PreferenceLabels:
        """Ask which of two is nearer to its goal; see `clients.preference.PreferenceClient.label`."""
        ask = LabelAsk(pairs, protocol, order_swap, votes, tie_threshold, audit, job, deadline_ms)
        give_up = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                channel = await self._live()
                message = ready(ask.message(channel.contract, self._codec))
                most = int(channel.contract.limits["message_bytes"])
                async with self._room:
                    left = max(0.001, give_up - time.monotonic())
                    reply = await channel.exchange(message, left, max_bytes=most)
                return read_labels(reply, pairs=len(pairs))
            except RoboserveError as error:
                if self._closed or not error.retryable or time.monotonic() + pause_s > give_up:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def stream(
        self,
        pairs: Sequence[LabelPair],
        *,
        protocol: Optional[str] = None,
        order_swap: bool = False,
        votes: int = 1,
        tie_threshold: float = 0.0,
        audit: bool = False,
        job: Optional[str] = None,
        timeout_s: Optional[float] = None,
    ) -> AsyncIterator[Tuple[int, PreferenceLabel]]:
        """Give labels as they come; see `clients.preference.PreferenceClient.stream`."""
        ask = LabelAsk(pairs, protocol, order_swap, votes, tie_threshold, audit, job, None, stream=True)
        channel = await self._live()
        most = int(channel.contract.limits["message_bytes"])
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        message = ready(ask.message(channel.contract, self._codec))
        async with self._room:
            async for reply in channel.replies(message, limit_s, max_bytes=most, last=is_last):
                if not is_last(reply):
                    yield read_part(reply, pairs=len(pairs))

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

    async def _live(self) -> AsyncChannel[PreferenceContract]:
        async with self._connecting:
            if self._closed:
                raise RoboserveError("unavailable", "this client was closed")
            if self._channel.failed:
                await self._channel.close()
                self._channel = await self._connect()
            return self._channel
