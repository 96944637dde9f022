"""Frames of simulated episodes with what is true of them: the way that the expert takes from there, and how far it is.

How near a state is to its goal is measured, not guessed from the clock: it is the number of steps that the expert needs
from there, over the number that it needs from the start of that scene. That holds for states of failing episodes too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from finetune.bc.expert import ScriptedExpert
from finetune.rewards.rollouts import plan
from models.hamster.project import Camera
from robot_client.robots.metaworld import CAMERA
from robot_client.robots.metaworld_camera import camera_matrices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from finetune.rewards.rollouts import Kind
    from robot_client.robots.metaworld import MetaWorldRobot

AFTER_SUCCESS = 5
_WANDER = 20
_SHORTEST_RUN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """A way that the expert went to success.

    Attributes:
        tips: float64 (n, 3), the point between the fingertips before every step and after the last one, m.
        opens: bool (n,), whether the gripper is told to be open from there on; the last one repeats.
        states: what to draw each moment with: joint positions (n, q).
        success: index of the moment at which the task was solved; `AFTER_SUCCESS` more follow.
    """

    tips: NDArray[np.float64]
    opens: NDArray[np.bool_]
    states: NDArray[np.float64]
    success: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One image and what is true of it.

    Attributes:
        image: uint8 (h, w, 3).
        points: float32 (n, 2), the rest of the expert's way in normalised coordinates; n is 0 after success, and where
            a point lies outside the image.
        opens: bool (n,), the gripper's state from each point on.
        progress: 1 - steps that the expert needs from here / steps that it needs from the scene's start; at most 1.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    opens: NDArray[np.bool_]
    progress: float


def follow(robot: MetaWorldRobot, *, most: int = 200) -> Way | None:
    """Let the expert play from where the robot is; None if it does not succeed within that many steps."""
    expert = ScriptedExpert(robot)
    data = robot.simulation.data
    tips, states = [robot.fingertips], [np.array(data.qpos)]
    efforts: list[float] = []
    success: int | None = 0 if robot.outcome[1] else None
    while len(efforts) < most and (success is None or len(efforts) < success + AFTER_SUCCESS):
        action = expert.action()
        efforts.append(float(action[3]))
        robot.act(action)
        tips.append(robot.fingertips)
        states.append(np.array(data.qpos))
        if success is None and robot.outcome[1]:
            success = len(efforts)
    if success is None:
        return None
    opens = steady(np.array(efforts) <= 0.0)
    return Way(tips=np.stack(tips), opens=np.append(opens, opens[-1]), states=np.stack(states), success=success)


def steady(opens: NDArray[np.bool_], *, shortest: int = _SHORTEST_RUN) -> NDArray[np.bool_]:
    """Return the gripper's states without flutter: runs shorter than `shortest` take the state before them."""
    kept = opens.copy()
    starts = [0, *(np.flatnonzero(opens[1:] != opens[:-1]) + 1).tolist(), len(opens)]
    for start, end in pairwise(starts[1:]):
        if end - start < shortest:
            kept[start:end] = kept[start - 1]
    return kept


def needed(robot: MetaWorldRobot, seed: int) -> int | None:
    """Return the steps that the expert needs from the start of a scene; None where it fails."""
    robot.reset(seed)
    way = follow(robot)
    return None if way is None else max(1, way.success)


def start(robot: MetaWorldRobot, seed: int, *, wander: bool) -> None:
    """Put the robot at the start of a scene, its hand where a random drift has taken it if it is to wander."""
    robot.reset(seed)
    random = np.random.default_rng([seed, 11])
    if wander:
        direction = random.uniform(-1.0, 1.0, 3)
        for _ in range(int(random.integers(1, _WANDER + 1))):
            robot.act(np.append(direction, random.choice([-1.0, 1.0])).astype(np.float32))


def drawn(robot: MetaWorldRobot, way: Way, moments: Sequence[int], full: int) -> list[Frame]:
    """Draw moments of a way in the scene's present looks; the simulator is left in the last one's state."""
    import mujoco

    simulation = robot.simulation
    frames = []
    for moment in moments:
        simulation.data.qpos[:] = way.states[moment]
        mujoco.mj_forward(simulation.model, simulation.data)
        frames.append(_frame(robot, way, moment, full))
    return frames


def failing(robot: MetaWorldRobot, kind: Kind, seed: int, full: int, shares: Sequence[float]) -> list[Frame]:
    """Return frames of a failing rollout, each with the way that the expert takes from there.

    Args:
        shares: where in the rollout the frames lie, 0 to 1.

    Returns:
        fewer frames where the expert does not get there any more; none where the scene does not allow the kind.
    """
    rollout = plan(robot, kind, seed)
    if rollout is None:
        return []
    frames = []
    for share in shares:
        robot.reset(seed)
        for action in rollout.actions[: round(share * len(rollout.actions))]:
            robot.act(action)
        image = robot.observe().images[CAMERA]
        way = follow(robot)
        if way is not None:
            frames.append(_labelled(robot, image, way, 0, full))
    return frames


def camera_of(robot: MetaWorldRobot, image: NDArray[np.uint8]) -> Camera:
    """Return the camera that took an image of the robot's scene just now."""
    height, width = image.shape[:2]
    intrinsics, extrinsics = camera_matrices(robot.simulation, width=width, height=height)
    return Camera(intrinsics=intrinsics, extrinsics=extrinsics, width=width, height=height)


def _frame(robot: MetaWorldRobot, way: Way, moment: int, full: int) -> Frame:
    return _labelled(robot, robot.observe().images[CAMERA], way, moment, full)


def _labelled(robot: MetaWorldRobot, image: NDArray[np.uint8], way: Way, moment: int, full: int) -> Frame:
    left = max(0, way.success - moment)
    points, _ = camera_of(robot, image).project(way.tips[moment:])
    seen = left > 0 and bool((np.isfinite(points) & (points >= 0.0) & (points <= 1.0)).all())
    return Frame(
        image=image,
        points=points.astype(np.float32) if seen else np.zeros((0, 2), np.float32),
        opens=way.opens[moment:] if seen else np.zeros(0, np.bool_),
        progress=1.0 - left / full,
    )
