"""Reads a run folder: `episodes/TASK/NNNN-.../` with a video and what the robot client's subscribers write."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class EpisodeData:
    """One episode's folder."""

    folder: Path
    summary: dict[str, Any]

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.summary["task"])

    @property
    def success(self) -> bool:
        """Whether the robot said that the task was done."""
        return bool(self.summary["success"])

    @cached_property
    def ticks(self) -> list[dict[str, Any]]:
        """Lines of `ticks.jsonl`."""
        return _lines(self.folder / "ticks.jsonl")

    @cached_property
    def requests(self) -> list[dict[str, Any]]:
        """Lines of `requests.jsonl`."""
        return _lines(self.folder / "requests.jsonl")

    @cached_property
    def reward(self) -> dict[str, Any] | None:
        """What `robot_client.subscribers.reward_stream` wrote; None where no reward model was asked."""
        path = self.folder / "reward.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    @cached_property
    def path(self) -> dict[str, Any] | None:
        """What `robot_client.subscribers.path_ask` wrote; None where no path predictor was asked."""
        path = self.folder / "path.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    @property
    def final_progress(self) -> float | None:
        """The reward model's progress after the last frame that it judged."""
        values = self.reward["values"] if self.reward else []
        return float(values[-1]["progress"]) if values else None

    @property
    def video(self) -> Path | None:
        """The film, if there is one."""
        path = self.folder / "video.mp4"
        return path if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One row of the table.

    Latency is from the observation to the chunk in the queue, ms; None without an answer. Progress is the mean of what
    the reward model gave the episodes' last frames; None without one.
    """

    task: str
    episodes: int
    successes: int
    progress: float | None
    rate_hz: float
    within_2ms: float
    p50_ms: float | None
    p99_ms: float | None
    batch: float | None
    holds: int
    events: int


def read_episodes(folder: Path) -> list[EpisodeData]:
    """Return the episodes that ended, in order of task and time."""
    summaries = sorted((folder / "episodes").glob("*/*/episode.json"))
    return [EpisodeData(path.parent, json.loads(path.read_text("utf-8"))) for path in summaries]


def rows(episodes: list[EpisodeData]) -> list[TaskRow]:
    """Return a row for each task and one for all of them, last."""
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    found = [_row(task, [episode for episode in episodes if episode.task == task]) for task in tasks]
    return [*found, _row("all tasks", episodes)] if found else []


def latencies(episodes: list[EpisodeData]) -> list[float]:
    """Return observation-to-chunk latencies of answered requests, ms."""
    return [line["latency_ms"] for item in episodes for line in item.requests if line["round_trip_ms"] is not None]


def batch_sizes(episodes: list[EpisodeData]) -> Counter[int]:
    """Return how many answers rode in a batch of each size."""
    return Counter(line["batch_size"] for item in episodes for line in item.requests if line["batch_size"] is not None)


def notable_events(item: EpisodeData) -> list[dict[str, Any]]:
    """Return an episode's events, less the first connection, which every episode has."""
    return [event for event in item.summary["events"] if event["kind"] != "connected" or event["time_s"] > 0]


def reward_faults(episodes: list[EpisodeData]) -> Counter[str]:
    """Return why reward models stopped judging, each with the number of episodes."""
    return Counter(item.reward["fault"] for item in episodes if item.reward and item.reward["fault"])


def _row(task: str, episodes: list[EpisodeData]) -> TaskRow:
    times, sizes = latencies(episodes), batch_sizes(episodes)
    ticks = sum(item.summary["ticks"] for item in episodes)
    judged = [item.final_progress for item in episodes if item.final_progress is not None]
    weights = [item.summary["ticks"] for item in episodes] if ticks else None
    return TaskRow(
        task=task,
        episodes=len(episodes),
        successes=sum(item.success for item in episodes),
        progress=float(np.mean(judged)) if judged else None,
        rate_hz=float(np.average([item.summary["rate_hz"] for item in episodes], weights=weights)),
        within_2ms=float(np.average([item.summary["within_2ms"] for item in episodes], weights=weights)),
        p50_ms=float(np.percentile(times, 50)) if times else None,
        p99_ms=float(np.percentile(times, 99)) if times else None,
        batch=sum(size * count for size, count in sizes.items()) / sizes.total() if sizes else None,
        holds=sum(item.summary["held_ticks"] for item in episodes),
        events=sum(len(notable_events(item)) for item in episodes),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
