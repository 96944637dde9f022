"""Intervals for success rates and for means over seeds, and how evenly counts are spread."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_Z = 1.959964


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Return the 95 % interval of a success rate (Wilson 1927), which is sane at 0 and at 1.

    Raises:
        ValueError: there were no episodes, or more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes == 0:
        raise ValueError(f"successes: {successes} of {episodes} episodes")
    share, squared = successes / episodes, _Z**2
    middle = (share + squared / (2 * episodes)) / (1 + squared / episodes)
    half = _Z * math.sqrt(share * (1 - share) / episodes + squared / (4 * episodes**2)) / (1 + squared / episodes)
    return max(0.0, middle - half), min(1.0, middle + half)


def entropy(counts: Sequence[int]) -> float:
    """Return the entropy, bits, of the shares that counts make; 0 where there are none."""
    shares = np.array([count for count in counts if count]) / max(1, sum(counts))
    return float((shares * np.log2(1 / shares)).sum())


def bootstrap(values: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the mean of values, one a training seed.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("values: none were given")
    random = np.random.default_rng(seed)
    given = np.asarray(values, np.float64)
    means = given[random.integers(0, len(given), (draws, len(given)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
