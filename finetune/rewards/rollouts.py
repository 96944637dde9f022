"""Rollouts of mixed quality: MetaWorld's scripted experts, and the ways in which a robot fails.

A failure is as long as a success of its scene would be, give or take a fifth: neither the number of frames nor the
clock tells them apart, so a model has to look.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from finetune.bc.expert import ScriptedExpert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from robot_client.robots.metaworld import MetaWorldRobot

Kind = Literal["expert", "noisy", "near_miss", "half_done", "stalled", "wrong_object", "idle"]
QUALITY: dict[Kind, str] = {
    "expert": "successful",
    "noisy": "successful",
    "near_miss": "suboptimal",
    "half_done": "suboptimal",
    "stalled": "failure",
    "wrong_object": "failure",
    "idle": "failure",
}
_AFTER_SUCCESS = 8
_ATTEMPTS = 12
_REACHES = {"near_miss": (0.85, 0.95), "half_done": (0.4, 0.6), "stalled": (0.1, 0.35)}
_NOISE = {"noisy": 0.7}
_OBJECTS_AND_GOAL = (slice(4, 7), slice(11, 14), slice(36, 39))


class Behaviour(Protocol):
    """Decides what is played."""

    def __call__(self, step: int) -> NDArray[np.float32]:
        """Return the action of a step, float32 (4,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A rollout that kept its kind's promise: `actions` are played from `seed`; `attempt` is the draw that did."""

    kind: Kind
    seed: int
    attempt: int
    actions: tuple[NDArray[np.float32], ...]
    success: bool


def plan(robot: MetaWorldRobot, kind: Kind, seed: int) -> Rollout | None:
    """Find a rollout of a kind in the scene of `seed`, without rendering; None where the scene does not allow it.

    Successful kinds must succeed, all others must never; each attempt draws anew, and a near miss stops a little
    earlier.
    """
    length = _expert_length(robot, seed)
    if length is None:
        return None
    for attempt in range(_ATTEMPTS):
        random = np.random.default_rng([seed, 7, attempt])
        steps = length if QUALITY[kind] == "successful" else int(length * random.uniform(0.8, 1.2))
        make = partial(_behaviour, robot, kind, length, attempt, random)
        actions, success = _play(robot, seed, make, steps, kind)
        if success == (QUALITY[kind] == "successful"):
            return Rollout(kind=kind, seed=seed, attempt=attempt, actions=tuple(actions), success=success)
    return None


def replay(robot: MetaWorldRobot, rollout: Rollout, *, every: int) -> Iterator[tuple[NDArray[np.float32], bool]]:
    """Play a rollout again; gives (the action that follows, whether the frame before it is kept), and plays it.

    Args:
        every: control steps from one kept frame to the next; the last state is kept too.
    """
    robot.reset(rollout.seed)
    for step, action in enumerate(rollout.actions):
        yield action, step % every == 0
        robot.act(action)
    yield rollout.actions[-1], True


def _expert_length(robot: MetaWorldRobot, seed: int) -> int | None:
    """Return the control steps of a clean expert episode, what follows its success included; None where it fails."""
    actions, success = _play(robot, seed, lambda: _Expert(robot, np.random.default_rng([seed, 1]), 0.1), 200, "expert")
    return len(actions) if success else None


def _play(
    robot: MetaWorldRobot, seed: int, make: Callable[[], Behaviour], steps: int, kind: Kind
) -> tuple[list[NDArray[np.float32]], bool]:
    robot.reset(seed)
    behaviour = make()
    actions: list[NDArray[np.float32]] = []
    left = _AFTER_SUCCESS
    # A success is over soon after it; noise may cost it more steps than the clean expert took.
    most = 200 if QUALITY[kind] == "successful" else max(16, steps)
    while len(actions) < most and left > 0:
        action = behaviour(len(actions))
        robot.act(action)
        actions.append(action)
        if robot.finished():
            if QUALITY[kind] != "successful":
                break
            left -= 1
    return actions, robot.finished() is True


class _Expert:
    """The scripted expert with correlated noise on its motion, cm."""

    def __init__(self, robot: MetaWorldRobot, random: np.random.Generator, noise: float) -> None:
        self._expert = ScriptedExpert(robot)
        self._random, self._level = random, noise
        self._noise = np.zeros(3)

    def __call__(self, step: int) -> NDArray[np.float32]:
        del step
        self._noise = 0.7 * self._noise + np.sqrt(1 - 0.7**2) * self._random.normal(0.0, self._level, 3)
        action = self._expert.action() + np.append(self._noise, 0.0)
        return np.asarray(np.clip(action, -1.0, 1.0), dtype=np.float32)


class _Interrupted:
    """An expert that ends after some steps: it holds still, or retreats and then holds still."""

    def __init__(
        self, expert: Behaviour, until: int, retreat: NDArray[np.float64], random: np.random.Generator
    ) -> None:
        self._expert, self._until, self._retreat, self._random = expert, until, retreat, random
        self._grip = -1.0

    def __call__(self, step: int) -> NDArray[np.float32]:
        if step < self._until:
            action = self._expert(step)
            self._grip = float(action[3])
            return action
        move = self._random.normal(0.0, 0.05, 3) + (self._retreat if step < self._until + 12 else 0.0)
        return np.clip(np.append(move, self._grip), -1.0, 1.0).astype(np.float32)


class _Mistaken:
    """An expert that takes every object and the goal to lie elsewhere."""

    def __init__(self, robot: MetaWorldRobot, offset: NDArray[np.float64]) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._robot, self._offset = robot, offset
        policy: Any = ENV_POLICY_MAP[robot.task.environment]
        self._policy = policy()

    def __call__(self, step: int) -> NDArray[np.float32]:
        del step
        seen = self._robot.privileged_observation
        for part in _OBJECTS_AND_GOAL:
            seen[part] += self._offset
        return np.clip(np.asarray(self._policy.get_action(seen), dtype=np.float32), -1.0, 1.0)


class _Idle:
    """A hand that rests, or drifts in directions that change now and then."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._speed = float(random.choice([0.0, 0.3, 0.8]))
        self._direction = np.zeros(3)

    def __call__(self, step: int) -> NDArray[np.float32]:
        if step % 15 == 0:
            self._direction = self._random.uniform(-1.0, 1.0, 3)
        move = self._speed * self._direction + self._random.normal(0.0, 0.05, 3)
        return np.clip(np.append(move, -1.0), -1.0, 1.0).astype(np.float32)


def _behaviour(robot: MetaWorldRobot, kind: Kind, length: int, attempt: int, random: np.random.Generator) -> Behaviour:
    if kind == "idle":
        return _Idle(random)
    if kind == "wrong_object":
        angle = random.uniform(0.0, 2 * np.pi)
        reach = random.uniform(0.12, 0.2)
        return _Mistaken(robot, reach * np.array([np.cos(angle), np.sin(angle), 0.0]))
    expert = _Expert(robot, random, _NOISE.get(kind, 0.15))
    if QUALITY[kind] == "successful":
        return expert
    low, high = _REACHES[kind]
    share = random.uniform(low, high) * 0.93**attempt
    retreat = np.zeros(3)
    if kind == "half_done" and random.random() < 0.5:
        retreat = np.array([*random.uniform(-0.5, 0.5, 2), 0.6])
    return _Interrupted(expert, int(share * (length - _AFTER_SUCCESS)), retreat, random)
