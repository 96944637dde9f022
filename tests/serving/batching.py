"""A clock that stands still until told, and a model that holds its forward until let go."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from serving.batcher import Batcher, BatchSettings

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 20.0


class FakeClock:
    def __init__(self) -> None:
        self.time = 100.0
        self.waits: list[float] = []
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        return self.time

    async def wait(self, event: asyncio.Event, timeout: float | None) -> None:
        if timeout is None:
            await event.wait()
            return
        self.waits.append(timeout)
        due = asyncio.Event()
        self._sleepers.append((self.time + timeout, due))
        tasks = [asyncio.create_task(event.wait()), asyncio.create_task(due.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def advance(self, seconds: float) -> None:
        self.time += seconds
        for until, due in self._sleepers:
            if until <= self.time:
                due.set()


@dataclass
class Work:
    """One item: what it carries is what the model should do with it."""

    name: Any
    key: Any = None
    fault: str = ""


@dataclass
class HeldModel:
    """A forward that records what it was given and when, and, while held, waits to be let go."""

    clock: FakeClock
    held: bool = False
    batches: list[list[Work]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    waiting: bool = False
    _gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __call__(self, items: list[Work]) -> list[Any]:
        self.batches.append(list(items))
        self.times.append(self.clock.now())
        self.threads.add(threading.get_ident())
        if self.held:
            self.waiting = True
            assert self._gate.acquire(timeout=LIMIT_S)
            self.waiting = False
        if any(item.fault == "raise" for item in items):
            raise ValueError("a secret of the model")
        if any(item.fault == "exit" for item in items):
            raise SystemExit(3)
        if any(item.fault == "miscount" for item in items):
            return [item.name for item in items][:-1]
        return [RoboserveError("invalid_output", "asked") if item.fault == "error" else item.name for item in items]

    def let_go(self) -> None:
        """Let the running forward end."""
        self._gate.release()

    def release(self) -> None:
        """Let every forward run through from now on."""
        self.held = False
        self._gate.release()

    @property
    def names(self) -> list[list[Any]]:
        return [[item.name for item in batch] for batch in self.batches]


async def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, "the condition did not come about"
        await asyncio.sleep(0.0005)


@dataclass
class Observed:
    depths: list[int] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def on_queue(self, depth: int) -> None:
        self.depths.append(depth)

    def on_drop(self, code: str) -> None:
        self.drops.append(code)

    def on_batch(self, size: int, forward_s: float) -> None:
        assert forward_s >= 0
        self.sizes.append(size)


class Bench:
    """A batcher on a fake clock with a model that can be held."""

    def __init__(self, *, held: bool = False, **settings: Any) -> None:
        self.clock = FakeClock()
        self.model = HeldModel(self.clock, held=held)
        self.seen = Observed()
        options = {"max_wait_s": 0.0, **settings}
        self.batcher: Batcher[Work, Any] = Batcher(
            self.model, BatchSettings(**options), observer=self.seen, clock=self.clock
        )

    def ask(self, work: Work | Any, **arguments: Any) -> asyncio.Task[Any]:
        work = work if isinstance(work, Work) else Work(work)
        return asyncio.create_task(self.batcher.submit(work, key=work.key, **arguments))

    async def occupy(self) -> asyncio.Task[Any]:
        """Hold the model with an item of its own, so that what comes next must queue."""
        self.model.held = True
        task = self.ask("first")
        await until(lambda: self.model.waiting)
        return task

    async def queued(self, count: int) -> None:
        await until(lambda: self.batcher.depth == count)


async def outcome(task: asyncio.Task[Any]) -> Any:
    """Return the result of a request, or the code of its error."""
    try:
        served = await asyncio.wait_for(task, LIMIT_S)
    except RoboserveError as error:
        return error.code
    return served.result
