"""Percentiles of raw samples, and the order in which contenders take turns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A distribution in the unit of its samples; percentiles are samples that occurred (nearest rank)."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    worst: float

    def to_map(self) -> dict[str, float]:
        """Return the fields, rounded to a tenth of a microsecond where the unit is ms."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize samples.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("summarize: no samples")
    values = np.asarray(samples, dtype=np.float64)
    p50, p90, p99, p999 = (float(value) for value in np.percentile(values, [50, 90, 99, 99.9], method="inverted_cdf"))
    return Summary(
        count=len(values), mean=float(values.mean()), p50=p50, p90=p90, p99=p99, p999=p999, worst=float(values.max())
    )


def turns(contenders: Sequence[T], rounds: int, draw: random.Random) -> Iterator[T]:
    """Yield every contender once a round, in a new order each round: drift of the machine then hits all alike."""
    for _ in range(rounds):
        yield from draw.sample(list(contenders), len(contenders))
