"""Percentiles of raw samples, and the order in which contenders take turns."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

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
    values = sorted(samples)
    # Ranks in whole numbers: 99.9 % of 1000 is 999, which floating point takes for a little more.
    p50, p90, p99, p999 = (
        float(values[-(-len(values) * thousandths // 1000) - 1]) for thousandths in (500, 900, 990, 999)
    )
    return Summary(
        count=len(values),
        mean=math.fsum(values) / len(values),
        p50=p50,
        p90=p90,
        p99=p99,
        p999=p999,
        worst=float(values[-1]),
    )


def turns(contenders: Sequence[T], rounds: int, draw: random.Random) -> Iterator[T]:
    """Yield every contender once a round, in a new order each round: drift of the machine then hits all alike."""
    for _ in range(rounds):
        yield from draw.sample(list(contenders), len(contenders))
