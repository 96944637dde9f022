"""Training examples of a path predictor, from recorded or simulated poses: projected, simplified, written as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.hamster.answer import AnswerStyle, format_answer, parse_answer
from models.hamster.path import Path
from models.hamster.simplify import TOLERANCE, simplified

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RIGID = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A pinhole camera without distortion.

    Attributes:
        intrinsics: float (3, 3), pixels: [[fx, s, cx], [0, fy, cy], [0, 0, 1]].
        extrinsics: float (4, 4), world to camera, metres. A camera's pose in the world is the inverse of this.
        width, height: of its image, pixels.
        axes: `opencv`: x right, y down, z into the scene; `opengl` (MuJoCo, Blender): x right, y up, z out of it.

    Raises:
        ValueError: a matrix of another shape or not finite, a focal length of 0 or below, a rotation that is none, or a
            size below 1.
    """

    intrinsics: NDArray[np.float64]
    extrinsics: NDArray[np.float64]
    width: int
    height: int
    axes: Literal["opencv", "opengl"] = "opencv"

    def __post_init__(self) -> None:
        for name, shape in (("intrinsics", (3, 3)), ("extrinsics", (4, 4))):
            matrix = np.array(getattr(self, name), dtype=np.float64)
            if matrix.shape != shape or not np.isfinite(matrix).all():
                raise ValueError(f"{name}: shape {matrix.shape}, needs {shape}, all finite")
            matrix.setflags(write=False)
            object.__setattr__(self, name, matrix)
        if not np.array_equal(self.intrinsics[2], [0, 0, 1]) or min(self.intrinsics[0, 0], self.intrinsics[1, 1]) <= 0:
            raise ValueError("intrinsics: focal lengths must be over 0 and the last row 0 0 1")
        rotation = self.extrinsics[:3, :3]
        if not np.array_equal(self.extrinsics[3], [0, 0, 0, 1]) or (
            np.abs(rotation @ rotation.T - np.eye(3)).max() > _RIGID or np.linalg.det(rotation) < 0
        ):
            raise ValueError("extrinsics: must be a rotation and a translation, with the last row 0 0 0 1")
        if min(self.width, self.height) < 1:
            raise ValueError(f"size {self.width} x {self.height}: sides must be 1 or more")

    def project(self, positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where positions stand in the image: K [R | t] p, divided by depth and by the image's size.

        Args:
            positions: float (n, 3), world coordinates, metres.

        Returns:
            float64 (n, 2), 0 to 1 where they are in the image, NaN where they are not in front of the camera; and
            float64 (n,), depths along the optical axis, metres.

        Raises:
            ValueError: another shape.
        """
        places = np.asarray(positions, dtype=np.float64)
        if places.ndim != 2 or places.shape[1] != 3:
            raise ValueError(f"positions: shape {places.shape}, needs (n, 3)")
        in_camera = places @ self.extrinsics[:3, :3].T + self.extrinsics[:3, 3]
        if self.axes == "opengl":
            in_camera = in_camera * (1.0, -1.0, -1.0)
        depths = in_camera[:, 2]
        flat = np.full((len(places), 2), np.nan)
        front = depths > 0
        on_plane = in_camera[front] @ self.intrinsics.T
        flat[front] = on_plane[:, :2] / on_plane[:, 2:] / (self.width, self.height)
        return flat, depths


@dataclass(frozen=True, kw_only=True, eq=False)
class Projected:
    """A path in the image, and the indices (m,), ascending, of the frames that it was made from."""

    path: Path
    frames: NDArray[np.intp]


def project_path(positions: NDArray[np.float64], gripper_open: NDArray[np.bool_], camera: Camera) -> Projected:
    """Project the gripper's way into the image, without the frames in which it is outside of it or behind the camera.

    Args:
        positions: float (n, 3), world coordinates, metres, in the order of time.
        gripper_open: bool (n,).

    Raises:
        ValueError: other shapes, or no frame has the gripper in the image.
    """
    points, _ = camera.project(positions)
    if np.shape(gripper_open) != points.shape[:1]:
        raise ValueError(f"gripper_open: shape {np.shape(gripper_open)}, needs ({len(points)},)")
    frames = np.flatnonzero(((points >= 0.0) & (points <= 1.0)).all(axis=1))
    if not len(frames):
        raise ValueError("positions: none of them is in the image")
    return Projected(path=Path(points=points[frames], gripper_open=np.asarray(gripper_open)[frames]), frames=frames)


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """How a trajectory becomes an example.

    Attributes:
        tolerance: of the simplification, in normalised coordinates.
        visible: share of frames, 0 to 1, that must have the gripper in the image: where it is mostly elsewhere, what is
            left of the way is no path to follow.
        style: how the answer is written.
        initial_open: the gripper's state that the prompt's reader starts from.

    Raises:
        ValueError: a value outside its range.
    """

    tolerance: float = TOLERANCE
    visible: float = 0.8
    style: AnswerStyle = field(default_factory=AnswerStyle)
    initial_open: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.visible <= 1.0 or not 0.0 <= self.tolerance < np.inf:
            raise ValueError(f"visible {self.visible:g} must be 0 to 1, tolerance {self.tolerance:g} 0 or more")


@dataclass(frozen=True, kw_only=True)
class Example:
    """What a path predictor is taught.

    Attributes:
        answer: the text. path: what a reader of it gets.
        whole: the path before simplification.
        visible: share of frames that had the gripper in the image.
    """

    answer: str
    path: Path
    whole: Path
    visible: float


_CONFIG = ExampleConfig()


def path_example(
    positions: NDArray[np.float64], gripper_open: NDArray[np.bool_], camera: Camera, config: ExampleConfig = _CONFIG
) -> Example:
    """Make an example of a trajectory; arguments as for `project_path`.

    Raises:
        ValueError: as `project_path`, and if too few frames have the gripper in the image, or the simplified path has
            more points than the style.
    """
    found = project_path(positions, gripper_open, camera)
    share = len(found.frames) / len(gripper_open)
    if share < config.visible:
        raise ValueError(f"positions: {share:.0%} of them are in the image, {config.visible:.0%} must be")
    short = simplified(found.path, tolerance=config.tolerance)
    answer = format_answer(short, style=config.style, initial_open=config.initial_open)
    # A gripper that closes and opens within one rounding step still has two points, so states survive the rounding.
    read = parse_answer(answer, initial_open=config.initial_open).path
    return Example(answer=answer, path=read, whole=found.path, visible=share)
