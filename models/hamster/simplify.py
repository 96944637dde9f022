"""Fewer points for the same path: Ramer-Douglas-Peucker that keeps what the gripper does."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.hamster.path import Path

TOLERANCE = 0.05
"""Of HAMSTER's training data, in normalised coordinates; it leaves about 2 to 5 points of a short task's path."""


def simplified(path: Path, *, tolerance: float = TOLERANCE) -> Path:
    """Return the path over the points that `kept` names; doing it twice changes nothing more."""
    return path.taken(kept(path, tolerance=tolerance))


def kept(path: Path, *, tolerance: float = TOLERANCE) -> NDArray[np.intp]:
    """Return the indices, ascending, of the points that a simplified path keeps.

    First, last and every point at which the gripper changes stay; between two of these, a point stays if it is the
    farthest one from the line that would replace it and farther than `tolerance` (Ramer 1972; Douglas and Peucker
    1973). Distance is that to the stretch between the two ends, not to the endless line through them: the turning
    point of a path that comes back on itself lies on that line, and would be lost.

    Args:
        tolerance: in normalised coordinates, 0 or more.

    Raises:
        ValueError: a tolerance below 0, or not finite.
    """
    if not np.isfinite(tolerance) or tolerance < 0:
        raise ValueError(f"tolerance {tolerance:g}: must be 0 or more")
    fixed = sorted({0, len(path) - 1, *path.changes().tolist()})
    keep = set(fixed)
    stretches = list(pairwise(fixed))
    while stretches:
        first, last = stretches.pop()
        if last - first < 2:
            continue
        distances = _distances(path.points[first + 1 : last], path.points[first], path.points[last])
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            keep.add(middle)
            stretches += [(first, middle), (middle, last)]
    return np.array(sorted(keep), dtype=np.intp)


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (n,) distances of (n, 2) points to the stretch from start to end, which may be one place."""
    along = end - start
    square = float(along @ along)
    offsets = points - start
    share = np.clip(offsets @ along / square, 0.0, 1.0) if square > 0 else np.zeros(len(points))
    rest = offsets - share[:, None] * along
    return np.asarray(np.hypot(rest[:, 0], rest[:, 1]))
