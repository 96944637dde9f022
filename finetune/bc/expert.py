"""Demonstrations from MetaWorld's scripted experts, with noise so that the policy sees how to recover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from robot_client.robot import RobotObservation
    from robot_client.robots.metaworld import MetaWorldRobot


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """How a demonstration is made.

    Attributes:
        noise: standard deviation of the noise on the three motion dimensions that is played but not recorded, in cm.
        noise_memory: correlation of the noise from one step to the next, 0 to 1.
        wander: most steps that the hand drifts in a random direction before the recording starts.
        after_success: frames recorded after the task was solved, so that the policy goes through and not just up to it.
    """

    noise: float = 0.25
    noise_memory: float = 0.5
    wander: int = 12
    after_success: int = 8


@dataclass(frozen=True, kw_only=True)
class Step:
    """One recorded frame: what the robot saw, and what the expert would do (not the noisy action that was played)."""

    observation: RobotObservation
    action: NDArray[np.float32]


class ScriptedExpert:
    """MetaWorld's own controller of a task, on the simulator's privileged observation."""

    def __init__(self, robot: MetaWorldRobot) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._robot = robot
        policy: Any = ENV_POLICY_MAP[robot.task.environment]
        self._policy = policy()

    def action(self) -> NDArray[np.float32]:
        """Return the expert's action, float32 (4,), within [-1, 1]."""
        raw = self._policy.get_action(self._robot.privileged_observation)
        return np.clip(np.asarray(raw, dtype=np.float32), -1.0, 1.0)


def demonstrate(robot: MetaWorldRobot, seed: int, config: ExpertConfig) -> Iterator[Step]:
    """Play one episode from `seed` and give its frames; the caller asks the robot whether it succeeded.

    The recorded labels are the expert's clean actions in the states that noise led to (DART, Laskey et al. 2017).
    """
    random = np.random.default_rng([seed, 1])
    robot.reset(seed)
    expert = ScriptedExpert(robot)
    _wander(robot, random, config)
    noise = np.zeros(3)
    left = config.after_success
    fresh = np.sqrt(1.0 - config.noise_memory**2)
    while robot.finished() is None or (robot.finished() and left > 0):
        left -= robot.finished() is True
        action = expert.action()
        yield Step(observation=robot.observe(), action=action)
        noise = config.noise_memory * noise + fresh * random.normal(0.0, config.noise, 3)
        robot.act(action + np.append(noise, 0.0).astype(np.float32))


def _wander(robot: MetaWorldRobot, random: np.random.Generator, config: ExpertConfig) -> None:
    direction = random.uniform(-1.0, 1.0, 3)
    for _ in range(int(random.integers(0, config.wander + 1))):
        robot.act(np.append(direction, -1.0).astype(np.float32))
