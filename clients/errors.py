"""Typed errors: one table that maps every code to HTTP, websocket and gRPC.

A message names the field, the value and the limit, and never carries a traceback, a path or an address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple


@dataclass(frozen=True)
class ErrorKind:
    """How one error code looks on each transport, and whether the same request may be sent again."""

    http: int
    websocket: int
    grpc: str
    retryable: bool
    meaning: str


ERROR_TABLE: Mapping[str, ErrorKind] = {
    "malformed": ErrorKind(400, 1007, "INVALID_ARGUMENT", retryable=False, meaning="the bytes are not a message"),
    "invalid_request": ErrorKind(400, 1008, "INVALID_ARGUMENT", retryable=False, meaning="a field is wrong"),
    "invalid_image": ErrorKind(400, 1008, "INVALID_ARGUMENT", retryable=False, meaning="an image cannot be used"),
    "invalid_state": ErrorKind(400, 1008, "INVALID_ARGUMENT", retryable=False, meaning="the state vector is wrong"),
    "unauthenticated": ErrorKind(401, 1008, "UNAUTHENTICATED", retryable=False, meaning="no valid key"),
    "forbidden": ErrorKind(
        403, 1008, "PERMISSION_DENIED", retryable=False, meaning="the key's scope does not allow it"
    ),
    "not_found": ErrorKind(404, 1008, "NOT_FOUND", retryable=False, meaning="no such model, adapter or route"),
    "timeout": ErrorKind(408, 1008, "DEADLINE_EXCEEDED", retryable=True, meaning="the client sent too slowly"),
    "superseded": ErrorKind(409, 1008, "ABORTED", retryable=False, meaning="a newer observation took its place"),
    "too_large": ErrorKind(413, 1009, "RESOURCE_EXHAUSTED", retryable=False, meaning="over a size or count limit"),
    "contract_mismatch": ErrorKind(
        422, 1008, "FAILED_PRECONDITION", retryable=False, meaning="robot and policy differ"
    ),
    "overloaded": ErrorKind(429, 1013, "RESOURCE_EXHAUSTED", retryable=True, meaning="the queue is full"),
    "budget_exhausted": ErrorKind(
        402, 1008, "RESOURCE_EXHAUSTED", retryable=False, meaning="the labels or tokens that were allowed are used up"
    ),
    "policy_failed": ErrorKind(500, 1011, "INTERNAL", retryable=False, meaning="the model raised on this item"),
    "invalid_output": ErrorKind(500, 1011, "INTERNAL", retryable=False, meaning="the model's answer is not usable"),
    "internal": ErrorKind(500, 1011, "INTERNAL", retryable=False, meaning="a fault of the server"),
    "unavailable": ErrorKind(503, 1013, "UNAVAILABLE", retryable=True, meaning="not ready, draining or unreachable"),
    "deadline_exceeded": ErrorKind(504, 1008, "DEADLINE_EXCEEDED", retryable=False, meaning="too late to be of use"),
}


class RoboserveError(Exception):
    """An error with a code of `ERROR_TABLE`, safe to show to any client.

    Args:
        code: a key of `ERROR_TABLE`.
        message: one sentence naming the field, the value and the limit.
        request_id: the request it answers, if one is known.
    """

    def __init__(self, code: str, message: str, *, request_id: Optional[str] = None) -> None:
        if code not in ERROR_TABLE:
            raise ValueError(f"unknown error code {code!r}")
        # Messages quote what peers sent; a line break or an escape code must not reach a log or a terminal.
        printable = message if message.isprintable() else "".join(map(_printable, message))
        super().__init__(printable)
        self.code = code
        self.message = printable
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> Tuple[Any, ...]:
        # An exception is copied, and sent between processes, by its `args`, which are not what this one is made of.
        return _made, (self.code, self.message, self.request_id)

    @property
    def kind(self) -> ErrorKind:
        """The row of `ERROR_TABLE`."""
        return ERROR_TABLE[self.code]

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when sent again."""
        return self.kind.retryable

    def with_request_id(self, request_id: Optional[str]) -> RoboserveError:
        """Return the same error, naming the request that it answers (an id already set stays)."""
        return RoboserveError(self.code, self.message, request_id=self.request_id or request_id)

    def to_map(self) -> Dict[str, Any]:
        """Return the wire form: `type`, `code`, `message`, `retryable`, `request_id`."""
        return {
            "type": "error",
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "request_id": self.request_id,
        }

    @classmethod
    def from_map(cls, message: Mapping[str, Any]) -> RoboserveError:
        """Read the wire form; a code that this version does not know reads as `internal`."""
        code = str(message.get("code", "internal"))
        text = str(message.get("message", "the server gave no message"))
        request_id = message.get("request_id")
        return cls(
            code if code in ERROR_TABLE else "internal",
            text,
            request_id=None if request_id is None else str(request_id),
        )


def _made(code: str, message: str, request_id: Optional[str]) -> RoboserveError:
    return RoboserveError(code, message, request_id=request_id)


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
