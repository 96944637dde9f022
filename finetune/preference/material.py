"""Pairs whose truth is known: from a list in a file, or drawn from successful rollouts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from clients.images import encode_image
from clients.preference_messages import LabelPair

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from finetune.rewards.material import Material, Rollout

_ENTRIES = {"goal", "first", "second", "first_value", "second_value"}


@dataclass(frozen=True, kw_only=True)
class TruePair:
    """A pair and its truth.

    Attributes:
        pair: with pictures as PNG bytes, and the true values.
        group: what it is listed under: its task, or "" in a file's list.
    """

    pair: LabelPair
    group: str

    @property
    def values(self) -> tuple[float, float]:
        """True progress of both."""
        if self.pair.values is None:
            raise ValueError("pair: its true values are missing")
        return self.pair.values


def listed_pairs(path: Path) -> list[TruePair]:
    """Read a file with one JSON map a line: goal, first, second, first_value, second_value.

    `first` and `second` are picture files, or lists of them, relative to the file's folder.

    Raises:
        RoboserveError: `invalid_request` naming the line.
    """
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(TruePair(pair=_listed(json.loads(line), path.parent), group=""))
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise RoboserveError("invalid_request", f"{path.name}, line {number}: {error}") from error
    return found


def drawn_pairs(
    material: Material, *, count: int, seed: int, report: Callable[[int, int], None] | None = None
) -> list[TruePair]:
    """Draw pairs of frames of successes as RL-VLM-F does: two rollouts of a task with replacement, a frame of each.

    True progress is the share of a success's time that has gone by, 0 to 1. Tasks take turns.

    Args:
        report: told rollouts decoded, of how many.

    Raises:
        RoboserveError: `invalid_request` where no task has a success.
    """
    random = np.random.default_rng(seed)
    tasks = {task: rows for task in material.tasks if (rows := material.of(task, quality="successful"))}
    if not tasks:
        raise RoboserveError("invalid_request", "data: no task has a successful rollout")
    drawn: list[tuple[str, tuple[int, int], tuple[int, int]]] = []
    for at in range(count):
        task = list(tasks)[at % len(tasks)]
        sides = [(row, int(random.integers(material.rollouts[row].length))) for row in random.choice(tasks[task], 2)]
        drawn.append((task, sides[0], sides[1]))
    pictures = _pictures(material, [side for _, *sides in drawn for side in sides], report)
    return [
        TruePair(
            pair=LabelPair(
                goal=material.rollouts[first[0]].instruction,
                first=pictures[first],
                second=pictures[second],
                values=(_progress(material, first), _progress(material, second)),
            ),
            group=task,
        )
        for task, first, second in drawn
    ]


def _progress(material: Material, side: tuple[int, int]) -> float:
    return side[1] / max(1, material.rollouts[side[0]].length - 1)


def _pictures(
    material: Material, sides: Sequence[tuple[int, int]], report: Callable[[int, int], None] | None
) -> dict[tuple[int, int], bytes]:
    """Decode each rollout once and keep the frames that are shown, as PNG."""
    wanted: dict[int, set[int]] = {}
    for row, frame in sides:
        wanted.setdefault(row, set()).add(frame)
    found: dict[tuple[int, int], bytes] = {}
    for done, (row, frames) in enumerate(sorted(wanted.items()), 1):
        rollout: Rollout = material.rollouts[row]
        for index, picture in enumerate(islice(rollout.frames(), max(frames) + 1)):
            if index in frames:
                found[row, index] = bytes(encode_image(picture, "png"))
        if report is not None:
            report(done, len(wanted))
    return found


def _listed(raw: Any, folder: Path) -> LabelPair:
    if not isinstance(raw, dict) or set(raw) != _ENTRIES:
        raise ValueError(f"must be a map with {', '.join(sorted(_ENTRIES))}")
    values = (float(raw["first_value"]), float(raw["second_value"]))
    if not np.isfinite(values).all():
        raise ValueError("first_value and second_value: must be finite")
    sides = [[(folder / name).read_bytes() for name in _names(raw[side])] for side in ("first", "second")]
    return LabelPair(goal=str(raw["goal"]), first=sides[0], second=sides[1], values=values)


def _names(given: Any) -> list[str]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("first and second: must be a file's name, or a list of such")
    return names
