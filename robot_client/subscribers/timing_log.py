"""Writes what happened, when and how long it took: one folder an episode, JSON, readable while it grows.

`ticks.jsonl`, one line a tick:
    tick (int), scheduled_s, actual_s (seconds since the first tick was due), lateness_ms, source ("chunk" or "hold"),
    chunk_id, row (int or null), age_ms (of the observation behind the chunk, or null), hold_reason (text or null),
    depth (rows left), clamped (list of dimension names), action (list of numbers or null).

`requests.jsonl`, one line a request:
    tick (that row 0 was meant for), outcome ("played", "late", "old_epoch" or an error code), chunk_id, time_s (when
    the observation was taken), latency_ms (observation to chunk in the queue), encode_ms, round_trip_ms (network and
    server, or null), request_bytes, batch_size, timings (map of ms on the server: queue, batch_wait, decode, forward,
    encode, total), revision, inference_delay (RTC's d, or null), actions (the chunk as it came, H lists, or null).

`episode.json`, written at the end:
    robot, task, instruction, mode, seed, control_hz, max_seconds, started_unix, model, action_names, state_names (from
    the contract), path (null, or what was drawn on the policy's images: camera, points, gripper_open, issues, model,
    latency_ms), ended (finished, max_seconds, interrupted, server_lost, refused or robot_failed), success (true,
    false or null), seconds, ticks, missed_ticks, rate_hz (held), within_2ms (share of ticks, 0 to 1), lateness_ms,
    latency_ms, round_trip_ms (maps with p50, p90, p99, max; empty without values), holds (map of reason to ticks),
    held_ticks, clamped (map of dimension to ticks), requests (map of outcome to number), batch_sizes (map of size, as
    text, to number), revisions (list), events (list of kind, time_s, message, code), unlogged (ticks that found the
    log's mailbox full).
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, TextIO, Union

import numpy as np

from robot_client.subscribers.worker import Worker

if TYPE_CHECKING:
    import os

    from robot_client.records import EpisodeInfo, EpisodeReport, TickRecord
    from robot_client.robot import RobotObservation

_CAPACITY = 4096


class TimingLog:
    """Subscriber that writes `ticks.jsonl`, `requests.jsonl` and `episode.json`; see the module for their fields.

    Args:
        root: folder in which each episode gets its own, numbered and named after its task and seed.
    """

    needs_observations = False

    def __init__(self, root: Union[str, os.PathLike[str]]) -> None:
        self._root = Path(root)
        self.folder: Optional[Path] = None
        self._files: Optional[ExitStack] = None
        self._worker: Optional[Worker] = None
        self._unlogged = 0

    def on_episode_start(self, info: EpisodeInfo) -> None:
        """Make the episode's folder.

        Raises:
            OSError: the folder cannot be made or written.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        number = sum(1 for entry in self._root.iterdir() if entry.is_dir())
        task = re.sub(r"[^A-Za-z0-9._-]+", "-", info.task).strip(".-") or "task"
        seed = "" if info.seed is None else f"-seed{info.seed}"
        self.folder = self._root / f"{number:04d}-{task}{seed}"
        self.folder.mkdir()
        self._unlogged = 0
        self._files = ExitStack()
        ticks = self._files.enter_context((self.folder / "ticks.jsonl").open("w", encoding="utf-8"))
        requests = self._files.enter_context((self.folder / "requests.jsonl").open("w", encoding="utf-8"))
        self._worker = Worker(_Writer(ticks, requests).write, name="roboserve-timing-log", capacity=_CAPACITY)

    def on_step(self, record: TickRecord, observation: Optional[RobotObservation]) -> None:
        """Hand the tick to the writing thread."""
        del observation
        if self._worker is not None and not self._worker.put(record):
            self._unlogged += 1

    def on_episode_end(self, report: EpisodeReport) -> None:
        """Finish the lines and write the summary.

        Raises:
            OSError: something could not be written.
        """
        if self._worker is None or self._files is None or self.folder is None:
            return
        worker, self._worker = self._worker, None
        with self._files:
            worker.finish()
        summary = {**episode_map(report), "unlogged": self._unlogged}
        (self.folder / "episode.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def episode_map(report: EpisodeReport) -> Dict[str, Any]:
    """Return a report as plain values; the fields of `episode.json`."""
    info = report.info
    plain = {item.name: _plain(getattr(report, item.name)) for item in fields(report) if item.name != "info"}
    return {
        "robot": info.robot,
        "task": info.task,
        "instruction": info.instruction,
        "mode": info.mode,
        "seed": info.seed,
        "control_hz": info.rate_hz,
        "max_seconds": info.max_seconds,
        "started_unix": info.started_unix,
        "model": info.contract.model,
        "action_names": list(info.contract.action.names),
        "state_names": list(info.contract.state.names),
        "path": None if info.path is None else info.path.to_map(),
        **plain,
        "held_ticks": sum(report.holds.values()),
        "events": [_fields(event) for event in report.events],
    }


class _Writer:
    def __init__(self, ticks: TextIO, requests: TextIO) -> None:
        self._ticks = ticks
        self._requests = requests

    def write(self, record: TickRecord) -> None:
        line = {name: value for name, value in _fields(record).items() if name not in ("requests", "events")}
        self._ticks.write(json.dumps({**line, "lateness_ms": round(record.lateness_ms, 4)}) + "\n")
        for request in record.requests:
            self._requests.write(json.dumps(_fields(request)) + "\n")


def _fields(record: Any) -> Dict[str, Any]:
    return {item.name: _plain(getattr(record, item.name)) for item in fields(record)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.round(value.astype(np.float64), 6).tolist()
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
