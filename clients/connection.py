"""Opening a connection to a served model: address, key, timeouts on the socket itself, and typed refusals."""

from __future__ import annotations

import inspect
import socket
import ssl as ssl_module
import struct
import sys
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Tuple
from urllib.parse import quote, urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus

from clients.contract import PROTOCOL
from clients.errors import RoboserveError

DEFAULT_PORT = 8000
_STATUS_CODES = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    429: "overloaded",
    422: "contract_mismatch",
}
_SCHEMES = {"ws": False, "wss": True, "http": False, "https": True}


@dataclass(frozen=True)
class Address:
    """Where a model answers: `uri` as the handshake wants it, and the host and port behind it."""

    uri: str
    host: str
    port: int
    secure: bool


def parse_address(server: str, model: Optional[str] = None, *, family: str = "policy") -> Address:
    """Read "host", "host:port", or a ws, wss, http or https address, and add the model's route.

    Args:
        model: name of the model; None takes the path of `server`, where "/" is the server's default policy.
        family: what kind of model it is, as routes name it.

    Raises:
        RoboserveError: `invalid_request` naming the part that cannot be used.
    """
    named_scheme = "://" in server
    parts = urlsplit(server if named_scheme else f"ws://{server}")
    try:
        port = parts.port
    except ValueError as error:
        raise RoboserveError("invalid_request", f"server: {server!r} has no valid port") from error
    if parts.scheme not in _SCHEMES:
        raise RoboserveError("invalid_request", f"server: scheme {parts.scheme!r}; allowed are {', '.join(_SCHEMES)}")
    if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise RoboserveError("invalid_request", "server: needs a host, and takes no user, query or fragment")
    secure = _SCHEMES[parts.scheme]
    if port is None:
        port = (443 if secure else 80) if named_scheme else DEFAULT_PORT
    path = parts.path or "/"
    if model is not None:
        if path != "/":
            raise RoboserveError(
                "invalid_request", f"{family}: {model!r} given, but the server's address has a path already"
            )
        path = f"/{family}/{quote(model, safe='')}"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    uri = f"{'wss' if secure else 'ws'}://{host}:{port}{path}"
    return Address(uri=uri, host=parts.hostname, port=port, secure=secure)


def open_socket(address: Address, *, connect_timeout_s: float, send_timeout_s: float) -> socket.socket:
    """Connect by TCP, with small writes sent at once and a limit on how long a stalled peer can block a write.

    The socket is made here rather than by the websocket library so that a key never follows a redirect or a proxy of
    the environment to another host, and because that library has no timeout on sending.

    Raises:
        RoboserveError: `unavailable`.
    """
    try:
        connection = socket.create_connection((address.host, address.port), timeout=connect_timeout_s)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise RoboserveError("unavailable", f"server {address.uri}: cannot connect: {reason}") from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)
    if sys.platform != "win32":
        seconds, rest = divmod(send_timeout_s, 1.0)
        value = struct.pack("ll", int(seconds), int(rest * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
    return connection


def connect_arguments(
    connect: Callable[..., Any],
    address: Address,
    *,
    api_key: Optional[str],
    ssl: Optional[ssl_module.SSLContext],
    connect_timeout_s: float,
    max_bytes: int,
) -> Dict[str, Any]:
    """Return the arguments of websockets' `connect`, sync or asyncio, for the version that is installed.

    Raises:
        RoboserveError: `unauthenticated` for a key that cannot stand in a header.
    """
    arguments: Dict[str, Any] = {
        "subprotocols": [PROTOCOL],
        "compression": None,
        "open_timeout": connect_timeout_s,
        "close_timeout": 0.5,
        "max_size": max_bytes,
    }
    if api_key is not None:
        if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
            raise RoboserveError("unauthenticated", "api key: must be printable ASCII without blanks")
        arguments["additional_headers"] = {"Authorization": f"Bearer {api_key}"}
    if address.secure:
        arguments["ssl"] = ssl if ssl is not None else ssl_module.create_default_context()
    known = inspect.signature(connect).parameters
    # Pings answer too late while a policy compiles, and would cut a healthy link; requests have their own deadlines.
    optional: Tuple[Tuple[str, Any], ...] = (("ping_interval", None), ("proxy", None), ("legacy", True))
    arguments.update({name: value for name, value in optional if name in known})
    return arguments


def refusal(error: BaseException, uri: str) -> RoboserveError:
    """Return the typed error for a handshake that failed or a connection that ended."""
    if isinstance(error, RoboserveError):
        return error
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        code = _STATUS_CODES.get(status, "unavailable")
        return RoboserveError(code, f"server {uri}: refused the connection with HTTP status {status}")
    if isinstance(error, TimeoutError):
        return RoboserveError("unavailable", f"server {uri}: no answer in time")
    if isinstance(error, ConnectionClosed):
        frame = error.rcvd
        why = f"closed with {frame.code} {frame.reason}".rstrip() if frame else "connection lost"
        return RoboserveError("unavailable", f"server {uri}: {why}")
    return RoboserveError("unavailable", f"server {uri}: {type(error).__name__}: {error}")
