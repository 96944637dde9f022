"""The smallest synchronous clients that can ask a server for actions: their cost is the same for every contender."""

from __future__ import annotations

import http.client
import itertools
from typing import TYPE_CHECKING, Any, Protocol

import msgpack
from websockets.sync.client import connect

from clients.connection import connect_arguments, parse_address
from clients.policy import PolicyClient
from clients.wire import DEFAULT_LIMITS, encode
from models.policies.contract import ActItem, Observation

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

    from benchmarks.support.payloads import Payload
    from models.policies.contract import Policy


class Line(Protocol):
    """A connection that can be asked."""

    def ask(self) -> dict[str, Any]:
        """Encode the observation, send it, wait, and return the decoded reply.

        Raises:
            RuntimeError: the reply is an error.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def _unpack(data: bytes | str) -> dict[str, Any]:
    """Decode a reply as far as msgpack does: the same for all, and arrays are not the server's business any more."""
    reply: Any = data if isinstance(data, str) else msgpack.unpackb(data, strict_map_key=False)
    if not isinstance(reply, dict) or "actions" not in reply:
        raise RuntimeError(f"the server answered with an error: {str(reply)[:300]}")
    return reply


def _connected(url: str, **changes: Any) -> ClientConnection:
    """Connect as our clients do, with the native subprotocol unless told otherwise."""
    address = parse_address(url)
    arguments = connect_arguments(
        connect, address, api_key=None, ssl=None, connect_timeout_s=10.0, max_bytes=DEFAULT_LIMITS.message_bytes
    )
    connection: ClientConnection = connect(url, **{**arguments, **changes})
    return connection


class NativeLine:
    """A websocket that speaks the native protocol."""

    def __init__(self, url: str, payload: Payload) -> None:
        self._connection = _connected(url)
        self._connection.recv()
        self._observation = payload.native()
        self._ids = itertools.count()

    def ask(self) -> dict[str, Any]:
        """See `Line`."""
        message = {
            "type": "act",
            "request_id": str(next(self._ids)),
            "session": "robot",
            "observation": self._observation,
        }
        self._connection.send(encode(message))
        return _unpack(self._connection.recv())

    def close(self) -> None:
        """See `Line`."""
        self._connection.close()


class OpenpiLine:
    """A websocket that speaks openpi's protocol, as its stock client does."""

    def __init__(self, url: str, payload: Payload) -> None:
        self._connection = _connected(url, subprotocols=None)
        self._connection.recv()
        self._observation = payload.openpi()

    def ask(self) -> dict[str, Any]:
        """See `Line`."""
        self._connection.send(encode(self._observation))
        return _unpack(self._connection.recv())

    def close(self) -> None:
        """See `Line`."""
        self._connection.close()


class HttpLine:
    """A kept-alive HTTP connection; `message` is what is posted."""

    def __init__(self, port: int, path: str, message: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._path = path
        self._message = message

    def ask(self) -> dict[str, Any]:
        """See `Line`."""
        headers = {"Content-Type": "application/msgpack"}
        self._connection.request("POST", self._path, body=encode(self._message), headers=headers)
        return _unpack(self._connection.getresponse().read())

    def close(self) -> None:
        """See `Line`."""
        self._connection.close()


class ClientLine:
    """Our own typed client, with all the checks that a robot relies on."""

    def __init__(self, url: str, payload: Payload) -> None:
        self._client = PolicyClient(url)
        self._payload = payload

    def ask(self) -> dict[str, Any]:
        """See `Line`."""
        payload = self._payload
        reply = self._client.act(
            images=payload.images, state=payload.state, instruction=payload.instruction, session="robot"
        )
        return {"actions": reply.actions, "timings": reply.timings}

    def close(self) -> None:
        """See `Line`."""
        self._client.close()


class BareLine:
    """No server at all: the policy called in this process."""

    def __init__(self, policy: Policy, observation: Observation) -> None:
        self._policy = policy
        self._items = [ActItem(observation=observation)]

    def ask(self) -> dict[str, Any]:
        """See `Line`."""
        return {"actions": self._policy.act(self._items)[0].actions}

    def close(self) -> None:
        """See `Line`."""
