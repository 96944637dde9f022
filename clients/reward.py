"""A typed client of a served reward model, for threads. See `clients.reward_async` for asyncio.

with RewardClient("ws://127.0.0.1:8000/reward/robometer") as client:
scores = client.score([Clip("open the drawer", frames)])      # uint8 (T, h, w, 3)
print(scores.clips[0].progress)                               # a value for every frame
with client.open("open the drawer") as episode:               # one frame up the wire at a time
value = episode.append(frame).progress
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Sequence, Type, TypeVar, Union

from clients import wire
from clients.channel import Channel
from clients.connection import parse_address
from clients.errors import RoboserveError
from clients.reward_asks import CompareAsk, ScoreAsk, append_message
from clients.reward_messages import (
    Clip,
    ClipPair,
    ClipScore,
    Frame,
    Frames,
    Preferences,
    Scores,
    Value,
    Video,
    read_preferences,
    read_reward_contract,
    read_scores,
    read_value,
)

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    from typing_extensions import Self

    from clients.reward_contract import RewardContract

__all__ = ["Clip", "ClipPair", "ClipScore", "RewardClient", "RewardSession", "Scores", "Value", "Video"]

_Answer = TypeVar("_Answer")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class RewardClient:
    """A served reward model; any number of threads may call it at once, their requests share one websocket.

    `score` and `compare` change nothing on the server, so what may pass (a full queue, a restart, a lost connection) is
    tried again within the call's time. A streaming session is not: its frames are gone with its server.

    Args:
        server: "host:port", or a ws:// or wss:// address.
        model: name of the reward model; None where the address has its route already.
        api_key: sent as `Authorization: Bearer`.
        connect_timeout_s: limit on one attempt to connect.
        timeout_s: how long an answer is waited for, attempts included, where a call does not say.
        codec: how frames given as arrays travel: "png" (exact), "jpeg" (smallest) or "raw" (exact, no work).
        ssl: context for wss; None verifies against the system's certificates.

    Raises:
        RoboserveError: `unavailable`, `unauthenticated`, `forbidden`, `not_found` or `contract_mismatch`.
    """

    def __init__(
        self,
        server: str,
        *,
        model: Optional[str] = None,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        codec: str = "png",
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> None:
        self._address = parse_address(server, model, family="reward")
        self._api_key, self._ssl = api_key, ssl
        self._connect_timeout_s, self._timeout_s = connect_timeout_s, timeout_s
        self._codec = codec
        self._closed = False
        self._channel: Channel[RewardContract] = self._connect()

    @property
    def contract(self) -> RewardContract:
        """What the server said of itself on the latest connect."""
        return self._channel.contract

    @property
    def uri(self) -> str:
        """The address in use."""
        return self._address.uri

    def score(
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
        """Ask for progress and success.

        Args:
            mode: "prefix" (a value for every frame, each from the frames up to it), "single_pass" (one look, a value
                for every frame shown) or "final" (one value).
            frame_policy: which frames are shown, such as "linspace-8"; None for the model's own.
            indices: the frames that are shown, instead of a policy; not with "prefix".
            every: with "prefix", only every n-th frame and the last.
            deadline_ms: budget from the server's receipt; work that is later than this is not run.

        Raises:
            RoboserveError: the server's refusal; what may pass, once `timeout_s` is over; `too_large` where a message
                would exceed the server's limit.
        """
        ask = ScoreAsk(clips, mode, frame_policy, indices, every, deadline_ms)
        return self._patiently(ask, lambda reply: read_scores(reply, clips=len(clips)), timeout_s)

    def compare(
        self,
        pairs: Sequence[ClipPair],
        *,
        frame_policy: Optional[str] = None,
        swap: bool = False,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> Preferences:
        """Ask which of two clips is better.

        Args:
            swap: ask in the other order too; the difference is the model's order bias.

        Raises:
            RoboserveError: as `score`.
        """
        ask = CompareAsk(pairs, frame_policy, swap, deadline_ms)
        return self._patiently(ask, lambda reply: read_preferences(reply, pairs=len(pairs)), timeout_s)

    def open(
        self,
        instruction: str,
        *,
        cameras: Sequence[str] = ("front",),
        frame_policy: Optional[str] = None,
        session: Optional[str] = None,
    ) -> RewardSession:
        """Begin an episode whose frames are sent one by one.

        Raises:
            RoboserveError: the server's refusal, or `unavailable`.
        """
        channel = self._live()
        message = {"type": "open", "instruction": instruction, "cameras": list(cameras), "session": session}
        reply = _exchange(channel, {**message, "frame_policy": frame_policy}, self._timeout_s)
        return RewardSession(channel, str(reply.get("session")), codec=self._codec, timeout_s=self._timeout_s)

    def close(self) -> None:
        """Close the connection; calls that wait end with `unavailable`."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _connect(self) -> Channel[RewardContract]:
        return Channel(
            self._address,
            read_reward_contract,
            api_key=self._api_key,
            connect_timeout_s=self._connect_timeout_s,
            timeout_s=self._timeout_s,
            limits=wire.DEFAULT_LIMITS,
            ssl=self._ssl,
        )

    def _live(self) -> Channel[RewardContract]:
        """Return a channel that works, connecting anew where the last one ended."""
        if self._closed:
            raise RoboserveError("unavailable", f"server {self._address.uri}: this client was closed")
        if self._channel.failed:
            self._channel = self._connect()
        return self._channel

    def _patiently(
        self,
        ask: Union[ScoreAsk, CompareAsk],
        read: Callable[[Mapping[str, Any]], _Answer],
        timeout_s: Optional[float],
    ) -> _Answer:
        give_up = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                channel = self._live()
                return read(_exchange(channel, ask.message(channel.contract, self._codec), give_up - time.monotonic()))
            except RoboserveError as error:
                if self._closed or not error.retryable or time.monotonic() + pause_s > give_up:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class RewardSession:
    """One episode whose frames are sent as they come; made by `RewardClient.open`, ends with `close`."""

    def __init__(self, channel: Channel[RewardContract], session: str, *, codec: str, timeout_s: float) -> None:
        self._channel = channel
        self._codec, self._timeout_s = codec, timeout_s
        self.id = session

    def append(
        self,
        frames: Union[Frame, Frames, Mapping[str, Union[Frame, Frames]]],
        *,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> Value:
        """Send a frame, or several, and return the value after the last one.

        Args:
            frames: uint8 (h, w, 3), encoded bytes, several frames in any form that a `Clip` takes, or a map of these by
                camera.

        Raises:
            RoboserveError: the server's refusal; `not_found` or `unavailable` where the session is lost with its
                server, so that the episode must be sent anew.
        """
        contract = self._channel.contract
        message = append_message(self.id, frames, contract, codec=self._codec, deadline_ms=deadline_ms)
        return read_value(_exchange(self._channel, message, self._timeout_s if timeout_s is None else timeout_s))

    def close(self) -> None:
        """Tell the server to forget the episode; one that is lost already is no error."""
        if not self._channel.failed:
            _exchange(self._channel, {"type": "close", "session": self.id}, self._timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if error is None:
            self.close()


def _exchange(channel: Channel[RewardContract], message: Dict[str, Any], timeout_s: float) -> Mapping[str, Any]:
    limit = int(channel.contract.limits["message_bytes"])
    return channel.exchange(ready(message), max(0.001, timeout_s), max_bytes=limit)


def ready(message: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a message with an id of its own and without the entries that were left open."""
    return {
        **{name: value for name, value in message.items() if value is not None},
        "request_id": uuid.uuid4().hex,
    }
