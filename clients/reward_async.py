"""The same client of a served reward model for asyncio: any number of calls under way on one connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, Mapping, Optional, Sequence, Union

from clients.patient_async import AsyncPatientClient
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
    read_scores,
    read_value,
)

if TYPE_CHECKING:
    from clients.channel_async import AsyncChannel


class AsyncRewardClient(AsyncPatientClient[RewardContract]):
    """A served reward model for one event loop; open it with `await AsyncRewardClient.open(...)`.

    Its methods, arguments and errors are those of `clients.reward.RewardClient`. Calls beyond the server's limit of
    requests under way wait here for their turn.
    """

    CONTRACT = RewardContract

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
        return await self._patiently(self._wired(ask), lambda reply: read_scores(reply, clips=len(clips)), timeout_s)

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
        return await self._patiently(
            self._wired(ask), lambda reply: read_preferences(reply, pairs=len(pairs)), timeout_s
        )

    def _wired(self, ask: Union[ScoreAsk, CompareAsk]) -> Callable[[RewardContract], Dict[str, Any]]:
        return lambda contract: ask.message(contract, self._codec)

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
        reply = await self._exchange(channel, message, self._timeout_s)
        name = str(reply.get("session"))
        return AsyncRewardSession(self._exchange, channel, name, codec=self._codec, timeout_s=self._timeout_s)


class AsyncRewardSession:
    """One episode whose frames are sent as they come; made by `AsyncRewardClient.session`."""

    def __init__(
        self,
        exchange: Callable[[AsyncChannel[RewardContract], Mapping[str, Any], float], Awaitable[Mapping[str, Any]]],
        channel: AsyncChannel[RewardContract],
        session: str,
        *,
        codec: str,
        timeout_s: float,
    ) -> None:
        self._exchange, self._channel = exchange, channel
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
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return read_value(await self._exchange(self._channel, message, limit_s))

    async def close(self) -> None:
        """Tell the server to forget the episode; one that is lost already is no error."""
        if not self._channel.failed:
            await self._exchange(self._channel, {"type": "close", "session": self.id}, self._timeout_s)
