"""The batcher: requests in, batched forwards out; pure asyncio, no Ray, tested with a fake clock.

What it promises:
- earliest deadline first, over groups that may share a forward (same `key`), up to a cost budget;
- work whose deadline has passed is dropped before the forward, never run;
- where not all can be in time, the forward that brings most work home in time comes first: an overload costs those
  beyond the capacity their answer, and not everybody a little lateness;
- the newest item of a session replaces an older one that is still queued;
- one bad item never fails its neighbours: when a batch raises, each item is asked again alone;
- the queue is bounded, and a full one refuses clearly;
- a short gathering wait, only while sessions that were lately active are still missing, so that closed-loop fleets
  ride together instead of splitting into groups that wait for each other, and a lone robot never waits.
"""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Generic, TypeVar

from clients.errors import RoboserveError
from serving.batch_choice import next_batch
from serving.batch_terms import Activity, BatchObserver, BatchSettings, Clock, ForwardTime, MonotonicClock, Served

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

__all__ = ["BatchObserver", "BatchSettings", "Batcher", "Clock", "MonotonicClock", "Served"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


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


class Batcher(Generic[Item, Result]):
    """Batches calls to a synchronous forward, which runs off the event loop unless it is `inline`, one at a time.

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
        self._queue: dict[int, _Waiting[Item, Result]] = {}
        self._by_session: dict[Hashable, _Waiting[Item, Result]] = {}
        self._ticket = itertools.count()
        self._arrival = asyncio.Event()
        self._forward_time = ForwardTime()
        self._activity = Activity(window_s=settings.active_window_s)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._loop_task: asyncio.Task[None] | None = None
        self._forward_since: float | None = None
        self._closed = False
        self._fault: BaseException | None = None

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
            session: a newer item of the same session replaces this one while it is queued; None for an item on its own,
                which is never waited for.

        Raises:
            RoboserveError: `overloaded`, `deadline_exceeded`, `superseded`, `too_large`, `unavailable` (closing), or
                whatever the forward gave for this item (`policy_failed` for an exception of another type).
        """
        now = self._clock.now()
        self._refuse_early(cost, deadline, now)
        if session is not None:
            self._activity.touch(session, now)
            self._supersede(session)
        if len(self._queue) >= self._settings.max_queue:
            text = f"queue: {len(self._queue)} requests waiting, limit {self._settings.max_queue}"
            raise self._dropped("overloaded", text)
        waiting = self._enqueue(item, key, cost, deadline, session, now)
        try:
            return await waiting.done
        except asyncio.CancelledError:
            self._forget(waiting)
            raise

    @property
    def depth(self) -> int:
        """Items waiting for a forward."""
        return len(self._queue)

    @property
    def closed(self) -> bool:
        """Whether it refuses all work."""
        return self._closed

    @property
    def fault(self) -> BaseException | None:
        """What ended the batcher where `close` did not: a fault of ours."""
        return self._fault

    @property
    def forward_running_s(self) -> float:
        """Seconds that the present forward has run; 0 between forwards. A health check bounds it."""
        return 0.0 if self._forward_since is None else self._clock.now() - self._forward_since

    async def call(self, work: Callable[[], None]) -> None:
        """Run work where the forward runs, between forwards: for what must not overlap one.

        Raises:
            RoboserveError: `unavailable` when closed; else what the work raises.
        """
        if self._closed:
            raise RoboserveError("unavailable", "the server is shutting down")
        await self._run_forwards_way(work)

    async def close(self) -> None:
        """Refuse new work, fail what waits with `unavailable`, and let the running forward end and be answered."""
        self._closed = True
        self._fail_all(RoboserveError("unavailable", "the server is shutting down"))
        self._arrival.set()
        if self._loop_task is not None:
            await asyncio.gather(self._loop_task, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    def _refuse_early(self, cost: float, deadline: float | None, now: float) -> None:
        if self._closed:
            raise self._dropped("unavailable", "the server is shutting down")
        if not cost <= self._settings.max_cost:
            raise self._dropped("too_large", f"cost: {cost:g}, limit {self._settings.max_cost:g} for one forward")
        if deadline is not None and not deadline > now:
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
        self._queue[waiting.order[1]] = waiting
        if session is not None:
            self._by_session[session] = waiting
        self._report_depth()
        self._arrival.set()
        if self._loop_task is None:
            self._loop_task = loop.create_task(self._run())
            self._loop_task.add_done_callback(self._on_loop_end)
        return waiting

    def _on_loop_end(self, task: asyncio.Task[None]) -> None:
        """Leave nobody waiting when the loop ends by a fault of ours; the health check then fails."""
        self._closed = True
        self._fault = None if task.cancelled() else task.exception()
        self._fail_all(RoboserveError("internal", "the batcher stopped"))

    def _supersede(self, session: Hashable) -> None:
        older = self._by_session.get(session)
        if older is not None:
            self._fail(older, self._dropped("superseded", "a newer observation of this session took its place"))

    def _report_depth(self) -> None:
        if self._observer is not None:
            self._observer.on_queue(len(self._queue))

    def _dropped(self, code: str, message: str) -> RoboserveError:
        if self._observer is not None:
            self._observer.on_drop(code)
        return RoboserveError(code, message)

    def _forget(self, waiting: _Waiting[Item, Result]) -> None:
        """Take an item out of the queue, if it is still there."""
        if self._queue.pop(waiting.order[1], None) is None:
            return
        if waiting.session is not None and self._by_session.get(waiting.session) is waiting:
            del self._by_session[waiting.session]
        self._report_depth()

    def _fail(self, waiting: _Waiting[Item, Result], error: Exception) -> None:
        self._forget(waiting)
        if not waiting.done.done():
            waiting.done.set_exception(error)

    def _fail_all(self, error: RoboserveError) -> None:
        for waiting in list(self._queue.values()):
            self._fail(waiting, self._dropped(error.code, error.message))

    async def _run(self) -> None:
        while not self._closed:
            self._arrival.clear()
            if not self._queue:
                await self._clock.wait(self._arrival, None)
                continue
            gathering_since = self._clock.now()
            await self._gather(gathering_since)
            batch = self._take()
            if batch:
                await self._serve(batch, gathering_since)
                if self._settings.inline:  # a queue that is never empty must not keep the loop from everybody else
                    await asyncio.sleep(0)

    async def _gather(self, since: float) -> None:
        limit = self._settings.max_wait_s
        wait = min(0.010, 0.15 * self._forward_time.mean) if limit is None else limit
        while (left := since + wait - self._clock.now()) > 0 and self._someone_is_missing():
            self._arrival.clear()
            await self._clock.wait(self._arrival, left)

    def _someone_is_missing(self) -> bool:
        active = self._activity.count(self._clock.now())
        return 0 < len(self._queue) < min(active, self._settings.max_cost)

    def _take(self) -> list[_Waiting[Item, Result]]:
        """Drop what is past its deadline and take the next batch out of the queue."""
        now = self._clock.now()
        alive: list[_Waiting[Item, Result]] = []
        for waiting in sorted(self._queue.values(), key=attrgetter("order")):
            if waiting.deadline is not None and waiting.deadline <= now:
                text = f"deadline: passed {(now - waiting.deadline) * 1e3:.0f} ms ago in the queue"
                self._fail(waiting, self._dropped("deadline_exceeded", text))
            else:
                alive.append(waiting)
        batch = next_batch(alive, now=now, max_cost=self._settings.max_cost, expect=self._forward_time.expect)
        for waiting in batch:
            self._forget(waiting)
        return batch

    async def _serve(self, batch: list[_Waiting[Item, Result]], gathering_since: float) -> None:
        started = self._forward_since = self._clock.now()
        try:
            outcomes = await self._run_forwards_way(lambda: self._outcomes(batch))
            self._forward_since = None
            forward_s = self._clock.now() - started
            self._forward_time.add(forward_s, sum(waiting.cost for waiting in batch))
            if self._observer is not None:
                self._observer.on_batch(len(batch), forward_s)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                _settle(waiting, outcome, len(batch), (gathering_since, started, forward_s))
        finally:  # nobody may wait for ever, whatever went wrong here
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_exception(RoboserveError("internal", "the batcher stopped"))

    async def _run_forwards_way(self, work: Callable[[], Answer]) -> Answer:
        """Run work on the forward's thread, or at once where the forward is `inline`."""
        if self._settings.inline:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _outcomes(self, batch: list[_Waiting[Item, Result]]) -> list[Result | Exception]:
        """Run the forward, and run it again for each item alone where a batch raises; on the forward's thread."""
        try:
            outcomes = list(self._forward([waiting.item for waiting in batch]))
            if len(outcomes) != len(batch):
                raise ValueError(f"the forward gave {len(outcomes)} results for {len(batch)} items")
        except BaseException as error:  # noqa: BLE001  of one item or of all, a model's own sys.exit included
            if len(batch) == 1:
                return [_as_typed(error)]
            return [self._alone(waiting) for waiting in batch]
        return [_as_typed(outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes]

    def _alone(self, waiting: _Waiting[Item, Result]) -> Result | Exception:
        if waiting.deadline is not None and waiting.deadline <= self._clock.now():
            return self._dropped("deadline_exceeded", "deadline: passed while the batch was asked again item by item")
        return self._outcomes([waiting])[0]


def _settle(
    waiting: _Waiting[Item, Result], outcome: Result | Exception, size: int, times: tuple[float, float, float]
) -> None:
    """Answer one item; `times`: when gathering began, when the forward began, how long it took."""
    gathering_since, started, forward_s = times
    if waiting.done.done():
        return
    if isinstance(outcome, Exception):
        waiting.done.set_exception(outcome)
        return
    gathered_from = max(gathering_since, waiting.arrived)
    waiting.done.set_result(
        Served(
            result=outcome,
            batch_size=size,
            queue_s=gathered_from - waiting.arrived,
            batch_wait_s=started - gathered_from,
            forward_s=forward_s,
        )
    )


def _as_typed(error: BaseException) -> RoboserveError:
    if isinstance(error, RoboserveError):
        return error
    typed = RoboserveError("policy_failed", "the model raised on this request; the server's log has the cause")
    typed.__cause__ = error
    return typed
