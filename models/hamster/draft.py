"""A path while it is read off a model's answer: what was found, and what was odd about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.hamster.path import Path

ErrorCode = Literal["too_long", "too_many_points", "no_answer", "no_points", "malformed", "not_finite"]
IssueCode = Literal[
    "truncated",
    "unbracketed",
    "missing_comma",
    "several_answers",
    "out_of_range",
    "tag_before_points",
    "conflicting_tags",
]
SHOWN = 40
"""Most characters of a model's text that a message repeats."""


class AnswerError(ValueError):
    """A model's answer that is no path.

    Attributes:
        code: what is wrong with it. `too_long`, `too_many_points`: a limit; `no_answer`: nothing in the text looks like
            an answer; `no_points`: an answer without any; `malformed`: an item is none of the grammar's; `not_finite`:
            a coordinate is NaN or infinite.
        position: of the first character that is wrong, from 0; None where it is the whole.
    """

    def __init__(self, code: ErrorCode, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.position = position


@dataclass(frozen=True, kw_only=True)
class Issue:
    """Something odd about an answer that was read nevertheless.

    Attributes:
        code: `truncated`: the end is missing, the points so far are there; `unbracketed`: a bracket around
            the list is missing;
            `missing_comma`: between two items; `several_answers`: the first was read; `out_of_range`: a coordinate was
            clipped to 0 or 1; `tag_before_points`: a tag in front of all points, which holds from the first one on;
            `conflicting_tags`: several states for one point, the last holds.
        points: the indices of the points that it concerns, ascending; empty where it concerns the text.
    """

    code: IssueCode
    points: tuple[int, ...] = ()


class Draft:
    """Collects points and gripper actions in the order of the answer.

    An action sets the state of the point just before it and of all later ones, until the next action
    (HAMSTER_beta, gradio_server_example.py). Before any point, it sets that of the first point and later ones.

    Args:
        initial_open: the gripper's state where no action has been read yet.
        max_points: more than these are refused.
    """

    def __init__(self, *, initial_open: bool, max_points: int) -> None:
        self._open = initial_open
        self._max_points = max_points
        self._points: list[tuple[float, float]] = []
        self._states: list[bool] = []
        self._depths: list[float] = []
        self._stated: set[int] = set()
        self._issues: dict[IssueCode, list[int]] = {}

    def point(self, x: float, y: float, *, position: int, depth: float = math.nan) -> None:
        """Add a point, clipped to the image.

        Raises:
            AnswerError: a coordinate is not finite, or there are too many points.
        """
        if not (math.isfinite(x) and math.isfinite(y)):
            raise AnswerError("not_finite", f"answer: point {len(self._points)} is not finite", position=position)
        if len(self._points) == self._max_points:
            raise AnswerError("too_many_points", f"answer: more than {self._max_points} points", position=position)
        inside = (min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0))
        if inside != (x, y):
            self.odd("out_of_range", len(self._points))
        self._points.append(inside)
        self._states.append(self._open)
        self._depths.append(depth)

    def action(self, *, opens: bool) -> None:
        """Set the gripper's state from the last point on."""
        last = len(self._points) - 1
        if last in self._stated and self._states[last] != opens:
            self.odd("conflicting_tags", last)
        self._open = opens
        if last < 0:
            self.odd("tag_before_points", 0)
            return
        self._stated.add(last)
        self._states[last] = opens

    def odd(self, code: IssueCode, point: int | None = None) -> None:
        """Note an issue, and the point that it concerns."""
        found = self._issues.setdefault(code, [])
        if point is not None and point not in found[-1:]:
            found.append(point)

    def issues(self) -> tuple[Issue, ...]:
        """Return what was odd, in the order in which it was found first."""
        return tuple(Issue(code=code, points=tuple(points)) for code, points in self._issues.items())

    def path(self) -> Path:
        """Return the path.

        Raises:
            AnswerError: there is no point.
        """
        if not self._points:
            raise AnswerError("no_points", "answer: it holds no point")
        return Path(points=np.array(self._points), gripper_open=np.array(self._states))

    def depths(self) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
        """Return float64 (n,), metres, where the answer gave a depth for every point."""
        depths = np.array(self._depths)
        return depths if np.isfinite(depths).all() else None


def shown(text: str) -> str:
    """Return the beginning of a model's text for a message: short, on one line, nothing in it unescaped."""
    return ascii(text[:SHOWN])
