"""Robots of the robot client as environments: what is played, what is held, what is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from clients.errors import RoboserveError
from finetune.common.environments.registry import make_env
from finetune.common.environments.robot import RobotEnv
from finetune.common.options import lanes_of
from robot_client.robots.pointmass import PointMass
from robot_client.safety import SafetyConfig


class Recorded(PointMass):
    """A point mass that keeps its commands and who gave them."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.commands: list[np.ndarray] = []

    def act(self, action: np.ndarray) -> None:
        self.commands.append(np.array(action))
        super().act(action)


def toward_goal(seen: np.ndarray) -> np.ndarray:
    way = seen[2:] - seen[:2]
    return (way / max(np.abs(way).max(), 1e-6)).astype(np.float32)


def test_it_keeps_gymnasiums_rules() -> None:
    env = RobotEnv("pointmass")
    check_env(env, skip_render_check=True)
    env.close()


def test_an_episode_ends_where_the_robot_says_so() -> None:
    env = make_env("robot:name=pointmass,horizon=150")
    seen, _ = env.reset(seed=3)
    assert env.unwrapped.instruction == "go to the green goal"
    paid, over = 0.0, False
    while not over:
        seen, reward, terminated, truncated, info = env.step(toward_goal(seen))
        paid, over = paid + reward, terminated or truncated
    assert (paid, terminated, info["success"]) == (1.0, True, True)
    assert env.render().shape == (48, 64, 3)
    _, _, terminated, _, _ = env.step(np.zeros(2, np.float32))
    short = make_env("robot:name=pointmass,horizon=2")
    short.reset(seed=3)
    assert not short.step(np.zeros(2))[3]
    assert short.step(np.zeros(2))[3]


def test_actions_stand_for_each_dimensions_range() -> None:
    robot = Recorded(kind="velocity", max_speed=0.5)
    env = RobotEnv(robot)
    env.reset(seed=0)
    env.step(np.array([1.0, -1.0]))
    env.step(np.array([0.0, 7.0]))
    assert np.allclose(robot.commands, [[0.5, -0.5], [0.0, 0.5]])


@pytest.mark.parametrize(("kind", "held"), [("velocity", [0.0, 0.0]), ("absolute", [0.4, -0.2])])
def test_a_robot_with_a_clock_is_held_while_the_learner_thinks(kind: str, held: list[float]) -> None:
    robot = Recorded(kind=kind, control_hz=100.0)
    env = RobotEnv(robot, pace="clock")
    env.reset(seed=0)
    env.step(np.array([0.4, -0.2]))
    until = time.monotonic() + 20.0
    while len(robot.commands) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    env.close()
    played = len(robot.commands)
    assert played >= 6
    assert np.allclose(robot.commands[1:], held)
    time.sleep(0.05)
    assert len(robot.commands) == played
    with pytest.raises(RoboserveError, match="was closed"):
        env.step(np.zeros(2))


def test_a_refused_command_does_not_reach_the_robot() -> None:
    robot = Recorded()
    env = RobotEnv(robot, safety=SafetyConfig(validate=lambda action, _: "too fast" if action[0] > 0.5 else None))
    env.reset(seed=0)
    with pytest.raises(RoboserveError, match="too fast"):
        env.step(np.array([1.0, 0.0]))
    assert robot.commands == []


@pytest.mark.parametrize("task", ["robot:name=nobody", "robot:name=pointmass,camera=side", "robot:name=pointmass,x"])
def test_what_is_not_there_is_refused(task: str) -> None:
    with pytest.raises((RoboserveError, ValueError), match=r"nobody|side|key=value"):
        make_env(task)


def test_robots_are_judged_fewer_at_a_time() -> None:
    assert [lanes_of(task, given) for task, given in (("slot", 0), ("robot:name=pointmass", 0), ("slot", 3))] == [
        50,
        8,
        3,
    ]
