"""Which pairs are asked about, how many may be, and what is kept of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clients.preference_messages import LabelPair
from models.preference.alike import ALIKE, distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from finetune.rlvlmf.labels import LabelBook


@dataclass(frozen=True, kw_only=True)
class Session:
    """What one session came to: pairs that were requested, dropped as alike or as ties, and kept.

    Of the kept ones the labels of `right` are what the true values say, which the learner is not told.
    """

    requested: int
    alike: int
    ties: int
    kept: int
    right: int


class Queries:
    """Draws pairs uniformly and keeps those that were decided.

    Args:
        book: who labels.
        goal: what is asked.
        batch: pairs of a session; `most`: in all, counted as requested, whatever comes of them.
    """

    def __init__(self, book: LabelBook, goal: str, *, batch: int, most: int, seed: int) -> None:
        self._book, self._goal = book, goal
        self._batch, self._most = batch, most
        self._random = np.random.default_rng([seed, 5])
        self.requested = 0
        self._images: list[NDArray[np.uint8]] = []
        self._labels: list[int] = []

    @property
    def over(self) -> bool:
        """Whether all pairs that may be requested have been."""
        return self.requested >= self._most

    @property
    def labels(self) -> NDArray[np.int64]:
        """(m,), 0 or 1, of the pairs that were kept."""
        return np.asarray(self._labels, np.int64)

    @property
    def images(self) -> NDArray[np.uint8]:
        """(2 m, s, s, 3): first and second of each pair that was kept, in turn."""
        return np.stack(self._images)

    @property
    def pairs(self) -> NDArray[np.int64]:
        """(m, 2), rows of `images`."""
        return np.arange(2 * len(self._labels)).reshape(-1, 2)

    def ask(
        self, starts: Sequence[tuple[int, int]], images: NDArray[np.uint8], values: NDArray[np.floating]
    ) -> Session:
        """Ask about pairs of two trajectories, drawn with replacement, and a time in each; the last session is shorter.

        Args:
            starts: (first row, length) of each trajectory.
            images: rows of pictures; `values`: true rewards of them, for a labeller that is told the truth.

        Raises:
            RoboserveError: see `LabelBook.label`.
        """
        count = min(self._batch, self._most - self.requested)
        drawn = [self._draw(starts) for _ in range(2 * count)]
        sides = list(zip(drawn[::2], drawn[1::2], strict=True))
        self.requested += count
        apart = [(one, other) for one, other in sides if distance(images[one], images[other]) >= ALIKE]
        asked = [
            LabelPair(self._goal, images[one], images[other], values=(float(values[one]), float(values[other])))
            for one, other in apart
        ]
        labels = self._book.label(asked) if asked else []
        for (one, other), label in zip(apart, labels, strict=True):
            if label != -1:
                self._images += [images[one].copy(), images[other].copy()]
                self._labels.append(label)
        ties = labels.count(-1)
        truths = [_truth(float(values[one]), float(values[other])) for one, other in apart]
        right = sum(label == truth for label, truth in zip(labels, truths, strict=True))
        return Session(requested=count, alike=count - len(apart), ties=ties, kept=len(apart) - ties, right=right)

    def _draw(self, starts: Sequence[tuple[int, int]]) -> int:
        first, length = starts[int(self._random.integers(len(starts)))]
        return first + int(self._random.integers(length))


def _truth(first: float, second: float) -> int | None:
    """Return the label of two true values; None where they are equal, so that no label is right."""
    return None if first == second else int(second > first)
