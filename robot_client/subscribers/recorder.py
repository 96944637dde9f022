"""Records episodes as a LeRobot v3 dataset, in a thread of its own, so that recording never slows the loop.

A frame is what was seen before a command, and the command. A tick without either (nothing sent yet, nobody looked) has
no frame. Beside state and action each frame says where the command came from: `chunk_id`, `chunk_row`, `chunk_age_ms`
(-1 for a hold), `held` (0 or 1) and `lateness_ms`; each episode says `success`, `ended`, `model_revision` and
`dropped_frames`. The chunks as they came are in the timing log.
"""

from __future__ import annotations

import importlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Deque, Dict, Optional, Tuple, Union

from clients.errors import RoboserveError
from robot_client.subscribers.worker import Worker

if TYPE_CHECKING:
    import os

    from robot_client.dataset import DatasetWriter
    from robot_client.records import EpisodeInfo, EpisodeReport, TickRecord
    from robot_client.robot import RobotObservation

EXTRAS = ("chunk_id", "chunk_row", "chunk_age_ms", "held", "lateness_ms")


class DatasetRecorder:
    """Subscriber that appends each episode to a dataset; needs the extra `record` (pyarrow, av).

    Args:
        root: folder of the dataset; one that exists is gone on with.
        failures_last_s: keep in memory the last so many seconds, and record those of episodes without success only;
            None records every episode in full.
        capacity: frames that may wait for the writing thread; frames beyond it are dropped and counted.
    """

    needs_observations = True

    def __init__(
        self, root: Union[str, os.PathLike[str]], *, failures_last_s: Optional[float] = None, capacity: int = 256
    ) -> None:
        self._root = Path(root)
        self._last_s = failures_last_s
        self._capacity = capacity
        self._writer: Optional[DatasetWriter] = None
        self._worker: Optional[Worker] = None
        self._ring: Deque[Tuple[TickRecord, RobotObservation]] = deque()
        self._info: Optional[EpisodeInfo] = None
        self._open = False
        self._dropped = 0

    def on_episode_start(self, info: EpisodeInfo) -> None:
        """Start the writing thread, or empty the ring.

        Raises:
            RoboserveError: `unavailable` where the extra `record` is not installed.
        """
        for module in ("av", "pyarrow", "pyarrow.parquet"):
            # Loaded now: an import in the writing thread would keep the interpreter from the ticks.
            _require(module)
        self._info, self._dropped, self._open = info, 0, False
        self._ring = deque(maxlen=None if self._last_s is None else max(1, round(self._last_s * info.rate_hz)))
        if self._last_s is None:
            self._worker = Worker(self._write, name="roboserve-recorder", capacity=self._capacity)

    def on_step(self, record: TickRecord, observation: Optional[RobotObservation]) -> None:
        """Hand the frame to the writing thread, or keep it in the ring."""
        if observation is None or record.action is None:
            return
        if self._worker is None:
            self._ring.append((record, observation))
        elif not self._worker.put((record, observation)):
            self._dropped += 1

    def on_episode_end(self, report: EpisodeReport) -> None:
        """Put the episode on disk.

        Raises:
            OSError: something could not be written.
            RoboserveError: a frame that does not fit the dataset.
        """
        worker, self._worker = self._worker, None
        try:
            if worker is not None:
                worker.finish()
            elif not report.success:
                for frame in self._ring:
                    self._write(frame)
            self._end(report)
        finally:
            self._ring.clear()
            if self._writer is not None:
                self._writer.discard()

    def close(self) -> None:
        """Close the dataset."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, frame: Tuple[TickRecord, RobotObservation]) -> None:
        record, observation = frame
        writer = self._begin(observation)
        writer.add(dict(observation.images), observation.state, record.action, _extras(record))  # type: ignore[arg-type]

    def _begin(self, observation: RobotObservation) -> DatasetWriter:
        if self._writer is None:
            self._writer = self._make(observation)
        if not self._open:
            self._writer.begin()
            self._open = True
        return self._writer

    def _make(self, observation: RobotObservation) -> DatasetWriter:
        from robot_client.dataset import DatasetWriter

        if (self._root / "meta" / "info.json").exists():
            return DatasetWriter.resume(self._root)
        info = self._info
        if info is None:
            raise RuntimeError("on_episode_start was not called")
        return DatasetWriter.create(
            self._root,
            fps=info.rate_hz,
            cameras={name: (image.shape[0], image.shape[1]) for name, image in observation.images.items()},
            state_names=info.interface.state.names,
            action_names=info.interface.action.names,
            robot_type=info.robot,
            extra_names=EXTRAS,
        )

    def _end(self, report: EpisodeReport) -> None:
        if self._writer is None or not self._open:
            return
        self._open = False
        extra: Dict[str, Any] = {
            "success": report.success is True,
            "ended": report.ended,
            "model_revision": ", ".join(report.revisions),
            "dropped_frames": self._dropped,
        }
        self._writer.end(task=report.info.instruction, extra=extra)


def _require(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise RoboserveError(
            "unavailable", "recorder: pyarrow and av are needed; install the extra `record`"
        ) from error


def _extras(record: TickRecord) -> Dict[str, float]:
    return {
        "chunk_id": -1.0 if record.chunk_id is None else float(record.chunk_id),
        "chunk_row": -1.0 if record.row is None else float(record.row),
        "chunk_age_ms": -1.0 if record.age_ms is None else record.age_ms,
        "held": float(record.source == "hold"),
        "lateness_ms": record.lateness_ms,
    }
