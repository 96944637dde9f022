"""How good predicted paths are: whether they can be read, how far they lie from the true ones, what the gripper does.

Distances are in fractions of the image's width. Both paths are brought to the same number of points at equal steps of
arc length first, since a path of three points and one of a hundred may be the same path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.hamster.answer import AnswerError, parse_answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from models.hamster.path import Path

SAMPLES = 50
"""Points that both paths are brought to."""
RADIUS = 0.1
"""Of the image's width: a predicted change of the gripper farther away than this is another one."""


@dataclass(frozen=True, kw_only=True)
class ParseRate:
    """Of `total` answers, how many are a path at all, and how many of these have no issue."""

    total: int
    parsed: int
    clean: int

    @property
    def rate(self) -> float:
        """Share of answers that are a path, 0 to 1."""
        return self.parsed / self.total


def parse_rate(answers: Iterable[str], *, initial_open: bool = False) -> ParseRate:
    """Read answers and count.

    Raises:
        ValueError: there are none.
    """
    total = parsed = clean = 0
    for answer in answers:
        total += 1
        try:
            found = parse_answer(answer, initial_open=initial_open)
        except AnswerError:
            continue
        parsed += 1
        clean += not found.issues
    if not total:
        raise ValueError("answers: there are none")
    return ParseRate(total=total, parsed=parsed, clean=clean)


def point_error(predicted: Path, true: Path, *, samples: int = SAMPLES, aspect: float = 1.0) -> float:
    """Return the mean distance between points at equal shares of the two paths' lengths.

    Args:
        samples: points of either path, 2 or more.
        aspect: height over width of the image.
    """
    first, second = _sampled(predicted, true, samples, aspect)
    return float(np.hypot(*(first - second).T).mean())


def frechet(predicted: Path, true: Path, *, samples: int = SAMPLES, aspect: float = 1.0) -> float:
    """Return the discrete Frechet distance of the resampled paths; arguments as for `point_error`.

    The smallest leash with which two walkers get along both, neither ever going back: the largest distance on the best
    coupling of the points (Eiter and Mannila 1994).
    """
    first, second = _sampled(predicted, true, samples, aspect)
    apart = np.hypot(*(first[:, None] - second[None]).transpose(2, 0, 1))
    leash = np.empty_like(apart)
    leash[0] = np.maximum.accumulate(apart[0])
    for row in range(1, len(apart)):
        leash[row, 0] = max(leash[row - 1, 0], apart[row, 0])
        shorter = np.minimum(leash[row - 1, 1:], leash[row - 1, :-1])
        for column in range(1, len(apart)):
            leash[row, column] = max(min(shorter[column - 1], leash[row, column - 1]), apart[row, column])
    return float(leash[-1, -1])


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of the gripper, counted over one pair of paths or many.

    Attributes:
        matched: of both; `predicted`, `true`: of either.
    """

    matched: int
    predicted: int
    true: int

    def __add__(self, other: Changes) -> Changes:
        return Changes(
            matched=self.matched + other.matched,
            predicted=self.predicted + other.predicted,
            true=self.true + other.true,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1; 1 where nothing changes and nothing was said to."""
        return 2 * self.matched / (self.predicted + self.true) if self.predicted + self.true else 1.0


def gripper_changes(
    predicted: Path | None, true: Path, *, initial_open: bool = False, radius: float = RADIUS, aspect: float = 1.0
) -> Changes:
    """Count the changes of the gripper that two paths share.

    A change is what a tag says in an answer: at a point, the gripper opens or closes, the first point's state compared
    with `initial_open`. Two match if they are of the same kind and no farther apart than `radius`, one to one and in
    the same order on both paths; the largest such matching counts (a longest common subsequence).

    Args:
        predicted: None for an answer that could not be read: all true changes are missed.
        radius: in fractions of the image's width.
        aspect: height over width of the image.
    """
    wanted = _events(true, initial_open=initial_open, aspect=aspect)
    given = _events(predicted, initial_open=initial_open, aspect=aspect) if predicted is not None else []
    longest = np.zeros((len(given) + 1, len(wanted) + 1), dtype=np.int64)
    for i, (opens, place) in enumerate(given, 1):
        for j, (also_opens, true_place) in enumerate(wanted, 1):
            same = opens == also_opens and float(np.hypot(*(place - true_place))) <= radius
            longest[i, j] = max(longest[i - 1, j], longest[i, j - 1], longest[i - 1, j - 1] + same)
    return Changes(matched=int(longest[-1, -1]), predicted=len(given), true=len(wanted))


@dataclass(frozen=True, kw_only=True)
class PathScores:
    """Metrics over pairs of predicted and true paths.

    Attributes:
        total: pairs; `parsed`: those with a prediction.
        point_error, frechet: means over the parsed ones; NaN where there is none.
        changes: the gripper's, summed over all pairs.
    """

    total: int
    parsed: int
    point_error: float
    frechet: float
    changes: Changes


def score_paths(
    pairs: Sequence[tuple[Path | None, Path]],
    *,
    initial_open: bool = False,
    samples: int = SAMPLES,
    radius: float = RADIUS,
    aspect: float = 1.0,
) -> PathScores:
    """Score predictions, None for one that could not be read, each beside the true path.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("pairs: there are none")
    read = [(predicted, true) for predicted, true in pairs if predicted is not None]
    changes = Changes(matched=0, predicted=0, true=0)
    for predicted, true in pairs:
        changes += gripper_changes(predicted, true, initial_open=initial_open, radius=radius, aspect=aspect)
    errors = [point_error(*pair, samples=samples, aspect=aspect) for pair in read]
    leashes = [frechet(*pair, samples=samples, aspect=aspect) for pair in read]
    return PathScores(
        total=len(pairs),
        parsed=len(read),
        point_error=float(np.mean(errors)) if read else float("nan"),
        frechet=float(np.mean(leashes)) if read else float("nan"),
        changes=changes,
    )


def _sampled(
    predicted: Path, true: Path, samples: int, aspect: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = (path.resampled(samples, aspect=aspect).points * (1.0, aspect) for path in (predicted, true))
    return first, second


def _events(path: Path, *, initial_open: bool, aspect: float) -> list[tuple[bool, NDArray[np.float64]]]:
    found = path.changes().tolist()
    if bool(path.gripper_open[0]) != initial_open:
        found.insert(0, 0)
    return [(bool(path.gripper_open[index]), path.points[index] * (1.0, aspect)) for index in found]
