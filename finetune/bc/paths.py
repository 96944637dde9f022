"""Paths for a policy that follows one: the demonstrated way of the gripper, made inexact, drawn as the planner draws.

HAMSTER (arXiv 2502.05485) draws on every image the path that a vision-language model saw in the first one. So one path,
from the episode's first frame to its end, belongs to all frames of a demonstration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clients.path_messages import laid_over
from finetune.vlm.episodes import camera_of, steady
from models.hamster.drawing import POLICY, concat
from models.hamster.path import Path
from models.hamster.project import project_path
from models.hamster.simplify import simplified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from finetune.bc.frames import Frames
    from models.hamster.project import Camera
    from robot_client.robots.metaworld import MetaWorldRobot

_FINGERTIPS = np.array([0.0, 0.0, -0.045])
"""From the hand, which demonstrations record, to the point between the fingertips, m; it moves by less than 1 cm."""


@dataclass(frozen=True, kw_only=True)
class PathNoise:
    """How a demonstrated path is made as inexact as a predicted one. Lengths are in shares of the image's sides.

    Attributes:
        tolerance: range of the simplification's tolerance, drawn for each drawing, so that points come and go.
        point: standard deviation of each point's own displacement; `shift`: of the whole path's.
        absent: share of drawings without a path, 0 to 1: what the policy is shown when no planner is asked.
    """

    tolerance: tuple[float, float] = (0.01, 0.06)
    point: float = 0.02
    shift: float = 0.015
    absent: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.tolerance
        if not 0.0 <= low <= high or min(self.point, self.shift) < 0 or not 0.0 <= self.absent <= 1.0:
            raise ValueError(
                f"path: tolerance {low:g} to {high:g}, point {self.point:g} and shift {self.shift:g} must be 0 or "
                f"more, absent {self.absent:g} 0 to 1"
            )

    def applied(self, path: Path, random: np.random.Generator) -> Path | None:
        """Return the path made inexact, or None for a drawing without one; points stay within the image."""
        if random.random() < self.absent:
            return None
        short = simplified(path, tolerance=float(random.uniform(*self.tolerance)))
        moved = short.points + random.normal(0.0, self.shift, 2) + random.normal(0.0, self.point, short.points.shape)
        return Path(points=np.clip(moved, 0.0, 1.0), gripper_open=short.gripper_open)


class DemonstratedPaths:
    """The path of every demonstration, for any of its frames.

    Args:
        frames: of MetaWorld's robot: the state begins with the hand's place (m), the action ends with the gripper's
            effort, which closes it above 0.
        camera: that took the images; the first camera of the frames.

    Raises:
        ValueError: a demonstration never has the gripper in the image.
    """

    def __init__(self, frames: Frames, camera: Camera) -> None:
        ends, self._episode = np.unique(frames.last, return_inverse=True)
        starts = np.concatenate([[0], ends[:-1] + 1])
        tips = frames.state[:, :3].astype(np.float64) + _FINGERTIPS
        opens = frames.action[:, -1] <= 0.0
        self._paths = tuple(
            project_path(tips[start : end + 1], steady(opens[start : end + 1]), camera).path
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        )

    def of(self, frames: NDArray[np.int64]) -> list[Path]:
        """Return the path of the demonstration that each frame belongs to."""
        return [self._paths[episode] for episode in self._episode[frames].tolist()]


def draw_paths(images: NDArray[np.uint8], paths: Sequence[Path | None]) -> NDArray[np.uint8]:
    """Return images with a path on the first camera of each observation, as a robot with a planner sends them.

    Args:
        images: uint8 (B, cameras, S, S, 3), as large as the policy sees them.
        paths: one for each observation; None leaves it as it is.
    """
    drawn = images.copy()
    for index, path in enumerate(paths):
        if path is not None:
            drawn[index, 0] = drawn_on(images[index, 0], path)
    return drawn


def drawn_on(image: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Return an image with a path on it: drawn on black at the image's size, then laid over it."""
    blank = np.zeros_like(image)
    return laid_over(image, concat(blank, path, style=POLICY)[..., 3:])


def camera_now(robot: MetaWorldRobot) -> Camera:
    """Return the camera of a robot's scene as it stands."""
    return camera_of(robot, next(iter(robot.observe().images.values())))


def usual_camera() -> Camera:
    """Return the camera that demonstrations are collected with."""
    from robot_client.robots.metaworld import MetaWorldRobot

    robot = MetaWorldRobot("reach")
    try:
        robot.reset(0)
        return camera_now(robot)
    finally:
        robot.close()
