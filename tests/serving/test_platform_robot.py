"""A robot in the middle of an episode while the replica that drives it is killed, on a real platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from clients.contract import RobotInterface
from clients.policy import PolicyClient
from robot_client.action_queue import QueueConfig
from robot_client.link import LinkConfig, PolicyLink
from robot_client.loop import EpisodeConfig, run_episode
from robot_client.robot import RobotObservation
from tests.robot_client.helpers import Watcher
from tests.serving.speaking import LIMIT_S, image

if TYPE_CHECKING:
    from clients.contract import PolicyContract

pytestmark = pytest.mark.usefixtures("neighbour")


class Arm:
    """The robot that a contract asks for. What it was told is kept; its episode ends when `done` is set."""

    instruction = "go"

    def __init__(self, contract: PolicyContract) -> None:
        self.interface = RobotInterface(
            cameras=tuple(camera.name for camera in contract.cameras),
            state=contract.state,
            action=contract.action,
            control_hz=contract.control_hz,
        )
        self.told: list[np.ndarray] = []
        self.done = False

    def reset(self, seed: int | None) -> None:
        self.told.clear()

    def observe(self) -> RobotObservation:
        state = np.zeros(self.interface.state.size, np.float32)
        return RobotObservation(images={camera: image() for camera in self.interface.cameras}, state=state)

    def act(self, action: np.ndarray) -> None:
        self.told.append(action)

    def finished(self) -> bool | None:
        return True if self.done else None


def test_a_robot_whose_replica_is_killed_holds_and_comes_back(platform):
    [replica] = platform.replicas("crashing")
    address = platform.websocket("/policy/crashing")
    with PolicyClient(address) as client:
        robot = Arm(client.contract)

    def on_tick(record) -> None:
        if record.tick == 20:
            replica.kill()
        robot.done = record.tick > 40 and record.source == "chunk"

    watcher = Watcher(on_tick)
    config = EpisodeConfig(instruction="go", max_seconds=60.0, seed=1, queue=QueueConfig(mode="async"))
    with PolicyLink(LinkConfig(address, give_up_s=60.0), robot.interface) as link:
        report = run_episode(robot, link, config, [watcher])
    replica.wait(LIMIT_S)

    assert report.ended == "finished"
    lost = next(index for index, record in enumerate(watcher.ticks) if record.hold_reason == "lost")
    last = watcher.ticks[lost - 1]
    assert (last.source, last.depth) == ("chunk", 0), "the chunk is played to its end, and then it holds at once"
    held = [record for record in watcher.ticks[lost:] if record.source == "hold"]
    assert all(np.array_equal(record.action, np.zeros(4)) for record in held)
    assert report.holds["lost"] == sum(record.hold_reason == "lost" for record in held) >= 1
    # The proxy may keep a new connection waiting until the replica is back, so an attempt need not fail in between.
    kinds = [event.kind for event in report.events if event.kind != "reconnecting"]
    assert kinds == ["connected", "lost", "connected"]
    assert len(robot.told) == report.ticks
