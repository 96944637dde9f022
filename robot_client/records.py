"""What one episode leaves behind, tick by tick: plain values that any subscriber can write down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

import numpy as np

if TYPE_CHECKING:
    from clients.contract import PolicyContract, RobotInterface
    from robot_client.planner import PlannedPath

Array = np.ndarray[Any, Any]

HOLD_REASONS = ("waiting", "empty", "stale", "lost", "refused", "unsafe")
"""Why a tick played no row of a chunk: no chunk yet; played out; too old; no server; server says no; failed a check."""


@dataclass(frozen=True)
class Event:
    """Something that happened beside the ticks.

    Attributes:
        kind: connected, lost, reconnecting, refused, draining, model_changed, request_failed, chunk_dropped,
            server_slow, subscriber_failed or interrupted.
        time_s: seconds since the episode's first tick (negative before it).
        message: one sentence.
        code: the error code of `clients.errors`, where there is one.
    """

    kind: str
    time_s: float
    message: str
    code: Optional[str] = None


@dataclass(frozen=True)
class RequestRecord:
    """One request to the policy.

    Attributes:
        tick: tick that row 0 of the answer was meant for.
        outcome: "played" (the chunk went into the queue), "late", "old_epoch", or an error code.
        chunk_id: number of the chunk within the episode, where there is one.
        time_s: when the observation was taken, seconds since the episode's first tick.
        latency_ms: from the observation to the chunk in the queue (encoding and waiting included).
        encode_ms: resizing and encoding of the images.
        round_trip_ms: network and server.
        request_bytes: size of the encoded images and state.
        batch_size: items in the batch that the request rode in.
        timings: ms on the server, by part.
        revision: revision of the model that answered.
        inference_delay: RTC: d that was sent; None in the other modes.
        actions: float32 (H, action size), the chunk as it came.
    """

    tick: int
    outcome: str
    chunk_id: Optional[int]
    time_s: float
    latency_ms: float
    encode_ms: float
    round_trip_ms: Optional[float] = None
    request_bytes: int = 0
    batch_size: Optional[int] = None
    timings: Mapping[str, float] = field(default_factory=dict)
    revision: Optional[str] = None
    inference_delay: Optional[int] = None
    actions: Optional[Array] = None


@dataclass(frozen=True)
class TickRecord:
    """One tick of the control loop.

    Attributes:
        tick: number of the slot on the schedule; a slot that was missed leaves a gap.
        scheduled_s: when the command was due, seconds since the first tick.
        actual_s: when the loop woke for it.
        action: float32 (action size,), the command that was sent; None where there was nothing safe to send.
        source: "chunk" or "hold".
        chunk_id: chunk that the command came from.
        row: row of that chunk.
        age_ms: age of the observation behind the chunk.
        hold_reason: one of `HOLD_REASONS`, for a hold.
        depth: rows left in the queue after this one.
        clamped: names of the action dimensions that were limited.
        requests: requests that ended since the tick before.
        events: events since the tick before.
    """

    tick: int
    scheduled_s: float
    actual_s: float
    action: Optional[Array]
    source: str
    chunk_id: Optional[int] = None
    row: Optional[int] = None
    age_ms: Optional[float] = None
    hold_reason: Optional[str] = None
    depth: int = 0
    clamped: Tuple[str, ...] = ()
    requests: Tuple[RequestRecord, ...] = ()
    events: Tuple[Event, ...] = ()

    @property
    def lateness_ms(self) -> float:
        """How long after its time the tick began."""
        return (self.actual_s - self.scheduled_s) * 1e3


@dataclass(frozen=True)
class EpisodeInfo:
    """What is known before the first tick.

    Attributes:
        robot: name of the robot's class.
        task: name of the task, for tables and folders.
        instruction: what the policy is told.
        mode: how chunks are merged.
        rate_hz: control rate.
        started_unix: wall clock of the start, seconds.
        path: what is drawn on the policy's images, where a planner was asked.
    """

    robot: str
    task: str
    instruction: str
    mode: str
    rate_hz: float
    seed: Optional[int]
    max_seconds: float
    started_unix: float
    interface: RobotInterface
    contract: PolicyContract
    path: Optional[PlannedPath] = None


@dataclass(frozen=True)
class EpisodeReport:
    """What an episode came to.

    Attributes:
        ended: finished (the robot said so), max_seconds, interrupted, server_lost, refused, robot_failed.
        success: the robot's own verdict; None where it gave none.
        ticks: commands that were due and served; `missed_ticks`: slots that passed while something blocked the loop.
        rate_hz: ticks a second that were held, from the first to the last.
        within_2ms: share of ticks, 0 to 1, that began within 2 ms of their time.
        lateness_ms, latency_ms, round_trip_ms: p50, p90, p99 and max; latency is from observation to chunk.
        holds: ticks held, by reason; `clamped`: ticks on which a dimension was limited, by name of the dimension.
        requests: number of requests, by outcome.
        batch_sizes: number of answers, by batch size.
        revisions: model revisions that answered, in order of appearance.
    """

    info: EpisodeInfo
    ended: str
    success: Optional[bool]
    seconds: float
    ticks: int
    missed_ticks: int
    rate_hz: float
    within_2ms: float
    lateness_ms: Mapping[str, float]
    latency_ms: Mapping[str, float]
    round_trip_ms: Mapping[str, float]
    holds: Mapping[str, int]
    clamped: Mapping[str, int]
    requests: Mapping[str, int]
    batch_sizes: Mapping[int, int]
    revisions: Tuple[str, ...]
    events: Tuple[Event, ...]


def percentiles(values: Tuple[float, ...]) -> Dict[str, float]:
    """Return p50, p90, p99 (linear interpolation) and max; empty for no values."""
    if not values:
        return {}
    p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
    return {"p50": p50, "p90": p90, "p99": p99, "max": max(values)}
