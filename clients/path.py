"""A typed client of a served path predictor, for threads. See `clients.path_async` for asyncio.

with PathClient("ws://127.0.0.1:8000/path/hamster") as client:
path = client.path(image, "put the mug on the shelf")          # uint8 (h, w, 3)
print(path.points, path.gripper_open)                          # 0 to 1 of the image; from each point on
with client.open(image, "put the mug on the shelf") as kept:   # asked once, read as often as you like
path = kept.get().path
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Sequence, Type, TypeVar, Union

from clients import wire
from clients.channel import Channel
from clients.connection import parse_address
from clients.errors import RoboserveError
from clients.path_contract import read_path_contract
from clients.path_messages import (
    KeptReply,
    PathAsk,
    PathFailure,
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
    from clients.path_contract import PathContract

__all__ = ["PathAsk", "PathClient", "PathFailure", "PathQuery", "PathReplies", "PathReply", "PathSession"]

_Answer = TypeVar("_Answer")
DEFAULTS = PathAsk()


class PathClient:
    """A served path predictor; any number of threads may call it at once, their requests share one websocket.

    What may pass (a full queue, a restart, a lost connection) is tried again within a call's time. A session is not:
    its path is gone with its server.

    Args:
        server: "host:port", or a ws:// or wss:// address.
        model: name of the predictor; None where the address has its route already.
        api_key: sent as `Authorization: Bearer`.
        connect_timeout_s: limit on one attempt to connect.
        timeout_s: how long an answer is waited for, attempts included, where a call does not say.
        codec: how images given as arrays travel: "png" (exact), "jpeg" (smallest) or "raw" (exact, no work).
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
        timeout_s: float = 120.0,
        codec: str = "png",
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> None:
        self._address = parse_address(server, model, family="path")
        self._api_key, self._ssl = api_key, ssl
        self._connect_timeout_s, self._timeout_s = connect_timeout_s, timeout_s
        self._codec = codec
        self._closed = False
        self._channel: Channel[PathContract] = self._connect()

    @property
    def contract(self) -> PathContract:
        """What the server said of itself on the latest connect."""
        return self._channel.contract

    @property
    def uri(self) -> str:
        """The address in use."""
        return self._address.uri

    def path(
        self,
        image: Union[bytes, Array],
        instruction: str,
        ask: PathAsk = DEFAULTS,
        *,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> PathReply:
        """Ask for the path through one image.

        Raises:
            RoboserveError: as `paths`; `invalid_output` where the model's answer holds no path.
        """
        replies = self.paths([PathQuery(image, instruction)], ask, deadline_ms=deadline_ms, timeout_s=timeout_s)
        return one_path(replies)

    def paths(
        self,
        queries: Sequence[PathQuery],
        ask: PathAsk = DEFAULTS,
        *,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> PathReplies:
        """Ask for the paths through several images.

        Args:
            ask: `view` is "none", "center_crop", "pad" or "stretch"; `structured` allows only answers that are paths;
                `max_points`; `initial_open`: the gripper's state before the answer's first tag; `draw`: "demo" or
                "policy" for a drawing, `form` "overlay" or "concat", `canvas` (height, width) for one of another size;
                `audit` returns the model's own words.
            deadline_ms: budget of time from the server's receipt.

        Raises:
            RoboserveError: the server's refusal; what may pass, once `timeout_s` is over; `too_large` where a message
                would exceed the server's limits.
        """
        return self._patiently(
            lambda contract: {**ask.path(queries, contract, self._codec), "deadline_ms": deadline_ms},
            lambda reply: read_paths(reply, queries=len(queries)),
            timeout_s,
        )

    def open(
        self,
        image: Union[bytes, Array],
        instruction: str,
        ask: PathAsk = DEFAULTS,
        *,
        session: Optional[str] = None,
        timeout_s: Optional[float] = None,
    ) -> PathSession:
        """Ask once and have the server keep the path; a session of this name is replaced, for a new episode begins.

        Raises:
            RoboserveError: as `path`.
        """
        wired = wire_image(image, self._codec, "image")
        message = {"type": "open", "image": wired, "instruction": instruction, "options": ask.options()}
        reply = self._patiently(lambda _: {**message, "session": session}, read_kept, timeout_s)
        return PathSession(self, reply)

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

    def exchange(self, message: Mapping[str, Any], timeout_s: Optional[float] = None) -> Mapping[str, Any]:
        """Send one message of the protocol and return the reply to it, without trying again."""
        return _exchange(self._live(), message, self._timeout_s if timeout_s is None else timeout_s)

    def wired(self, image: Union[bytes, Array]) -> Any:
        """Return an image as this client sends it."""
        return wire_image(image, self._codec, "image")

    def _patiently(
        self,
        message: Callable[[PathContract], Dict[str, Any]],
        read: Callable[[Mapping[str, Any]], _Answer],
        timeout_s: Optional[float],
    ) -> _Answer:
        give_up = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                channel = self._live()
                return read(_exchange(channel, message(channel.contract), give_up - time.monotonic()))
            except RoboserveError as error:
                if self._closed or not error.retryable or time.monotonic() + pause_s > give_up:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _connect(self) -> Channel[PathContract]:
        return Channel(
            self._address,
            read_path_contract,
            api_key=self._api_key,
            connect_timeout_s=self._connect_timeout_s,
            timeout_s=self._timeout_s,
            limits=wire.DEFAULT_LIMITS,
            ssl=self._ssl,
        )

    def _live(self) -> Channel[PathContract]:
        """Return a channel that works, connecting anew where the last one ended."""
        if self._closed:
            raise RoboserveError("unavailable", f"server {self._address.uri}: this client was closed")
        if self._channel.failed:
            self._channel = self._connect()
        return self._channel


class PathSession:
    """A path that the server keeps; made by `PathClient.open`, ends with `close`. `reply` is the latest that was read.

    It outlives its connection: after a lost one `get` reads the path again, as long as the same replica answers.
    """

    def __init__(self, client: PathClient, reply: KeptReply) -> None:
        self._client = client
        self.id = reply.session
        self.reply = reply

    @property
    def path(self) -> PathReply:
        """The path as of the latest reply."""
        return self.reply.path

    def get(self) -> KeptReply:
        """Read the path again; the model is not asked, and nothing is drawn.

        Raises:
            RoboserveError: `not_found` where the server has forgotten it, or `unavailable`.
        """
        self.reply = read_kept(self._client.exchange({"type": "get", "session": self.id}))
        return self.reply

    def requery(
        self,
        image: Union[bytes, Array],
        instruction: Optional[str] = None,
        ask: PathAsk = DEFAULTS,
        *,
        timeout_s: Optional[float] = None,
    ) -> KeptReply:
        """Ask the model anew; where that fails, the server keeps the path that it had.

        Args:
            instruction, ask: what is None is as before.

        Raises:
            RoboserveError: as `PathClient.path`, and `not_found`.
        """
        message = {"type": "requery", "session": self.id, "image": self._client.wired(image)}
        more = {"instruction": instruction, "options": ask.options()}
        self.reply = read_kept(self._client.exchange({**message, **more}, timeout_s))
        return self.reply

    def close(self) -> None:
        """Tell the server to forget the path; one that is lost already is no error."""
        self._client.exchange({"type": "close", "session": self.id})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if error is None:
            self.close()


def one_path(replies: PathReplies) -> PathReply:
    """Return the only path of an answer.

    Raises:
        RoboserveError: `invalid_output` where the model's answer holds none.
    """
    [found] = replies.paths
    if isinstance(found, PathFailure):
        raise found.error()
    return found


def _exchange(channel: Channel[PathContract], message: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
    limit = int(channel.contract.limits["message_bytes"])
    return channel.exchange(ready(message), max(0.001, timeout_s), max_bytes=limit)
