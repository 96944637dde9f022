"""A robot in the middle of an episode while the replica that drives it is killed, on a real platform."""

from __future__ import annotations

import numpy as np
import pytest

from clients.contract import RobotInterface, Vector
from robot_client.action_queue import QueueConfig
from robot_client.link import LinkConfig, PolicyLink
from robot_client.loop import EpisodeConfig, run_episode
from robot_client.robot import RobotObservation
from tests.robot_client.helpers import Watcher
from tests.serving.speaking import LIMIT_S, image

pytestmark = pytest.mark.usefixtures("neighbour")


def vector(prefix: str, size: int, kind: str, limit: float) -> Vector:
    return Vector(
        names=tuple(f"{prefix}{index}" for index in range(size)),
        units=("1",) * size,
        kinds=(kind,) * size,
        low=(-limit,) * size,
        high=(limit,) * size,
    )


class Arm:
    """As the scripted policies see a robot. What it was told is kept; its episode ends when `done` is set."""

    instruction = "go"
    interface = RobotInterface(
        cameras=("left", "right"),
        state=vector("s", 8, "absolute", 1e6),
        action=vector("a", 4, "delta", 1.0),
        control_hz=20.0,
    )

    def __init__(self) -> None:
        self.told: list[np.ndarray] = []
        self.done = False

    def reset(self, seed: int | None) -> None:
        self.told.clear()

    def observe(self) -> RobotObservation:
        return RobotObservation(images={"left": image(), "right": image()}, state=np.zeros(8, np.float32))

    def act(self, action: np.ndarray) -> None:
        self.told.append(action)

    def finished(self) -> bool | None:
        return True if self.done else None


def test_a_robot_whose_replica_is_killed_holds_and_comes_back(platform):
    [replica] = platform.replicas("crashing")
    robot = Arm()

    def on_tick(record) -> None:
        if record.tick == 20:
            replica.kill()
        robot.done = record.tick > 40 and record.source == "chunk"

    watcher = Watcher(on_tick)
    config = EpisodeConfig(instruction="go", max_seconds=60.0, seed=1, queue=QueueConfig(mode="async"))
    where = LinkConfig(platform.websocket("/policy/crashing"), give_up_s=60.0)
    with PolicyLink(where, robot.interface) as link:
        report = run_episode(robot, link, config, [watcher])
    replica.wait(LIMIT_S)

    assert report.ended == "finished"
    lost = next(index for index, record in enumerate(watcher.ticks) if record.hold_reason == "lost")
    last = watcher.ticks[lost - 1]
    assert (last.source, last.depth) == ("chunk", 0), "the chunk is played to its end, and then it holds at once"
    held = [record for record in watcher.ticks[lost:] if record.source == "hold"]
    assert all(np.array_equal(record.action, np.zeros(4)) for record in held)
    assert report.holds["lost"] == sum(record.hold_reason == "lost" for record in held) >= 1
    kinds = [event.kind for event in report.events]
    assert kinds.count("connected") == 2
    assert kinds[0] == "connected"
    assert {"lost", "reconnecting"} <= set(kinds[1 : len(kinds) - 1 - kinds[::-1].index("connected")])
    assert len(robot.told) == report.ticks
