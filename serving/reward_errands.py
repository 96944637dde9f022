"""A reward request under way: its clips one after the other, its queries a number at once, its memory counted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from clients.errors import RoboserveError
from serving.together import first_of, together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from models.rewards.contract import FrameValues
    from serving.batcher import Batcher, Served
    from serving.feature_cache import Frame
    from serving.reward_engine import Work

Ask = TypeVar("Ask")


@dataclass(kw_only=True)
class Tally:
    """What a request's queries went through: the largest batch that one rode in, and times in s, the longest each."""

    batch_size: int = 0
    times: dict[str, float] = field(default_factory=dict)

    def add(self, served: Served[Any]) -> None:
        """Count one query."""
        self.batch_size = max(self.batch_size, served.batch_size)
        for name in ("queue", "batch_wait", "forward"):
            self.times[name] = max(self.times.get(name, 0.0), getattr(served, f"{name}_s"))


@dataclass(kw_only=True)
class Errand:
    """One request: its deadline on the batcher's clock, and what it has under way.

    Attributes:
        room: places for queries that wait for a forward, whichever clip they are of.
        held: bytes of its frames; `let_go` is set when some are let go.
    """

    deadline: float | None
    tally: Tally
    room: asyncio.Semaphore
    held: int = 0
    let_go: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A clip or a pair that is decoded: its frames, and what asks about them."""

    frames: Sequence[Frame]
    answer: Callable[[], Coroutine[Any, Any, dict[str, Any]]]


class Errands:
    """Runs requests within limits that all of them share.

    Args:
        batcher: runs queries; `cost`: image tokens of one.
        queries: queries of one request that may wait for a forward at once, so that a long clip leaves room for others.
        held_bytes: prepared frames of all requests; those that wait for room may be as many again.
    """

    def __init__(
        self,
        batcher: Batcher[Work, FrameValues | float],
        *,
        cost: Callable[[Work], float],
        queries: int,
        held_bytes: int,
    ) -> None:
        self._batcher = batcher
        self._cost = cost
        self._queries = queries
        self._limit = held_bytes
        self._held = self._waiting = 0

    def start(self, deadline: float | None, tally: Tally) -> Errand:
        """Return a new request."""
        return Errand(deadline=deadline, tally=tally, room=asyncio.Semaphore(self._queries))

    async def each(
        self, asks: Sequence[Ask], begin: Callable[[Ask], Awaitable[Begun]], errand: Errand
    ) -> list[dict[str, Any]]:
        """Answer clips or pairs: one is decoded while the queries of those before it are under way.

        Raises:
            RoboserveError: the first failure; what else the request has under way is withdrawn.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = []
                for ask in asks:
                    begun = await begin(ask)
                    size = sum(frame.pixels.nbytes for frame in begun.frames)
                    await self._hold(size, errand)
                    task = group.create_task(begun.answer())
                    task.add_done_callback(partial(self._let_go, size, errand))
                    tasks.append(task)
        except BaseExceptionGroup as errors:  # raising in except* wraps on Python 3.11.2
            raise first_of(errors) from None
        return [task.result() for task in tasks]

    async def ask(self, works: Sequence[Work], errand: Errand) -> list[FrameValues | float]:
        """Put queries before the batcher.

        Raises:
            RoboserveError: the first failure; the other queries are withdrawn.
        """

        async def one(work: Work) -> FrameValues | float:
            async with errand.room:
                served = await self._batcher.submit(work, cost=self._cost(work), deadline=errand.deadline)
            errand.tally.add(served)
            return served.result

        return await together(one(work) for work in works)

    async def _hold(self, size: int, errand: Errand) -> None:
        """Count frames; where they do not fit beside the request's own earlier ones, wait until those are done.

        Raises:
            RoboserveError: `overloaded` where other requests take the room, `too_large` where all of it is too little.
        """
        if size > self._limit:
            raise RoboserveError("too_large", f"clips: one of {size} bytes of frames, limit {self._limit} in all")
        while self._held + size > self._limit:
            if not errand.held or self._waiting + size > self._limit:
                text = f"clips: {self._held + self._waiting + size} bytes of frames under way, limit {self._limit}"
                raise RoboserveError("overloaded", text)
            errand.let_go.clear()
            self._waiting += size
            try:
                await errand.let_go.wait()
            finally:
                self._waiting -= size
        self._held += size
        errand.held += size

    def _let_go(self, size: int, errand: Errand, _task: asyncio.Task[Any]) -> None:
        self._held -= size
        errand.held -= size
        errand.let_go.set()
