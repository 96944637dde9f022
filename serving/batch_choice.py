"""Which of the waiting requests ride in the next forward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence


class Candidate(Protocol):
    """A waiting request: requests with equal keys may share a forward; `deadline` is absolute, in seconds."""

    @property
    def key(self) -> Hashable:
        """What must be equal in one forward."""
        ...

    @property
    def cost(self) -> float:
        """Share of the budget."""
        ...

    @property
    def deadline(self) -> float | None:
        """When the answer is of no more use."""
        ...


Waiting = TypeVar("Waiting", bound=Candidate)


def next_batch(
    waiting: Sequence[Waiting], *, now: float, max_cost: float, expect: Callable[[float], float]
) -> list[Waiting]:
    """Choose the most urgent request and those that may ride with it; where that would be late, a better batch.

    Better is what brings more requests home in time for each second of the forward. In an overload, the most urgent
    first would have each request start just before its deadline and end after it: everybody a little late, for ever.
    Where no batch would be in time the most urgent one runs: to a robot that is alone, late is of more use than never.

    Args:
        waiting: the most urgent first, none past its deadline.
        max_cost: budget of the forward.
        expect: seconds that a forward of a cost should take; never falls with the cost.
    """
    urgent = _riders(waiting, 0, now=None, max_cost=max_cost, expect=expect)
    if not urgent or urgent[0].deadline is None or now + expect(_cost(urgent)) <= urgent[0].deadline:
        return urgent
    best, best_rate = urgent, 0.0
    for first in range(len(waiting)):
        riders = _riders(waiting, first, now=now, max_cost=max_cost, expect=expect)
        if riders and (rate := len(riders) / max(1e-9, expect(_cost(riders)))) > best_rate:
            best, best_rate = riders, rate
        if _cost(riders) >= max_cost:
            break
    return best


def _cost(batch: Sequence[Candidate]) -> float:
    return sum(one.cost for one in batch)


def _riders(
    waiting: Sequence[Waiting], first: int, *, now: float | None, max_cost: float, expect: Callable[[float], float]
) -> list[Waiting]:
    """Return the request at `first` and those after it that may ride along; with `now`, only those in time."""
    riders: list[Waiting] = []
    cost, due = 0.0, math.inf
    for one in waiting[first:]:
        if cost >= max_cost:
            break
        if cost + one.cost > max_cost or (riders and one.key != riders[0].key):
            continue
        due_with = due if one.deadline is None else min(due, one.deadline)
        if now is not None and now + expect(cost + one.cost) > due_with:
            if not riders:
                return []
            continue
        riders.append(one)
        cost, due = cost + one.cost, due_with
    return riders
