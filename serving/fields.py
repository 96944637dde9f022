"""Fields of a decoded message, looked at one by one: wrong ones are refused by name, value and limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ID_CHARS = 128


def request_id_of(message: Any) -> str | None:
    """Return the request's id if it has a usable one, for the error that answers it."""
    value = message.get("request_id") if isinstance(message, dict) else None
    return value if isinstance(value, str) and len(value) <= _ID_CHARS else None


def short_text(message: Mapping[str, Any], field: str) -> str | None:
    """Return an optional id-like text; an empty one counts as none.

    Raises:
        RoboserveError: `invalid_request`.
    """
    value = message.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _ID_CHARS:
        raise RoboserveError("invalid_request", f"{field}: must be text of at most {_ID_CHARS} characters")
    return value or None


def refuse_unknown(source: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """Refuse entries that would be ignored: a misspelt deadline is no deadline.

    Raises:
        RoboserveError: `invalid_request`.
    """
    if known.issuperset(source):
        return
    unknown = ", ".join(sorted(set(source) - known))[:200]
    raise RoboserveError("invalid_request", f"{where}: unknown entries {unknown}; known are {', '.join(sorted(known))}")


def flag(source: Mapping[str, Any], field: str, *, where: str = "options.") -> bool:
    """Return a truth value, false where it is missing.

    Args:
        where: what stands before the field's name in a message.

    Raises:
        RoboserveError: `invalid_request`.
    """
    value = source.get(field)
    if value is None:
        return False
    if not isinstance(value, (bool, np.bool_)):
        raise RoboserveError("invalid_request", f"{where}{field}: {value!r:.40}, must be true or false")
    return bool(value)


def integer(source: Mapping[str, Any], field: str, low: int, high: int, *, where: str = "options.") -> int | None:
    """Return an integer from `low` to `high`, None where it is missing; `where` as for `flag`.

    Raises:
        RoboserveError: `invalid_request`.
    """
    value = source.get(field)
    if value is None:
        return None
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise RoboserveError(
            "invalid_request", f"{where}{field}: {value!r:.40}, must be an integer from {low} to {high}"
        )
    return value


def number(source: Mapping[str, Any], field: str, low: float, high: float) -> float | None:
    """Return a number over `low` and up to `high`, None where it is missing.

    Raises:
        RoboserveError: `deadline_exceeded` for one that is not over `low`, else `invalid_request`.
    """
    value = source.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RoboserveError("invalid_request", f"{field}: must be a number")
    number = float(value)
    if number <= low:
        raise RoboserveError("deadline_exceeded", f"{field}: {number:g}, already passed when it arrived")
    if not number <= high:
        raise RoboserveError("invalid_request", f"{field}: {number:g}, limit {high:g}")
    return number


def kind_of(value: Any) -> str:
    """Return what a value is, in words for a message."""
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__
