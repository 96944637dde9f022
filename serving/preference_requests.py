"""From a decoded message to a checked request for labels; frames are looked at later, off the event loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from models.preference.contract import LabelOptions
from serving.fields import flag, integer, kind_of, number, refuse_unknown, short_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.preference.contract import LabellerSpec
    from serving.preference_config import PreferenceSettings

_MAX_DEADLINE_MS = 3_600_000.0
_LABEL = frozenset(("type", "request_id", "deadline_ms", "model", "job", "pairs", "options", "stream"))
_OPTIONS = frozenset(("protocol", "order_swap", "votes", "tie_threshold", "audit"))
_PAIR = frozenset(("goal", "first", "second", "values"))


@dataclass(frozen=True, kw_only=True)
class PairAsk:
    """Two observations as they stood in the message; `field`: what a refusal calls the pair."""

    goal: str
    first: Any
    second: Any
    values: tuple[float, float] | None
    field: str


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """A checked request.

    Attributes:
        job: whose budget it counts in, "" for the caller's unnamed one.
        audit: whether raw answers go into the reply; `stream`: whether labels are sent as they come.
        deadline_ms: from receipt.
    """

    pairs: tuple[PairAsk, ...]
    options: LabelOptions
    audit: bool
    job: str
    stream: bool
    deadline_ms: float | None


class LabelParser:
    """Checks messages against a labeller and its service's limits.

    Args:
        spec: the labeller's; `settings`: the service's.
    """

    def __init__(self, spec: LabellerSpec, settings: PreferenceSettings) -> None:
        self._spec, self._settings = spec, settings

    def label(self, message: Mapping[str, Any]) -> LabelRequest:
        """Check a request.

        Raises:
            RoboserveError: naming the field, the value and the limit.
        """
        refuse_unknown(message, _LABEL, "message")
        pairs = message.get("pairs")
        if not isinstance(pairs, list) or not pairs:
            raise RoboserveError("invalid_request", f"pairs: must be a list of at least one, is {kind_of(pairs)}")
        if len(pairs) > self._settings.pairs:
            raise RoboserveError("too_large", f"pairs: {len(pairs)}, limit {self._settings.pairs} in one request")
        options = message.get("options")
        if options is not None and not isinstance(options, dict):
            raise RoboserveError("invalid_request", f"options: must be a map, is {kind_of(options)}")
        given: Mapping[str, Any] = options or {}
        return LabelRequest(
            pairs=tuple(self._pair(pair, f"pairs[{index}]") for index, pair in enumerate(pairs)),
            options=self._options(given),
            audit=flag(given, "audit"),
            job=short_text(message, "job") or "",
            stream=flag(message, "stream", where=""),
            deadline_ms=number(message, "deadline_ms", 0.0, _MAX_DEADLINE_MS),
        )

    def _options(self, given: Mapping[str, Any]) -> LabelOptions:
        refuse_unknown(given, _OPTIONS, "options")
        protocol = given.get("protocol") or self._spec.protocols[0]
        if protocol not in self._spec.protocols:
            known = ", ".join(self._spec.protocols)
            raise RoboserveError("invalid_request", f"options.protocol: {protocol!r:.40}; this labeller knows {known}")
        votes = integer(given, "votes", 1, self._settings.votes) or 1
        if votes > 1 and protocol != "two_stage":
            raise RoboserveError(
                "invalid_request", f"options.votes: {votes}, belongs to the protocol 'two_stage', not to {protocol!r}"
            )
        return LabelOptions(
            protocol=protocol,
            order_swap=flag(given, "order_swap"),
            votes=votes,
            tie_threshold=_share(given, "tie_threshold"),
        )

    def _pair(self, pair: Any, field: str) -> PairAsk:
        if not isinstance(pair, dict):
            raise RoboserveError("invalid_request", f"{field}: must be a map, is {kind_of(pair)}")
        refuse_unknown(pair, _PAIR, field)
        for side in ("first", "second"):
            if side not in pair:
                raise RoboserveError("invalid_request", f"{field}.{side}: is missing")
        return PairAsk(
            goal=self._goal(pair.get("goal"), f"{field}.goal"),
            first=pair["first"],
            second=pair["second"],
            values=self._values(pair.get("values"), f"{field}.values"),
            field=field,
        )

    def _goal(self, goal: Any, field: str) -> str:
        if not isinstance(goal, str) or not goal.strip():
            given = "empty" if isinstance(goal, str) else kind_of(goal)
            raise RoboserveError("invalid_request", f"{field}: must be text, is {given}")
        if len(goal) > self._spec.goal_chars:
            raise RoboserveError("too_large", f"{field}: {len(goal)} characters, limit {self._spec.goal_chars}")
        return goal

    def _values(self, values: Any, field: str) -> tuple[float, float] | None:
        if values is None:
            if self._spec.wants_values:
                raise RoboserveError("invalid_request", f"{field}: is missing, and this labeller tells by nothing else")
            return None
        if not self._spec.wants_values:
            raise RoboserveError("invalid_request", f"{field}: this labeller is not told the truth")
        listed = values.tolist() if isinstance(values, np.ndarray) else values
        if not isinstance(listed, list) or len(listed) != 2 or not all(map(_finite, listed)):
            raise RoboserveError("invalid_request", f"{field}: must be two finite numbers")
        return float(listed[0]), float(listed[1])


def _share(given: Mapping[str, Any], field: str) -> float:
    value = given.get(field)
    if value is None:
        return 0.0
    if not _finite(value) or not 0.0 <= float(value) <= 1.0:
        raise RoboserveError("invalid_request", f"options.{field}: {value!r:.40}, must be from 0 to 1")
    return float(value)


def _finite(value: Any) -> bool:
    number_like = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number_like and math.isfinite(value)
