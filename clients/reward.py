"""A typed client of a served reward model, for threads. See `clients.reward_async` for asyncio.

with RewardClient("ws://127.0.0.1:8000/reward/robometer") as client:
scores = client.score([Clip("open the drawer", frames)])      # uint8 (T, h, w, 3)
print(scores.clips[0].progress)                               # a value for every frame
with client.open("open the drawer") as episode:               # one frame up the wire at a time
value = episode.append(frame).progress
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Sequence, Type, Union

from clients.patient import PatientClient, exchange
from clients.reward_asks import CompareAsk, ScoreAsk, append_message
from clients.reward_contract import RewardContract
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
    read_scores,
    read_value,
)

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from clients.channel import Channel

__all__ = ["Clip", "ClipPair", "ClipScore", "RewardClient", "RewardSession", "Scores", "Value", "Video"]


class RewardClient(PatientClient[RewardContract]):
    """A served reward model; any number of threads may call it at once, their requests share one websocket.

    `score` and `compare` change nothing on the server, so what may pass (a full queue, a restart, a lost connection) is
    tried again within the call's time. A streaming session is not: its frames are gone with its server.

    Arguments and errors of the constructor: see `PatientClient`.
    """

    CONTRACT = RewardContract

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
        return self._patiently(self._wired(ask), lambda reply: read_scores(reply, clips=len(clips)), timeout_s)

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
        return self._patiently(self._wired(ask), lambda reply: read_preferences(reply, pairs=len(pairs)), timeout_s)

    def _wired(self, ask: Union[ScoreAsk, CompareAsk]) -> Callable[[RewardContract], Dict[str, Any]]:
        return lambda contract: ask.message(contract, self._codec)

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
        reply = exchange(channel, {**message, "frame_policy": frame_policy}, self._timeout_s)
        return RewardSession(channel, str(reply.get("session")), codec=self._codec, timeout_s=self._timeout_s)


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
        return read_value(exchange(self._channel, message, self._timeout_s if timeout_s is None else timeout_s))

    def close(self) -> None:
        """Tell the server to forget the episode; one that is lost already is no error."""
        if not self._channel.failed:
            exchange(self._channel, {"type": "close", "session": self.id}, self._timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if error is None:
            self.close()
