"""The batcher: requests in, batched forwards out; pure asyncio, no Ray, tested with a fake clock.

What it promises:
- earliest deadline first, over groups that may share a forward (same `key`), up to a cost budget;
- work whose deadline has passed is dropped before the forward, never run;
- the newest item of a session replaces an older one that is still queued;
- one bad item never fails its neighbours: when a batch raises, each item is asked again alone;
- the queue is bounded, and a full one refuses clearly;
- a short gathering wait, only while sessions that were lately active are still missing, so that closed-loop fleets
  ride together instead of splitting into groups that wait for each other, and a lone robot never waits.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

Item = TypeVar("Item")
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
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return


class BatchObserver(Protocol):
    """Receives what an operator wants to see; called on the event loop."""

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
    """

    max_cost: float = 16.0
    max_queue: int = 64
    max_wait_s: float | None = None
    default_deadline_s: float = 10.0
    active_window_s: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Served(Generic[Result]):
    """A result and how it came about; times in seconds."""

    result: Result
    batch_size: int
    queue_s: float
    batch_wait_s: float
    forward_s: float


@dataclass(eq=False, kw_only=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    key: Hashable
    cost: float
    session: Hashable | None
    arrived: float
    deadline: float | None
    order: tuple[float, int]
    done: asyncio.Future[Served[Result]]
    gone: bool = False

    def __lt__(self, other: _Waiting[Item, Result]) -> bool:
        return self.order < other.order


@dataclass(kw_only=True)
class _ForwardTime:
    """Exponential mean of forward times, in seconds."""

    mean: float = 0.0
    weight: float = 0.2

    def add(self, seconds: float) -> None:
        self.mean = seconds if not self.mean else (1 - self.weight) * self.mean + self.weight * seconds


@dataclass(kw_only=True)
class _Activity:
    """Sessions seen lately."""

    window_s: float
    seen: dict[Hashable, float] = field(default_factory=dict)

    def touch(self, session: Hashable, now: float) -> None:
        self.seen[session] = now

    def count(self, now: float) -> int:
        self.seen = {session: at for session, at in self.seen.items() if now - at <= self.window_s}
        return len(self.seen)


class Batcher(Generic[Item, Result]):
    """Batches calls to a synchronous forward, which runs off the event loop, one at a time.

    Args:
        forward: takes items that share a key; returns one result or one exception for each, in order.
        settings: limits.
        observer: receives queue depth, drops and batches.
        clock: time; a fake one in tests.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        settings: BatchSettings,
        *,
        observer: BatchObserver | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._forward = forward
        self._settings = settings
        self._observer = observer
        self._clock = clock or MonotonicClock()
        self._heap: list[_Waiting[Item, Result]] = []
        self._by_session: dict[Hashable, _Waiting[Item, Result]] = {}
        self._depth = 0
        self._ticket = itertools.count()
        self._arrival = asyncio.Event()
        self._forward_time = _ForwardTime()
        self._activity = _Activity(window_s=settings.active_window_s)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._loop_task: asyncio.Task[None] | None = None
        self._forward_since: float | None = None
        self._closed = False

    async def submit(
        self,
        item: Item,
        *,
        key: Hashable = None,
        cost: float = 1.0,
        deadline: float | None = None,
        session: Hashable | None = None,
    ) -> Served[Result]:
        """Queue an item and wait for its result.

        Args:
            key: items with equal keys may share a forward.
            cost: share of the budget; an item over the whole budget is refused.
            deadline: absolute, on the batcher's clock; past it the item is dropped.
            session: a newer item of the same session replaces this one while it is queued.

        Raises:
            RoboserveError: `overloaded`, `deadline_exceeded`, `superseded`, `too_large`, `unavailable` (closing), or
                whatever the forward gave for this item (`policy_failed` for an exception of another type).
        """
        now = self._clock.now()
        self._refuse_early(cost, deadline, now)
        if session is not None:
            self._activity.touch(session, now)
            self._supersede(session)
        if self._depth >= self._settings.max_queue:
            raise self._dropped(
                "overloaded", f"queue: {self._depth} requests waiting, limit {self._settings.max_queue}"
            )
        waiting = self._enqueue(item, key, cost, deadline, session, now)
        try:
            return await waiting.done
        except asyncio.CancelledError:
            self._forget(waiting)
            raise

    @property
    def depth(self) -> int:
        """Items waiting for a forward."""
        return self._depth

    @property
    def closed(self) -> bool:
        """Whether it refuses all work."""
        return self._closed

    @property
    def forward_running_s(self) -> float:
        """Seconds that the present forward has run; 0 between forwards. A health check bounds it."""
        return 0.0 if self._forward_since is None else self._clock.now() - self._forward_since

    async def call(self, work: Callable[[], None]) -> None:
        """Run work on the forward's thread, between forwards: for what must not overlap one."""
        await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def close(self) -> None:
        """Refuse new work, fail what waits with `unavailable`, and let the running forward end."""
        self._closed = True
        for waiting in self._heap:
            self._fail(waiting, RoboserveError("unavailable", "the server is shutting down"))
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    def _refuse_early(self, cost: float, deadline: float | None, now: float) -> None:
        if self._closed:
            raise self._dropped("unavailable", "the server is shutting down")
        if cost > self._settings.max_cost:
            raise self._dropped("too_large", f"cost: {cost:g}, limit {self._settings.max_cost:g} for one forward")
        if deadline is not None and deadline <= now:
            raise self._dropped("deadline_exceeded", f"deadline: passed {(now - deadline) * 1e3:.0f} ms ago")

    def _enqueue(
        self, item: Item, key: Hashable, cost: float, deadline: float | None, session: Hashable | None, now: float
    ) -> _Waiting[Item, Result]:
        loop = asyncio.get_running_loop()
        due = now + self._settings.default_deadline_s if deadline is None else deadline
        waiting: _Waiting[Item, Result] = _Waiting(
            item=item,
            key=key,
            cost=cost,
            session=session,
            arrived=now,
            deadline=deadline,
            order=(due, next(self._ticket)),
            done=loop.create_future(),
        )
        heapq.heappush(self._heap, waiting)
        if session is not None:
            self._by_session[session] = waiting
        self._count(+1)
        self._arrival.set()
        if self._loop_task is None:
            self._loop_task = loop.create_task(self._run())
            self._loop_task.add_done_callback(self._on_loop_end)
        return waiting

    def _on_loop_end(self, task: asyncio.Task[None]) -> None:
        """Leave nobody waiting when the loop ends by a fault of ours; the health check then fails."""
        if task.cancelled():
            return
        self._closed = True
        for waiting in self._heap:
            self._fail(waiting, RoboserveError("internal", "the batcher stopped"))

    def _supersede(self, session: Hashable) -> None:
        older = self._by_session.get(session)
        if older is not None:
            self._fail(older, self._dropped("superseded", "a newer observation of this session took its place"))

    def _count(self, change: int) -> None:
        self._depth += change
        if self._observer is not None:
            self._observer.on_queue(self._depth)

    def _dropped(self, code: str, message: str) -> RoboserveError:
        if self._observer is not None:
            self._observer.on_drop(code)
        return RoboserveError(code, message)

    def _forget(self, waiting: _Waiting[Item, Result]) -> None:
        """Take an item out of the queue; its heap entry is skipped when it comes up."""
        if waiting.gone:
            return
        waiting.gone = True
        if waiting.session is not None and self._by_session.get(waiting.session) is waiting:
            del self._by_session[waiting.session]
        self._count(-1)

    def _fail(self, waiting: _Waiting[Item, Result], error: Exception) -> None:
        self._forget(waiting)
        if not waiting.done.done():
            waiting.done.set_exception(error)

    async def _run(self) -> None:
        while True:
            self._arrival.clear()
            if not self._depth:
                self._heap.clear()
                await self._clock.wait(self._arrival, None)
                continue
            gathering_since = self._clock.now()
            await self._gather(gathering_since)
            batch = self._take()
            if batch:
                await self._serve(batch, gathering_since)

    async def _gather(self, since: float) -> None:
        limit = self._settings.max_wait_s
        wait = min(0.010, 0.15 * self._forward_time.mean) if limit is None else limit
        while (left := since + wait - self._clock.now()) > 0 and self._someone_is_missing():
            self._arrival.clear()
            await self._clock.wait(self._arrival, left)

    def _someone_is_missing(self) -> bool:
        active = self._activity.count(self._clock.now())
        return self._depth < min(active, self._settings.max_cost)

    def _take(self) -> list[_Waiting[Item, Result]]:
        """Return the next batch: the most urgent item and those that may ride with it, most urgent first."""
        now = self._clock.now()
        batch: list[_Waiting[Item, Result]] = []
        others: list[_Waiting[Item, Result]] = []
        cost = 0.0
        while self._heap:
            waiting = heapq.heappop(self._heap)
            if waiting.gone:
                continue
            if waiting.deadline is not None and waiting.deadline <= now:
                late = (now - waiting.deadline) * 1e3
                self._fail(
                    waiting, self._dropped("deadline_exceeded", f"deadline: passed {late:.0f} ms ago in the queue")
                )
            elif (batch and waiting.key != batch[0].key) or cost + waiting.cost > self._settings.max_cost:
                others.append(waiting)
            else:
                cost += waiting.cost
                self._forget(waiting)
                batch.append(waiting)
        heapq.heapify(others)
        self._heap = others
        return batch

    async def _serve(self, batch: list[_Waiting[Item, Result]], gathering_since: float) -> None:
        started = self._forward_since = self._clock.now()
        loop = asyncio.get_running_loop()
        outcomes = await loop.run_in_executor(self._executor, self._outcomes, [waiting.item for waiting in batch])
        self._forward_since = None
        forward_s = self._clock.now() - started
        self._forward_time.add(forward_s)
        if self._observer is not None:
            self._observer.on_batch(len(batch), forward_s)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.done.done():
                continue
            if isinstance(outcome, Exception):
                waiting.done.set_exception(outcome)
                continue
            gathered_from = max(gathering_since, waiting.arrived)
            waiting.done.set_result(
                Served(
                    result=outcome,
                    batch_size=len(batch),
                    queue_s=gathered_from - waiting.arrived,
                    batch_wait_s=started - gathered_from,
                    forward_s=forward_s,
                )
            )

    def _outcomes(self, items: list[Item]) -> list[Result | Exception]:
        try:
            outcomes = list(self._forward(items))
            if len(outcomes) != len(items):
                raise ValueError(f"the forward gave {len(outcomes)} results for {len(items)} items")
        except Exception as error:  # noqa: BLE001  the fault of one item, or of all: asking each alone tells which
            if len(items) == 1:
                return [_as_typed(error)]
            return [self._outcomes([item])[0] for item in items]
        return [_as_typed(outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes]


def _as_typed(error: Exception) -> RoboserveError:
    if isinstance(error, RoboserveError):
        return error
    typed = RoboserveError("policy_failed", "the model raised on this request; the server's log has the cause")
    typed.__cause__ = error
    return typed
