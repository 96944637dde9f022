"""The schedule of the loop, on a clock that the test moves."""

from __future__ import annotations

import numpy as np
import pytest

from robot_client.action_queue import ActionQueue, QueueConfig
from robot_client.clock import MonotonicClock
from robot_client.link import LinkConfig
from robot_client.loop import Episode, EpisodeConfig
from tests.robot_client.fake_server import make_contract
from tests.robot_client.helpers import NeverThere, Watcher

PERIOD = 0.02


class HandClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, at: float) -> None:
        self.time = max(self.time, at)


class CannedLink:
    """Answers every observation at once with a chunk that counts its rows; no thread and no socket."""

    state = "ready"
    config = LinkConfig("nowhere:1")

    def __init__(self, clock: HandClock, rows: int) -> None:
        self._clock = clock
        self._rows = rows
        self._queue: ActionQueue | None = None
        self.contract = make_contract(chunk_length=rows, execute=rows)

    def wait_ready(self, timeout_s: float):
        return self.contract

    def begin(self, queue, instruction, *, seed=None, path=None) -> None:
        self._queue = queue

    def end(self) -> None:
        self._queue = None

    def wants(self, anchor: int) -> bool:
        return self._queue is not None and self._queue.wants(anchor)

    def offer(self, observation, *, anchor: int, observed_at: float) -> None:
        rows = np.repeat(np.arange(self._rows, dtype=np.float32)[:, None] / 1000, 2, axis=1)
        self._queue.put(rows, epoch=self._queue.epoch, anchor=anchor, observed_at=observed_at, now=self._clock.now())

    def drain(self):
        return [], []


class Slow(NeverThere):
    """Takes as long for each command as the test says."""

    def __init__(self, clock: HandClock, costs: dict[int, float], usual: float = 0.0) -> None:
        super().__init__()
        self._clock, self._costs, self._usual = clock, costs, usual
        self.times: list[float] = []

    def act(self, action) -> None:
        self.times.append(self._clock.now())
        self._clock.time += self._costs.get(len(self.told), self._usual)
        super().act(action)


def gaps(robot: Slow) -> np.ndarray:
    """Seconds between commands; the last one is the stop after the episode."""
    return np.diff(robot.times[:-1])


def run(costs: dict[int, float], *, rows: int = 1000, seconds: float = 1.0, usual: float = 0.0):
    clock = HandClock()
    robot, watcher = Slow(clock, costs, usual), Watcher()
    config = EpisodeConfig(instruction="go", max_seconds=seconds, queue=QueueConfig(mode="blocking"))
    report = Episode(robot, CannedLink(clock, rows), config, [watcher], clock=clock).run()
    return report, robot, watcher


def test_ticks_are_due_at_whole_periods_after_the_first():
    report, robot, watcher = run({})
    assert (report.ticks, report.missed_ticks, report.within_2ms) == (50, 0, 1.0)
    assert gaps(robot) == pytest.approx(np.full(49, PERIOD))
    assert [record.row for record in watcher.ticks] == list(range(50))


def test_after_a_long_stall_the_missed_rows_are_dropped_and_nothing_bursts():
    report, robot, watcher = run({10: 0.205})
    assert report.missed_ticks == 9
    assert report.ticks == 41
    assert gaps(robot).min() >= PERIOD / 2
    assert [record.row for record in watcher.ticks] == [*range(11), *range(20, 50)]
    assert [record.tick for record in watcher.ticks] == [*range(11), *range(20, 50)]


def test_a_little_late_is_made_good_at_the_next_tick_without_drift():
    report, robot, _ = run({10: 0.025})
    assert report.missed_ticks == 0
    assert gaps(robot).min() == pytest.approx(0.015)
    assert robot.times[20] - robot.times[0] == pytest.approx(20 * PERIOD)
    assert report.lateness_ms["max"] == pytest.approx(5.0)


def test_a_robot_that_is_always_too_slow_keeps_its_own_pace():
    report, robot, _ = run({}, usual=0.022)
    assert gaps(robot).min() >= 0.022 - 1e-9
    assert 40 <= report.ticks <= 46
    assert report.ticks + report.missed_ticks == 50


def test_the_real_clock_never_wakes_early():
    clock = MonotonicClock()
    for delay in (0.0, 0.0004, 0.003):
        due = clock.now() + delay
        clock.sleep_until(due)
        assert clock.now() >= due
