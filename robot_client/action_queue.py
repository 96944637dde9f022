"""The rows that a robot may still play, and the rules on which of them it may.

Every chunk is anchored at a tick of the control loop's schedule: row r belongs to tick `anchor + r` and to no other, so
a row whose tick has passed is gone, and rows never burst. An epoch begins at every reset and reconnect; a chunk that
was asked for in an earlier epoch is refused.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Deque, List, Optional, Tuple, Union

import numpy as np

from clients.errors import RoboserveError
from robot_client.merge import delay_ticks, temporal_ensemble, weighted_overlap

Array = np.ndarray[Any, Any]

MODES = ("blocking", "async", "ensemble", "weighted", "rtc")


@dataclass(frozen=True)
class QueueConfig:
    """How chunks are used.

    Attributes:
        mode: "blocking" plays a chunk and asks again when it is used up; "async" asks early, and the newest chunk
            replaces the rest of the one before; "ensemble" averages all chunks that cover a tick; "weighted" blends the
            overlap with the plan in force; "rtc" replaces, and has the server continue the chunk in force.
        execute: rows of a chunk to play before the next should take over; None takes the contract's.
        margin: ticks to ask earlier than the measured latency needs.
        max_age_s: oldest observation whose rows are still played, seconds; None allows every row of an answer that
            came within its deadline.
        old_weight: of "weighted", 0 to 1.
        decay: of "ensemble".
        latency_window: answers that the latency is taken from.
    """

    mode: str = "async"
    execute: Optional[int] = None
    margin: int = 1
    max_age_s: Optional[float] = None
    old_weight: float = 0.3
    decay: float = 0.01
    latency_window: int = 10

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RoboserveError("invalid_request", f"mode: {self.mode!r}; allowed are {', '.join(MODES)}")
        if self.execute is not None and self.execute < 1:
            raise RoboserveError("invalid_request", f"execute: {self.execute}, must be 1 or more")
        old_enough = self.max_age_s is None or self.max_age_s > 0
        if not old_enough or self.margin < 0 or self.latency_window < 1:
            raise RoboserveError("invalid_request", "max_age_s and latency_window must be above 0, margin 0 or more")
        if not 0 <= self.old_weight <= 1:
            raise RoboserveError("invalid_request", f"old_weight: {self.old_weight}, must be 0 to 1")


@dataclass(frozen=True)
class Row:
    """One command out of the queue: float32 (action size,), and where it came from."""

    action: Array
    chunk_id: int
    row: int
    age_s: float
    depth: int


@dataclass(frozen=True)
class Nothing:
    """No row for this tick: "waiting" (no chunk yet in this epoch), "empty" (played out) or "stale" (too old)."""

    reason: str


@dataclass(frozen=True)
class Continuation:
    """What real-time chunking wants to know of the chunk in force.

    Attributes:
        executed: rows of the last chunk already played when the observation was taken.
        leftover: float32 (n, model action size), the rows after those, in model space; None where the server sent none.
        inference_delay: rows of `leftover` that will be played before the answer arrives (d).
    """

    executed: int
    leftover: Optional[Array]
    inference_delay: int


@dataclass(frozen=True)
class _Chunk:
    id: int
    anchor: int
    rows: Array
    model_rows: Optional[Array]
    observed_at: float

    @property
    def end(self) -> int:
        return self.anchor + len(self.rows)


class ActionQueue:
    """Chunks in, one row a tick out. The network's thread puts, the control thread pops; no call waits for long.

    Args:
        execute: rows to play before the next chunk should take over (the configuration's own value goes first).
        rate_hz: control rate.
        max_age_s: what the configuration leaves open.
    """

    def __init__(self, config: QueueConfig, *, execute: int, rate_hz: float, max_age_s: float) -> None:
        self._config = config
        self._execute = config.execute or execute
        self._max_age_s = config.max_age_s or max_age_s
        self._rate_hz = rate_hz
        self._lock = threading.Lock()
        self._epoch = 0
        self._chunks: List[_Chunk] = []
        self._next_tick = 0
        self._last_played = -1
        self._made = 0
        self._fresh = True
        self._latencies: Deque[float] = deque(maxlen=config.latency_window)

    @property
    def epoch(self) -> int:
        """Number of the epoch; ask for it before sending an observation, and hand it back with the chunk."""
        with self._lock:
            return self._epoch

    def begin_epoch(self) -> int:
        """Drop everything, refuse whatever is still under way, and return the new epoch."""
        with self._lock:
            self._epoch += 1
            self._chunks = []
            self._fresh = True
            return self._epoch

    def put(
        self,
        actions: Array,
        *,
        epoch: int,
        anchor: int,
        observed_at: float,
        now: float,
        model_actions: Optional[Array] = None,
    ) -> Tuple[str, Optional[int]]:
        """Offer a chunk.

        Args:
            actions: float32 (H, action size).
            anchor: tick that row 0 is for, the first after the observation was taken.
            observed_at: when it was taken, and `now`: seconds on the same monotonic clock.
            model_actions: the same rows in model space, float32 (H, model action size).

        Returns:
            "played" and the chunk's number, or "old_epoch" or "late" (all its ticks have passed) and None.
        """
        with self._lock:
            if epoch != self._epoch:
                return "old_epoch", None
            self._latencies.append(max(0.0, now - observed_at))
            if self._last_played < anchor:
                # The robot has held since it was observed: nothing of the plan has been lived through yet.
                anchor = max(anchor, self._next_tick)
            newest = self._chunks[-1] if self._chunks else None
            if anchor + len(actions) <= self._next_tick or (newest is not None and newest.anchor > anchor):
                return "late", None
            rows = actions[: self._execute] if self._config.mode == "blocking" else actions
            if self._config.mode == "weighted" and newest is not None and self._usable(newest, now):
                rows = weighted_overlap(
                    (newest.anchor, newest.rows), (anchor, actions), old_weight=self._config.old_weight
                )
            self._made += 1
            self._fresh = False
            chunk = _Chunk(self._made, anchor, rows, model_actions, observed_at)
            self._chunks = [*self._chunks, chunk] if self._config.mode == "ensemble" else [chunk]
            return "played", chunk.id

    def pop(self, tick: int, now: float) -> Union[Row, Nothing]:
        """Return the row for this tick; rows of earlier ticks are gone from then on."""
        with self._lock:
            self._next_tick = tick + 1
            self._chunks = [chunk for chunk in self._chunks if chunk.end > tick] or self._chunks[-1:]
            covering = [chunk for chunk in self._chunks if chunk.anchor <= tick < chunk.end]
            usable = [chunk for chunk in covering if self._usable(chunk, now)]
            if not usable:
                return Nothing("waiting" if self._fresh else "stale" if covering else "empty")
            newest = usable[-1]
            rows = np.stack([chunk.rows[tick - chunk.anchor] for chunk in usable])
            action = temporal_ensemble(rows, decay=self._config.decay) if len(rows) > 1 else rows[0].astype(np.float32)
            self._last_played = tick
            depth = max(chunk.end for chunk in usable) - tick - 1
            return Row(action, newest.id, tick - newest.anchor, now - newest.observed_at, depth)

    def wants(self, anchor: int) -> bool:
        """Whether an observation whose chunk would start at `anchor` should be sent now."""
        with self._lock:
            if not self._chunks or self._config.mode == "ensemble":
                return True
            chunk = self._chunks[-1]
            left = chunk.end - anchor
            delay = self._delay()
            if self._config.mode == "blocking" or delay >= len(chunk.rows):
                # A chunk shorter than the latency would be late as a whole unless the robot waits for it.
                return left <= 0
            return anchor - chunk.anchor >= self._execute or left <= delay + self._config.margin

    def continuation(self, anchor: int) -> Optional[Continuation]:
        """Return what the server needs to continue the chunk in force; None outside "rtc", or with nothing in force."""
        with self._lock:
            if self._config.mode != "rtc" or not self._chunks:
                return None
            chunk = self._chunks[-1]
            executed = anchor - chunk.anchor
            left = chunk.end - anchor
            if left <= 0 or executed < 0:
                return None
            leftover = None if chunk.model_rows is None else chunk.model_rows[executed:]
            return Continuation(executed, leftover, min(self._delay(), left))

    def _usable(self, chunk: _Chunk, now: float) -> bool:
        return now - chunk.observed_at <= self._max_age_s

    def _delay(self) -> int:
        return delay_ticks(self._latencies, self._rate_hz)
