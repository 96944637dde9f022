"""The terms on which a batcher works: its clock, its limits, who watches it, and what it gives back."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

Result = TypeVar("Result")


class Clock(Protocol):
    """Time as the batcher sees it."""

    def now(self) -> float:
        """Seconds on a monotonic clock."""
        ...

    async def wait(self, event: asyncio.Event, timeout: float | None) -> None:
        """Return when the event is set or `timeout` seconds have passed."""
        ...


class MonotonicClock:
    """The real clock."""

    def now(self) -> float:
        """Seconds of `time.monotonic`."""
        return time.monotonic()

    async def wait(self, event: asyncio.Event, timeout: float | None) -> None:
        """Wait on the running event loop."""
        if timeout is None:
            await event.wait()
            return
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return


class BatchObserver(Protocol):
    """Receives what an operator wants to see. `on_drop` may come from the forward's thread, the others do not."""

    def on_queue(self, depth: int) -> None:
        """Report the items waiting."""
        ...

    def on_drop(self, code: str) -> None:
        """Report an item refused or dropped before its forward, with its error code."""
        ...

    def on_batch(self, size: int, forward_s: float) -> None:
        """Report one forward."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Limits of one batcher.

    Attributes:
        max_cost: cost budget of one forward, in the unit of `submit`'s `cost`.
        max_queue: items that may wait.
        max_wait_s: longest gathering wait; None takes 15 % of the last forwards' mean time, 10 ms at most.
        default_deadline_s: order of items without a deadline of their own, so that none starves.
        active_window_s: a session seen within this time is waited for while gathering.
        inline: run the forward on the event loop: for one that takes less than a thread's round trip.
    """

    max_cost: float = 16.0
    max_queue: int = 64
    max_wait_s: float | None = None
    default_deadline_s: float = 10.0
    active_window_s: float = 0.5
    inline: bool = False


@dataclass(frozen=True, kw_only=True)
class Served(Generic[Result]):
    """A result and how it came about; times in seconds."""

    result: Result
    batch_size: int
    queue_s: float
    batch_wait_s: float
    forward_s: float


@dataclass(kw_only=True)
class ForwardTime:
    """How long forwards take, in seconds: their exponential mean, and a line over their cost.

    The line is a least-squares fit in which each forward counts `memory` times as much as the one after it.
    """

    mean: float = 0.0
    weight: float = 0.2
    memory: float = 0.95
    _sums: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, seconds: float, cost: float) -> None:
        """Count one forward."""
        self.mean = seconds if not self.mean else (1 - self.weight) * self.mean + self.weight * seconds
        news = (1.0, cost, seconds, cost * cost, cost * seconds)
        n, c, s, cc, cs = (self.memory * old + new for old, new in zip(self._sums, news, strict=True))
        self._sums = (n, c, s, cc, cs)

    def expect(self, cost: float) -> float:
        """Return what a forward of this cost should take: never less than one of a lower cost, 0 before the first."""
        n, c, s, cc, cs = self._sums
        if not n:
            return 0.0
        spread = n * cc - c * c
        slope = max(0.0, (n * cs - c * s) / spread) if spread > 1e-6 * n * cc else 0.0
        return max(0.0, (s - slope * c) / n + slope * cost)


@dataclass(kw_only=True)
class Activity:
    """Sessions seen lately, the latest last."""

    window_s: float
    seen: OrderedDict[Hashable, float] = field(default_factory=OrderedDict)

    def touch(self, session: Hashable, now: float) -> None:
        """Note that a session asked."""
        self.seen[session] = now
        self.seen.move_to_end(session)
        self.count(now)  # what lies back is let go on every touch, or names that come once would pile up

    def count(self, now: float) -> int:
        """Return how many sessions asked within the window."""
        while self.seen and now - next(iter(self.seen.values())) > self.window_s:
            self.seen.popitem(last=False)
        return len(self.seen)
