"""What the clients of served models share, for threads: one websocket, calls that are tried again."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Dict, Generic, Mapping, Optional, Type, TypeVar

from clients import wire
from clients.channel import Channel
from clients.connection import parse_address
from clients.errors import RoboserveError

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    from typing_extensions import Self

Contract = TypeVar("Contract", bound=Any)
Answer = TypeVar("Answer")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class PatientClient(Generic[Contract]):
    """A served model; any number of threads may call it at once, their requests share one websocket.

    What may pass (a full queue, a restart, a lost connection) is tried again within a call's time.

    Args:
        server: "host:port", or a ws:// or wss:// address.
        model: name of the model; None where the address has its route already.
        api_key: sent as `Authorization: Bearer`.
        connect_timeout_s: limit on one attempt to connect.
        timeout_s: how long an answer is waited for, attempts included, where a call does not say; None for the client's
            own `PATIENCE_S`.
        codec: how pictures given as arrays travel: "png" (exact), "jpeg" (smallest) or "raw" (exact, no work).
        ssl: context for wss; None verifies against the system's certificates.

    Raises:
        RoboserveError: `unavailable`, `unauthenticated`, `forbidden`, `not_found` or `contract_mismatch`.
    """

    CONTRACT: ClassVar[Type[Any]]
    """What the family's servers say of themselves."""
    PATIENCE_S: ClassVar[float] = 60.0

    def __init__(
        self,
        server: str,
        *,
        model: Optional[str] = None,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 10.0,
        timeout_s: Optional[float] = None,
        codec: str = "png",
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> None:
        self._address = parse_address(server, model, family=self.CONTRACT.FAMILY)
        self._api_key, self._ssl = api_key, ssl
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = self.PATIENCE_S if timeout_s is None else timeout_s
        self._codec = codec
        self._closed = False
        self._channel: Channel[Contract] = self._connect()

    @property
    def contract(self) -> Contract:
        """What the server said of itself on the latest connect."""
        return self._channel.contract

    @property
    def uri(self) -> str:
        """The address in use."""
        return self._address.uri

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

    def _connect(self) -> Channel[Contract]:
        return Channel(
            self._address,
            self.CONTRACT.read,
            api_key=self._api_key,
            connect_timeout_s=self._connect_timeout_s,
            timeout_s=self._timeout_s,
            limits=wire.DEFAULT_LIMITS,
            ssl=self._ssl,
        )

    def _live(self) -> Channel[Contract]:
        """Return a channel that works, connecting anew where the last one ended."""
        if self._closed:
            raise RoboserveError("unavailable", f"server {self._address.uri}: this client was closed")
        if self._channel.failed:
            self._channel = self._connect()
        return self._channel

    def _patiently(
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
                channel = self._live()
                return read(exchange(channel, message(channel.contract), give_up - time.monotonic()))
            except RoboserveError as error:
                if self._closed or not error.retryable or time.monotonic() + pause_s > give_up:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def exchange(channel: Channel[Any], message: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
    """Send one message within the server's limit of bytes, and return the reply to it.

    Raises:
        RoboserveError: the server's refusal, `too_large`, `deadline_exceeded` or `unavailable`.
    """
    return channel.exchange(ready(message), max(0.001, timeout_s), max_bytes=most_bytes(channel.contract))


def ready(message: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a message with an id of its own and without the entries that were left open."""
    return {
        **{name: value for name, value in message.items() if value is not None},
        "request_id": uuid.uuid4().hex,
    }


def most_bytes(contract: Any) -> int:
    """Return the largest message that a server takes, by its contract."""
    return int(contract.limits["message_bytes"])
