"""The same client of a served reward model for asyncio: any number of calls under way on one connection."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Sequence, Type, TypeVar, Union

from clients import wire
from clients.channel_async import AsyncChannel, open_connection
from clients.connection import parse_address
from clients.errors import RoboserveError
from clients.reward import FIRST_PAUSE_S, LONGEST_PAUSE_S, ready
from clients.reward_asks import CompareAsk, ScoreAsk, append_message
from clients.reward_contract import RewardContract
from clients.reward_messages import (
    Clip,
    ClipPair,
    Frame,
    Frames,
    Preferences,
    Scores,
    Value,
    read_preferences,
    read_reward_contract,
    read_scores,
    read_value,
)

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    from typing_extensions import Self

_Answer = TypeVar("_Answer")


class _RewardChannel(AsyncChannel[RewardContract]):
    """A connection to a reward server that keeps to its number of requests under way."""

    async def ask(self, message: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """Send a message in its turn and wait for the reply; raises as `exchange`."""
        limit = int(self.contract.limits["message_bytes"])
        give_up = time.monotonic() + timeout_s
        async with self._room:
            return await self.exchange(ready(message), max(0.001, give_up - time.monotonic()), max_bytes=limit)

    @property
    def _room(self) -> asyncio.Semaphore:
        if not hasattr(self, "_semaphore"):
            self._semaphore = asyncio.Semaphore(int(self.contract.limits["in_flight"]))
        return self._semaphore


class AsyncRewardClient:
    """A served reward model for one event loop; open it with `await AsyncRewardClient.open(...)`.

    Its methods, arguments and errors are those of `clients.reward.RewardClient`. Calls beyond the server's limit of
    requests under way wait here for their turn.
    """

    def __init__(self, connect: Callable[[], Any], channel: _RewardChannel, *, timeout_s: float, codec: str) -> None:
        self._connect = connect
        self._channel = channel
        self._timeout_s, self._codec = timeout_s, codec
        self._closed = False
        self._connecting = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        server: str,
        *,
        model: Optional[str] = None,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        codec: str = "png",
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> AsyncRewardClient:
        """Connect and read the server's contract.

        Raises:
            RoboserveError: as `clients.reward.RewardClient`.
        """
        address = parse_address(server, model, family="reward")

        async def connect() -> _RewardChannel:
            connection, contract = await open_connection(
                address,
                read_reward_contract,
                api_key=api_key,
                connect_timeout_s=connect_timeout_s,
                timeout_s=timeout_s,
                limits=wire.DEFAULT_LIMITS,
                ssl=ssl,
            )
            return _RewardChannel(
                connection, contract, uri=address.uri, timeout_s=timeout_s, limits=wire.DEFAULT_LIMITS
            )

        return cls(connect, await connect(), timeout_s=timeout_s, codec=codec)

    @property
    def contract(self) -> RewardContract:
        """What the server said of itself on the latest connect."""
        return self._channel.contract

    async def score(
        self,
        clips: Sequence[Clip],
        *,
        mode: str = "prefix",
        frame_policy: Optional[str] = None,
        indices: Optional[Sequence[int]] = None,
        every: int = 1,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> Scores:
        """Ask for progress and success; see `clients.reward.RewardClient.score`."""
        ask = ScoreAsk(clips, mode, frame_policy, indices, every, deadline_ms)
        return await self._patiently(ask, lambda reply: read_scores(reply, clips=len(clips)), timeout_s)

    async def compare(
        self,
        pairs: Sequence[ClipPair],
        *,
        frame_policy: Optional[str] = None,
        swap: bool = False,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> Preferences:
        """Ask which of two clips is better; see `clients.reward.RewardClient.compare`."""
        ask = CompareAsk(pairs, frame_policy, swap, deadline_ms)
        return await self._patiently(ask, lambda reply: read_preferences(reply, pairs=len(pairs)), timeout_s)

    async def session(
        self,
        instruction: str,
        *,
        cameras: Sequence[str] = ("front",),
        frame_policy: Optional[str] = None,
        session: Optional[str] = None,
    ) -> AsyncRewardSession:
        """Begin an episode whose frames are sent one by one; see `clients.reward.RewardClient.open`."""
        channel = await self._live()
        message: Dict[str, Any] = {"type": "open", "instruction": instruction, "cameras": list(cameras)}
        message.update(frame_policy=frame_policy, session=session)
        reply = await channel.ask(message, self._timeout_s)
        return AsyncRewardSession(channel, str(reply.get("session")), codec=self._codec, timeout_s=self._timeout_s)

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

    async def _live(self) -> _RewardChannel:
        async with self._connecting:
            if self._closed:
                raise RoboserveError("unavailable", "this client was closed")
            if self._channel.failed:
                await self._channel.close()
                self._channel = await self._connect()
            return self._channel

    async def _patiently(
        self,
        ask: Union[ScoreAsk, CompareAsk],
        read: Callable[[Mapping[str, Any]], _Answer],
        timeout_s: Optional[float],
    ) -> _Answer:
        give_up = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                channel = await self._live()
                message = ask.message(channel.contract, self._codec)
                return read(await channel.ask(message, give_up - time.monotonic()))
            except RoboserveError as error:
                if self._closed or not error.retryable or time.monotonic() + pause_s > give_up:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class AsyncRewardSession:
    """One episode whose frames are sent as they come; made by `AsyncRewardClient.session`."""

    def __init__(self, channel: _RewardChannel, session: str, *, codec: str, timeout_s: float) -> None:
        self._channel = channel
        self._codec, self._timeout_s = codec, timeout_s
        self.id = session

    async def append(
        self,
        frames: Union[Frame, Frames, Mapping[str, Union[Frame, Frames]]],
        *,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> Value:
        """Send a frame, or several, and return the value after it; see `clients.reward.RewardSession.append`."""
        contract = self._channel.contract
        message = append_message(self.id, frames, contract, codec=self._codec, deadline_ms=deadline_ms)
        return read_value(await self._channel.ask(message, self._timeout_s if timeout_s is None else timeout_s))

    async def close(self) -> None:
        """Tell the server to forget the episode; one that is lost already is no error."""
        if not self._channel.failed:
            await self._channel.ask({"type": "close", "session": self.id}, self._timeout_s)
