"""One websocket to one served model, for asyncio: one reader task, any number of calls under way."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Dict, Generic, Mapping, Optional, Tuple, Type, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

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


async def open_connection(
    address: Address,
    read_contract: Callable[[Any], Contract],
    *,
    api_key: Optional[str],
    connect_timeout_s: float,
    timeout_s: float,
    limits: wire.WireLimits,
    ssl: Optional[ssl_module.SSLContext],
) -> Tuple[ClientConnection, Contract]:
    """Connect and read the server's contract; arguments and errors as for `clients.channel.Channel`."""
    arguments = connect_arguments(
        connect,
        address,
        api_key=api_key,
        ssl=ssl,
        connect_timeout_s=connect_timeout_s,
        max_bytes=limits.message_bytes,
    )
    give_up = time.monotonic() + connect_timeout_s
    sock = await asyncio.get_running_loop().run_in_executor(
        None, lambda: open_socket(address, connect_timeout_s=connect_timeout_s, send_timeout_s=timeout_s)
    )
    sock.settimeout(0.0)
    try:
        connection = await connect(address.uri, sock=sock, **arguments)
    except (OSError, EOFError, ValueError, WebSocketException, asyncio.TimeoutError) as error:
        sock.close()
        raise refusal(error, address.uri) from error
    try:
        first = await asyncio.wait_for(connection.recv(), max(0.0, give_up - time.monotonic()))
        contract = read_contract(wire.decode(binary_frame(first), limits))
    except asyncio.TimeoutError as error:
        await connection.close()
        raise RoboserveError("unavailable", f"server {address.uri}: no answer in time") from error
    except (OSError, WebSocketException, RoboserveError) as error:
        await connection.close()
        raise refusal(error, address.uri) from error
    return connection, contract


class AsyncChannel(Generic[Contract]):
    """A connection that has read its server's contract, for one event loop; answers are told by request."""

    def __init__(
        self,
        connection: ClientConnection,
        contract: Contract,
        *,
        uri: str,
        timeout_s: float,
        limits: wire.WireLimits,
    ) -> None:
        self._connection = connection
        self._contract = contract
        self._uri = uri
        self._timeout_s = timeout_s
        self._limits = limits
        self._waiting: Dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self._streams: Dict[str, asyncio.Queue[Any]] = {}
        self._failure: Optional[RoboserveError] = None
        self._draining = False
        self._reader = asyncio.ensure_future(self._read())

    @property
    def contract(self) -> Contract:
        """What the server said of itself on connect."""
        return self._contract

    @property
    def failed(self) -> bool:
        """Whether the connection has ended; every further call would say why."""
        return self._failure is not None

    @property
    def draining(self) -> bool:
        """Whether the server has said that it is going away; finish, and connect anew."""
        return self._draining

    async def ping(self, *, timeout_s: Optional[float] = None) -> float:
        """Return the round trip in ms of a message that costs the server nothing.

        Raises:
            RoboserveError: the server's refusal, `deadline_exceeded` without an answer, `unavailable` once the
                connection is gone.
        """
        start = time.monotonic()
        await self.exchange({"type": "ping", "request_id": uuid.uuid4().hex}, timeout_s)
        return (time.monotonic() - start) * 1e3

    async def close(self) -> None:
        """Close the connection; calls that wait end with `unavailable`."""
        self._fail(RoboserveError("unavailable", f"server {self._uri}: this client was closed"))
        await self._connection.close()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()

    async def exchange(
        self, message: Dict[str, Any], timeout_s: Optional[float] = None, *, max_bytes: Optional[int] = None
    ) -> Mapping[str, Any]:
        """Send a message with a `request_id` and wait for the reply; errors as `clients.channel.Channel`."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        if self._failure is not None:
            raise RoboserveError(self._failure.code, self._failure.message)
        request_id = str(message["request_id"])
        payload = wire.encode(message)
        if max_bytes is not None and len(payload) > max_bytes:
            raise RoboserveError("too_large", f"message: {len(payload)} bytes, the server takes {max_bytes}")
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            reply = await asyncio.wait_for(self._send_and_wait(payload, answer), limit_s)
        except asyncio.TimeoutError as error:
            raise RoboserveError(
                "deadline_exceeded", f"no answer within {limit_s * 1e3:.0f} ms", request_id=request_id
            ) from error
        except (OSError, WebSocketException) as error:
            failure = refusal(error, self._uri)
            self._fail(failure)
            raise failure from error
        finally:
            self._waiting.pop(request_id, None)
        if reply.get("type") == "error":
            raise RoboserveError.from_map(reply).with_request_id(request_id)
        return reply

    async def replies(
        self,
        message: Dict[str, Any],
        timeout_s: float,
        *,
        max_bytes: Optional[int] = None,
        last: Callable[[Mapping[str, Any]], bool],
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Send a message and give its replies as they come; see `clients.channel.Channel.replies`."""
        if self._failure is not None:
            raise RoboserveError(self._failure.code, self._failure.message)
        request_id, give_up = str(message["request_id"]), time.monotonic() + timeout_s
        payload = wire.encode(message)
        if max_bytes is not None and len(payload) > max_bytes:
            raise RoboserveError("too_large", f"message: {len(payload)} bytes, the server takes {max_bytes}")
        came: asyncio.Queue[Any] = asyncio.Queue()
        self._streams[request_id] = came
        try:
            await self._within(self._connection.send(payload), give_up, timeout_s)
            ended = False
            while not ended:
                reply = await self._within(came.get(), give_up, timeout_s)
                if isinstance(reply, RoboserveError):
                    raise RoboserveError(reply.code, reply.message, request_id=request_id)
                if reply.get("type") == "error":
                    raise RoboserveError.from_map(reply).with_request_id(request_id)
                ended = last(reply)
                yield reply
        except (OSError, WebSocketException) as error:
            failure = refusal(error, self._uri)
            self._fail(failure)
            raise failure from error
        finally:
            self._streams.pop(request_id, None)

    @staticmethod
    async def _within(work: Any, give_up: float, limit_s: float) -> Any:
        try:
            return await asyncio.wait_for(work, max(0.0, give_up - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise RoboserveError("deadline_exceeded", f"no answer within {limit_s * 1e3:.0f} ms") from error

    async def _send_and_wait(self, payload: bytes, answer: asyncio.Future[Mapping[str, Any]]) -> Mapping[str, Any]:
        await self._connection.send(payload)
        return await answer

    async def _read(self) -> None:
        try:
            while True:
                self._dispatch(message_map(wire.decode(binary_frame(await self._connection.recv()), self._limits)))
        except (OSError, WebSocketException, RoboserveError) as error:
            self._fail(refusal(error, self._uri))

    def _dispatch(self, message: Mapping[str, Any]) -> None:
        request_id = message.get("request_id")
        if message.get("type") == "draining":
            self._draining = True
        elif request_id is None and message.get("type") == "error":
            raise RoboserveError.from_map(message)
        elif request_id in self._waiting and not self._waiting[request_id].done():
            self._waiting[request_id].set_result(message)
        elif request_id in self._streams:
            self._streams[request_id].put_nowait(message)

    def _fail(self, failure: RoboserveError) -> None:
        if self._failure is None:
            self._failure = failure
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(RoboserveError(failure.code, failure.message))
        for came in self._streams.values():
            came.put_nowait(failure)
