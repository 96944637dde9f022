"""Has a served reward model judge an episode while it runs, in a thread of its own: the control loop never waits.

`reward.json`, written into the episode's folder at its end:
    server (address), rate_hz (frames a second that were offered), model, revision, content_hash (of the model; null
    where nothing was judged), values (list of tick, time_s (seconds since the first tick was due), progress (0 to 1),
    success (probability, or null where the model gives none), latency_ms (from the frame to its value)), offered,
    dropped (frames that found the mailbox full, the server too busy, or the episode long over), fault (a sentence that
    says why frames after the last value were not judged, or null).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

from clients.errors import RoboserveError
from clients.reward import RewardClient
from robot_client.subscribers.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from clients.reward import RewardSession
    from clients.reward_messages import ModelIdentity
    from robot_client.records import EpisodeInfo, EpisodeReport, TickRecord
    from robot_client.robot import Array, RobotObservation

FILE = "reward.json"


@dataclass(frozen=True)
class RewardStreamConfig:
    """Which model judges, and what it is shown.

    Attributes:
        server: "host:port", or a ws:// or wss:// address.
        model: name of the reward model; None where the address has its route already.
        rate_hz: frames a second that are sent; a model judges best at the rate that it was trained at.
        camera: what it looks through; None for the robot's first.
        codec: how frames travel: "jpeg", "png" (exact) or "raw" (exact, no work, many bytes).
        capacity: frames that may wait; one that comes while so many wait is dropped and counted.
        timeout_s: longest wait for the server; one that is slower is given up for the rest of the episode. After the
            episode's end, frames that still wait are judged for so long, and the rest is dropped.
    """

    server: str
    model: Optional[str] = None
    api_key: Optional[str] = field(default=None, repr=False)
    rate_hz: float = 10.0
    camera: Optional[str] = None
    codec: str = "jpeg"
    capacity: int = 64
    timeout_s: float = 5.0


@dataclass(frozen=True)
class _Frame:
    """A frame on its way; `seen_s` on the monotonic clock."""

    tick: int
    time_s: float
    image: Array
    seen_s: float


@dataclass
class _Curve:
    """What an episode has come to so far."""

    rate_hz: float = 0.0
    values: List[Dict[str, Any]] = field(default_factory=list)
    model: Optional[ModelIdentity] = None
    offered: int = 0
    dropped: int = 0
    fault: Optional[str] = None

    def to_map(self) -> Dict[str, Any]:
        """Return the fields of `reward.json`, the server's address apart."""
        model = self.model
        return {
            "rate_hz": self.rate_hz,
            "model": None if model is None else model.id,
            "revision": None if model is None else model.revision,
            "content_hash": None if model is None else model.content_hash,
            "values": self.values,
            "offered": self.offered,
            "dropped": self.dropped,
            "fault": self.fault,
        }


class RewardStream:
    """Subscriber that sends frames to a reward model as they are seen, and writes the curve down.

    A server that is absent, lost or slow costs the episode its curve, or the rest of it, and the robot nothing.

    Args:
        folder_of: gives the folder of the running episode, as `TimingLog.folder` does.
    """

    needs_observations = True

    def __init__(self, config: RewardStreamConfig, folder_of: Callable[[], Optional[Path]]) -> None:
        self._config = config
        self._folder_of = folder_of
        self._client: Optional[RewardClient] = None
        self._session: Optional[RewardSession] = None
        self._worker: Optional[Worker] = None
        self._curve = _Curve()
        self._instruction, self._camera = "", ""
        self._every, self._next = 1, 0
        self._held_back: Optional[_Frame] = None
        self._give_up_s = math.inf

    @property
    def latest(self) -> Optional[float]:
        """Progress, 0 to 1, after the latest judged frame of this episode; None before the first."""
        values = self._curve.values
        return values[-1]["progress"] if values else None

    def on_episode_start(self, info: EpisodeInfo) -> None:
        """Begin a curve; the server is asked when the first frame is there."""
        self._instruction = info.instruction
        self._camera = self._config.camera or info.interface.cameras[0]
        self._every, self._next = max(1, round(info.rate_hz / self._config.rate_hz)), 0
        self._held_back, self._give_up_s = None, math.inf
        self._curve = _Curve(rate_hz=info.rate_hz / self._every)
        self._worker = Worker(self._judge, name="roboserve-reward", capacity=self._config.capacity)

    def on_step(self, record: TickRecord, observation: Optional[RobotObservation]) -> None:
        """Hand over every n-th frame, and remember the one after it, which may be the last."""
        if observation is None or self._worker is None:
            return
        frame = _Frame(record.tick, record.scheduled_s, observation.images[self._camera], time.monotonic())
        if record.tick < self._next:
            self._held_back = frame
            return
        self._next = record.tick - record.tick % self._every + self._every
        self._held_back = None
        self._offer(frame, self._worker)

    def on_episode_end(self, report: EpisodeReport) -> None:
        """Have the last frame judged, wait for what is under way, and write the file.

        Raises:
            OSError: it cannot be written.
        """
        del report
        worker, self._worker = self._worker, None
        if worker is None:
            return
        self._give_up_s = time.monotonic() + self._config.timeout_s
        try:
            if self._held_back is not None:
                self._offer(self._held_back, worker)
            worker.finish()
            self._end_session()
        finally:
            self._held_back = self._session = None
            folder = self._folder_of()
            if folder is not None:
                text = json.dumps({"server": self._config.server, **self._curve.to_map()})
                (folder / FILE).write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _offer(self, frame: _Frame, worker: Worker) -> None:
        self._curve.offered += 1
        if not worker.put(frame):
            self._curve.dropped += 1

    def _judge(self, frame: _Frame) -> None:
        """Get a frame's value; runs in the worker's thread."""
        curve = self._curve
        if curve.fault is not None:
            return
        if time.monotonic() > self._give_up_s:
            curve.dropped += 1
            return
        try:
            if self._session is None:
                self._session = self._open()
            value = self._session.append(frame.image)
        except RoboserveError as error:
            if error.code == "overloaded" and self._session is not None:
                curve.dropped += 1  # the session is as it was before
            else:
                curve.fault = str(error)
            return
        curve.model = value.model
        curve.values.append(
            {
                "tick": frame.tick,
                "time_s": frame.time_s,
                "progress": value.progress,
                "success": value.success,
                "latency_ms": (time.monotonic() - frame.seen_s) * 1e3,
            }
        )

    def _end_session(self) -> None:
        if self._session is None or self._curve.fault is not None:
            return
        try:
            self._session.close()
        except RoboserveError as error:
            self._curve.fault = str(error)

    def _open(self) -> RewardSession:
        config = self._config
        if self._client is None:
            self._client = RewardClient(
                config.server,
                model=config.model,
                api_key=config.api_key,
                connect_timeout_s=config.timeout_s,
                timeout_s=config.timeout_s,
                codec=config.codec,
            )
        return self._client.open(self._instruction, cameras=(self._camera,))
