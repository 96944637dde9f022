"""A path through an image, and the views (crops, paddings) that a model may have seen the image in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.hamster.view import View

CLOSED, OPEN = 0, 1
"""The gripper's flag on the wire (HAMSTER_beta, gradio_server_example.py)."""
NOISE = 0.01
"""Standard deviation that HAMSTER's low-level policies are trained with, in normalised coordinates."""
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """An ordered path of the gripper in one image. Its arrays are copies and cannot be written to.

    Attributes:
        points: float64 (n, 2), x to the right and y down, each 0 to 1 of the image's own width or height; n over 0.
        gripper_open: bool (n,), the state from this point on, until the next point.

    Raises:
        ValueError: another shape, no point, or a coordinate that is not finite or lies outside 0 to 1.
    """

    points: NDArray[np.float64]
    gripper_open: NDArray[np.bool_]

    def __post_init__(self) -> None:
        points = np.array(self.points, dtype=np.float64) + 0.0  # an answer has no negative zero
        gripper_open = np.array(self.gripper_open, dtype=np.bool_)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"points: shape {points.shape}, needs (n, 2) with n over 0")
        if gripper_open.shape != points.shape[:1]:
            raise ValueError(f"gripper_open: shape {gripper_open.shape}, needs ({len(points)},)")
        if not np.isfinite(points).all() or points.min() < 0.0 or points.max() > 1.0:
            raise ValueError("points: must be finite and lie from 0 to 1")
        points.setflags(write=False)
        gripper_open.setflags(write=False)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "gripper_open", gripper_open)

    def __len__(self) -> int:
        return len(self.points)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Path):
            return NotImplemented
        return np.array_equal(self.points, other.points) and np.array_equal(self.gripper_open, other.gripper_open)

    def __hash__(self) -> int:
        return hash((self.points.tobytes(), self.gripper_open.tobytes()))

    def changes(self) -> NDArray[np.intp]:
        """Return the indices, ascending, of points whose gripper state differs from the point before; never 0."""
        return np.flatnonzero(self.gripper_open[1:] != self.gripper_open[:-1]) + 1

    def taken(self, indices: NDArray[np.intp]) -> Path:
        """Return the path over some of the points, in the order of `indices`."""
        return Path(points=self.points[indices], gripper_open=self.gripper_open[indices])

    def resampled(self, count: int, *, aspect: float = 1.0) -> Path:
        """Return `count` points at equal steps of arc length, the first and the last point among them.

        A new point has the gripper state of the last point that the path reached before it. A path without length
        becomes `count` times its place, in its last state.

        Args:
            count: at least 2.
            aspect: height over width of the image where lengths are to be those of its pixels; 1 measures x and y in
                normalised units each.

        Raises:
            ValueError: `count` below 2.
        """
        points, before = resample(self.points * (1.0, aspect), count)
        return Path(points=np.clip(points / (1.0, aspect), 0.0, 1.0), gripper_open=self.gripper_open[before])

    def pixels(self, width: int, height: int) -> NDArray[np.int64]:
        """Return int64 (n, 2) columns and rows, int(x * width) and int(y * height) as HAMSTER's demo draws them.

        A coordinate of exactly 1 gives `width` or `height`, one beyond the last pixel.
        """
        return (self.points * (width, height)).astype(np.int64)

    def in_view(self, view: View) -> Path:
        """Return the same path in the coordinates of a view of the image.

        Raises:
            ValueError: a point of the path is not in the view.
        """
        points = view.from_original(self.points)
        outside = np.flatnonzero(((points < -_ROUNDING) | (points > 1.0 + _ROUNDING)).any(axis=1))
        if len(outside):
            raise ValueError(f"points: {len(outside)} of {len(self)} are not in the view, the first is {outside[0]}")
        return replace(self, points=np.clip(points, 0.0, 1.0))

    def in_original(self, view: View) -> Path:
        """Return a path that was drawn in a view, in the coordinates of the whole image.

        A point in the padding of a view is brought to the image's nearest border.
        """
        return replace(self, points=np.clip(view.to_original(self.points), 0.0, 1.0))

    def noisy(self, random: np.random.Generator, *, scale: float = NOISE) -> Path:
        """Return the path with N(0, scale) on x and y, clipped to the image; the gripper's states stay as they are.

        Training augmentation of path-conditioned policies (HAMSTER, arXiv 2502.05485, after the paper notes of its
        appendix). The same generator state gives the same noise.

        Args:
            scale: standard deviation in normalised coordinates, 0 or more.
        """
        moved = self.points + random.normal(0.0, scale, self.points.shape)
        return replace(self, points=np.clip(moved, 0.0, 1.0))


def resample(points: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return `count` places at equal steps of arc length along (n, 2) points, in any unit; the ends are among them.

    Returns:
        float64 (count, 2), and for each place the index (count,) of the last point reached by then.

    Raises:
        ValueError: `count` below 2.
    """
    if count < 2:
        raise ValueError(f"count {count}: must be 2 or more")
    steps = np.diff(points, axis=0)
    reached = np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
    wanted = np.linspace(0.0, reached[-1], count)
    before = np.searchsorted(reached, wanted, side="right") - 1
    after = np.minimum(before + 1, len(points) - 1)
    span = reached[after] - reached[before]
    share = np.divide(wanted - reached[before], span, out=np.zeros(count), where=span > 0)[:, None]
    return points[before] + share * (points[after] - points[before]), before
