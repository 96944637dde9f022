"""Parts that several robot client tests share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_client.action_queue import QueueConfig
from robot_client.link import LinkConfig, PolicyLink
from robot_client.loop import Episode, EpisodeConfig
from robot_client.robots.pointmass import PointMass
from tests.robot_client.fake_server import FakeServer, make_contract

if TYPE_CHECKING:
    from collections.abc import Callable

    from robot_client.records import EpisodeReport, TickRecord
    from robot_client.robot import RobotObservation


def towards_goal(rows: int, speed: float = 0.9) -> Callable[[dict[str, Any]], np.ndarray]:
    """A policy for `PointMass`: straight to the goal at a constant velocity."""

    def plan(message: dict[str, Any]) -> np.ndarray:
        state = message["observation"]["state"].astype(float)
        way = state[2:] - state[:2]
        return np.tile(speed * way / max(1e-9, float(np.linalg.norm(way))), (rows, 1))

    return plan


def point_server(robot: PointMass, *, rows: int = 16, **changes: Any) -> FakeServer:
    contract = make_contract(
        state=robot.interface.state,
        action=robot.interface.action,
        control_hz=robot.interface.control_hz,
        chunk_length=rows,
        **changes,
    )
    return FakeServer(contract=contract, plan=towards_goal(rows))


class NeverThere(PointMass):
    """A point mass whose episode only time ends, and that keeps what it was told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.told: list[np.ndarray] = []

    def act(self, action: np.ndarray) -> None:
        self.told.append(action.copy())
        super().act(action)

    def finished(self) -> bool | None:
        return None


class Watcher:
    """A subscriber that keeps every tick and can act on one."""

    needs_observations = False

    def __init__(self, on_tick: Callable[[TickRecord], None] | None = None) -> None:
        self.ticks: list[TickRecord] = []
        self.report: EpisodeReport | None = None
        self._on_tick = on_tick

    def on_episode_start(self, info: Any) -> None:
        self.ticks = []

    def on_step(self, record: TickRecord, observation: RobotObservation | None) -> None:
        self.ticks.append(record)
        if self._on_tick is not None:
            self._on_tick(record)

    def on_episode_end(self, report: EpisodeReport) -> None:
        self.report = report


def fast_link(server: FakeServer, robot: PointMass, **options: Any) -> PolicyLink:
    values = {"first_pause_s": 0.02, "longest_pause_s": 0.1, "connect_timeout_s": 2.0, "give_up_s": 10.0, **options}
    return PolicyLink(LinkConfig(server.url, **values), robot.interface)


def episode(robot: PointMass, link: PolicyLink, *watchers: Any, **options: Any) -> Episode:
    queue = options.pop("queue", QueueConfig())
    config = EpisodeConfig(instruction="go", **{"max_seconds": 1.0, "seed": 1, "queue": queue, **options})
    return Episode(robot, link, config, watchers)


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.005)
