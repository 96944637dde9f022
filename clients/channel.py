"""One websocket to one served model, for threads: what the typed clients of all families share.

Every wait has a limit: connecting, sending to a stalled peer, and each answer.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Generator, Generic, Mapping, Optional, Set, Type, TypeVar

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from clients import wire
from clients.connection import connect_arguments, open_socket, refusal
from clients.errors import RoboserveError
from clients.frames import binary_frame, message_map

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    from typing_extensions import Self

    from clients.connection import Address

Contract = TypeVar("Contract")


class Channel(Generic[Contract]):
    """A connection that has read its server's contract; any number of threads share it, answers are told by request.

    Args:
        address: where the model answers.
        read_contract: reads the server's first message.
        api_key: sent as `Authorization: Bearer`.
        connect_timeout_s: limit on connecting, handshake and contract together.
        timeout_s: how long an answer is waited for where a call does not say.
        limits: caps on what the server may send.
        ssl: context for wss; None verifies against the system's certificates.

    Raises:
        RoboserveError: `unavailable`, `unauthenticated`, `forbidden`, `not_found` or `contract_mismatch`.
    """

    def __init__(
        self,
        address: Address,
        read_contract: Callable[[Any], Contract],
        *,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 10.0,
        limits: wire.WireLimits = wire.DEFAULT_LIMITS,
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> None:
        self._address = address
        self._read_contract = read_contract
        self._timeout_s = timeout_s
        self._limits = limits
        self._condition = threading.Condition()
        self._waiting: Set[str] = set()
        self._replies: Dict[str, Deque[Mapping[str, Any]]] = {}
        self._reading = False
        self._failure: Optional[RoboserveError] = None
        self._draining = False
        self._connection = self._open(api_key, ssl, connect_timeout_s)

    def _open(self, api_key: Optional[str], ssl: Optional[ssl_module.SSLContext], timeout_s: float) -> ClientConnection:
        arguments = connect_arguments(
            connect,
            self._address,
            api_key=api_key,
            ssl=ssl,
            connect_timeout_s=timeout_s,
            max_bytes=self._limits.message_bytes,
        )
        give_up = time.monotonic() + timeout_s
        sock = open_socket(self._address, connect_timeout_s=timeout_s, send_timeout_s=self._timeout_s)
        try:
            connection: ClientConnection = connect(self._address.uri, sock=sock, **arguments)
        except (OSError, EOFError, ValueError, WebSocketException) as error:
            sock.close()
            raise refusal(error, self._address.uri) from error
        try:
            first = connection.recv(timeout=max(0.0, give_up - time.monotonic()))
            self._contract = self._read_contract(wire.decode(binary_frame(first), self._limits))
        except (OSError, WebSocketException, RoboserveError) as error:
            connection.close()
            raise refusal(error, self._address.uri) from error
        return connection

    @property
    def contract(self) -> Contract:
        """What the server said of itself on connect."""
        return self._contract

    @property
    def uri(self) -> str:
        """The address in use."""
        return self._address.uri

    @property
    def failed(self) -> bool:
        """Whether the connection has ended; every further call would say why."""
        return self._failure is not None

    @property
    def draining(self) -> bool:
        """Whether the server has said that it is going away; finish, and connect anew."""
        return self._draining

    def ping(self, *, timeout_s: Optional[float] = None) -> float:
        """Return the round trip in ms of a message that costs the server nothing.

        Raises:
            RoboserveError: the server's refusal, `deadline_exceeded` without an answer, `unavailable` once the
                connection is gone.
        """
        start = time.monotonic()
        self.exchange({"type": "ping", "request_id": uuid.uuid4().hex}, timeout_s)
        return (time.monotonic() - start) * 1e3

    def poll(self) -> None:
        """Read notices that came unasked (such as draining) without waiting.

        Raises:
            RoboserveError: `unavailable` when the connection is gone.
        """
        with self._condition:
            self._raise_failure()
            if self._reading:
                return
            self._reading = True
        self._read(0.0)
        with self._condition:
            self._raise_failure()

    def close(self) -> None:
        """Close the connection; calls that wait end with `unavailable`."""
        self._fail(RoboserveError("unavailable", f"server {self._address.uri}: this client was closed"))
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def exchange(
        self, message: Dict[str, Any], timeout_s: Optional[float] = None, *, max_bytes: Optional[int] = None
    ) -> Mapping[str, Any]:
        """Send a message with a `request_id` and wait for the reply that carries it.

        Args:
            max_bytes: what the server takes; a longer message is not sent.

        Raises:
            RoboserveError: the server's refusal, `deadline_exceeded` when no answer came in time, `unavailable` when
                the connection is gone.
        """
        replies = self.replies(message, timeout_s, max_bytes=max_bytes, last=lambda _: True)
        try:
            return next(replies)
        finally:
            replies.close()

    def replies(
        self,
        message: Dict[str, Any],
        timeout_s: Optional[float] = None,
        *,
        max_bytes: Optional[int] = None,
        last: Callable[[Mapping[str, Any]], bool],
    ) -> Generator[Mapping[str, Any], None, None]:
        """Send a message with a `request_id` and give the replies that carry it, as they come; raises as `exchange`.

        Args:
            timeout_s: limit on all of them together.
            last: tells the reply that no other follows.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        give_up = time.monotonic() + limit_s
        request_id = str(message["request_id"])
        payload = wire.encode(message)
        if max_bytes is not None and len(payload) > max_bytes:
            raise RoboserveError("too_large", f"message: {len(payload)} bytes, the server takes {max_bytes}")
        with self._condition:
            self._raise_failure()
            self._waiting.add(request_id)
        try:
            self._send(payload)
            ended = False
            while not ended:
                reply = self._await(request_id, give_up, limit_s)
                if reply.get("type") == "error":
                    raise RoboserveError.from_map(reply).with_request_id(request_id)
                ended = last(reply)
                yield reply
        finally:
            with self._condition:
                self._waiting.discard(request_id)
                self._replies.pop(request_id, None)

    def _send(self, payload: bytes) -> None:
        try:
            self._connection.send(payload)
        except (OSError, WebSocketException) as error:
            failure = refusal(error, self._address.uri)
            self._fail(failure)
            raise failure from error

    def _await(self, request_id: str, give_up: float, limit_s: float) -> Mapping[str, Any]:
        # Whoever waits first reads for all; a thread of its own would add a hand-over to every answer.
        while True:
            with self._condition:
                while not self._replies.get(request_id):
                    self._raise_failure()
                    left = give_up - time.monotonic()
                    if left <= 0:
                        raise RoboserveError(
                            "deadline_exceeded", f"no answer within {limit_s * 1e3:.0f} ms", request_id=request_id
                        )
                    if not self._reading:
                        self._reading = True
                        break
                    self._condition.wait(left)
                else:
                    return self._replies[request_id].popleft()
            self._read(max(0.0, give_up - time.monotonic()))

    def _read(self, timeout_s: float) -> None:
        failure: Optional[RoboserveError] = None
        message: Optional[Mapping[str, Any]] = None
        try:
            message = message_map(wire.decode(binary_frame(self._connection.recv(timeout=timeout_s)), self._limits))
        except TimeoutError:
            pass
        except (OSError, WebSocketException, RoboserveError) as error:
            failure = refusal(error, self._address.uri)
        finally:
            # Also where the caller was interrupted: another thread may be waiting to read in its place.
            with self._condition:
                self._reading = False
                if message is not None:
                    failure = self._dispatch(message)
                if failure is not None and self._failure is None:
                    self._failure = failure
                self._condition.notify_all()

    def _dispatch(self, message: Mapping[str, Any]) -> Optional[RoboserveError]:
        request_id = message.get("request_id")
        if message.get("type") == "draining":
            self._draining = True
        elif request_id is None and message.get("type") == "error":
            return RoboserveError.from_map(message)
        elif request_id in self._waiting:
            self._replies.setdefault(str(request_id), deque()).append(message)
        return None

    def _fail(self, failure: RoboserveError) -> None:
        with self._condition:
            if self._failure is None:
                self._failure = failure
            self._condition.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RoboserveError(self._failure.code, self._failure.message)
