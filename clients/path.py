"""A typed client of a served path predictor, for threads. See `clients.path_async` for asyncio.

with PathClient("ws://127.0.0.1:8000/path/hamster") as client:
path = client.path(image, "put the mug on the shelf")          # uint8 (h, w, 3)
print(path.points, path.gripper_open)                          # 0 to 1 of the image; from each point on
with client.open(image, "put the mug on the shelf") as kept:   # asked once, read as often as you like
path = kept.get().path
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Optional, Sequence, Type, Union

from clients.path_contract import PathContract
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
from clients.patient import PatientClient, exchange

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from clients.images import Array

__all__ = ["PathAsk", "PathClient", "PathFailure", "PathQuery", "PathReplies", "PathReply", "PathSession"]

DEFAULTS = PathAsk()


class PathClient(PatientClient[PathContract]):
    """A served path predictor; any number of threads may call it at once, their requests share one websocket.

    What may pass (a full queue, a restart, a lost connection) is tried again within a call's time. A session is not:
    its path is gone with its server.

    Arguments and errors of the constructor: see `PatientClient`.
    """

    CONTRACT = PathContract
    PATIENCE_S = 120.0

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

    def exchange(self, message: Mapping[str, Any], timeout_s: Optional[float] = None) -> Mapping[str, Any]:
        """Send one message of the protocol and return the reply to it, without trying again."""
        return exchange(self._live(), message, self._timeout_s if timeout_s is None else timeout_s)

    def wired(self, image: Union[bytes, Array]) -> Any:
        """Return an image as this client sends it."""
        return wire_image(image, self._codec, "image")


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
