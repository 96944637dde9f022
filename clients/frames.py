"""Frames of a websocket that must be messages of the protocol."""

from __future__ import annotations

from typing import Any, Mapping

from clients.errors import RoboserveError


def binary_frame(frame: Any) -> bytes:
    """Return a frame's bytes.

    Raises:
        RoboserveError: `malformed` for a text frame.
    """
    if not isinstance(frame, bytes):
        raise RoboserveError("malformed", "the server sent a text frame; this protocol is binary")
    return frame


def message_map(message: Any) -> Mapping[str, Any]:
    """Return a decoded message that is a map.

    Raises:
        RoboserveError: `malformed` for anything else.
    """
    if not isinstance(message, Mapping):
        raise RoboserveError("malformed", "the server sent a message that is not a map")
    return message
