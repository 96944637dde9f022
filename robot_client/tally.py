"""Counts of an episode, kept while it runs, so that its report costs nothing at its end."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any, Dict, List, Optional, Tuple

from robot_client.records import EpisodeInfo, EpisodeReport, Event, RequestRecord, TickRecord, percentiles

ON_TIME_MS = 2.0


class Tally:
    """Counts ticks, holds, requests and events; memory grows by some bytes a tick."""

    def __init__(self) -> None:
        self._lateness = array("d")
        self._first_s = 0.0
        self._last_s = 0.0
        self._latency = array("d")
        self._round_trip = array("d")
        self._holds: Counter[str] = Counter()
        self._clamped: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._revisions: List[str] = []
        self._events: List[Event] = []

    def tick(self, record: TickRecord) -> None:
        """Count one tick, with the requests and events that it carries."""
        self._lateness.append(record.lateness_ms)
        if len(self._lateness) == 1:
            self._first_s = record.actual_s
        self._last_s = record.actual_s
        if record.hold_reason is not None:
            self._holds[record.hold_reason] += 1
        self._clamped.update(record.clamped)
        self.rest(record.requests, record.events)

    def rest(self, requests: Tuple[RequestRecord, ...], events: Tuple[Event, ...]) -> None:
        """Count requests and events that no tick carried."""
        self._events.extend(events)
        for request in requests:
            self._requests[request.outcome] += 1
            if request.round_trip_ms is None:
                continue
            self._latency.append(request.latency_ms)
            self._round_trip.append(request.round_trip_ms)
            if request.batch_size is not None:
                self._batches[request.batch_size] += 1
            if request.revision is not None and request.revision not in self._revisions:
                self._revisions.append(request.revision)

    def report(
        self, info: EpisodeInfo, *, ended: str, success: Optional[bool], seconds: float, missed_ticks: int
    ) -> EpisodeReport:
        """Return the report of the episode so far."""
        ticks = len(self._lateness)
        on_time = sum(1 for value in self._lateness if value <= ON_TIME_MS)
        counts: Dict[str, Any] = {
            "holds": dict(self._holds),
            "clamped": dict(self._clamped),
            "requests": dict(self._requests),
            "batch_sizes": dict(self._batches),
        }
        return EpisodeReport(
            info=info,
            ended=ended,
            success=success,
            seconds=seconds,
            ticks=ticks,
            missed_ticks=missed_ticks,
            rate_hz=(ticks - 1) / (self._last_s - self._first_s) if ticks > 1 else 0.0,
            within_2ms=on_time / ticks if ticks else 0.0,
            lateness_ms=percentiles(tuple(self._lateness)),
            latency_ms=percentiles(tuple(self._latency)),
            round_trip_ms=percentiles(tuple(self._round_trip)),
            revisions=tuple(self._revisions),
            events=tuple(self._events),
            **counts,
        )
