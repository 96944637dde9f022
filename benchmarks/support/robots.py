"""Robots for a fleet benchmark: asyncio clients that ask for chunks in a closed loop, on a cadence, or at random.

An observation is encoded once; a request then costs a copy, so that the robots, which share the machine with the
server, take little from it. A real fleet encodes on its own machines.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgpack
from websockets.asyncio.client import connect

from clients.contract import PROTOCOL
from clients.wire import encode, with_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from websockets.asyncio.client import ClientConnection

    from benchmarks.support.payloads import Payload

UNSENT = "unsent"
_DRAIN_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request; times in seconds of `time.monotonic`.

    Attributes:
        due: when the robot wanted to ask; latency counts from here, not from when it got round to it.
        answered: when the outcome was known.
        outcome: "ok", an error code, or "unsent" where the answer before was still outstanding.
        batch: items that rode in the same forward; 0 where the server does not say.
    """

    due: float
    answered: float
    outcome: str
    batch: int = 0

    @property
    def latency_ms(self) -> float:
        """From when it was due to the answer."""
        return (self.answered - self.due) * 1e3


class RobotLine(Protocol):
    """A robot's connection. `overlaps`: a newer observation may be sent while an answer is outstanding."""

    overlaps: bool

    async def ask(self, deadline_s: float | None) -> tuple[str, int]:
        """Ask for a chunk; returns the outcome and the batch's size. `deadline_s` counts from now."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class NativeRobotLine:
    """Speaks the native protocol; answers find their requests by id."""

    overlaps = True

    def __init__(self, connection: ClientConnection, load: Payload, name: str) -> None:
        self._connection = connection
        self._message = encode({"type": "act", "session": name, "observation": load.native()})
        self._ids = itertools.count()
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, url: str, load: Payload, name: str) -> NativeRobotLine:
        """Connect and take the contract."""
        connection = await connect(url, compression=None, max_size=None, subprotocols=[PROTOCOL], ping_interval=None)  # type: ignore[list-item]
        await connection.recv()
        return cls(connection, load, name)

    async def ask(self, deadline_s: float | None) -> tuple[str, int]:
        """See `RobotLine`."""
        request_id = str(next(self._ids))
        message = with_entry(self._message, "request_id", request_id)
        if deadline_s is not None:
            message = with_entry(message, "deadline_ms", deadline_s * 1e3)
            message = with_entry(message, "options", {"seed": _mark(deadline_s)})
        answer = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        await self._connection.send(message)
        reply = await answer
        if reply["type"] == "action":
            return "ok", int(reply["batch_size"])
        return str(reply["code"]), 0

    async def close(self) -> None:
        """See `RobotLine`."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._connection.close()

    async def _read(self) -> None:
        try:
            while True:
                reply = msgpack.unpackb(await self._connection.recv(decode=False), strict_map_key=False)
                self._waiting.pop(str(reply["request_id"])).set_result(reply)
        except Exception as error:
            for answer in self._waiting.values():
                answer.set_exception(error)
            raise


class OpenpiRobotLine:
    """Speaks openpi's protocol as its stock client does: one request at a time, no deadlines."""

    overlaps = False

    def __init__(self, connection: ClientConnection, load: Payload) -> None:
        self._connection = connection
        self._message = encode(load.openpi())

    @classmethod
    async def open(cls, url: str, load: Payload, _name: str) -> OpenpiRobotLine:
        """Connect and take the metadata."""
        connection = await connect(url, compression=None, max_size=None, ping_interval=None)
        await connection.recv()
        return cls(connection, load)

    async def ask(self, deadline_s: float | None) -> tuple[str, int]:
        """See `RobotLine`."""
        message = self._message if deadline_s is None else with_entry(self._message, "seed", _mark(deadline_s))
        await self._connection.send(message)
        reply = msgpack.unpackb(await self._connection.recv(decode=False), strict_map_key=False)
        return ("ok" if "actions" in reply else "error"), 1

    async def close(self) -> None:
        """See `RobotLine`."""
        await self._connection.close()


def _mark(deadline_s: float) -> int:
    """Return the absolute deadline for the policy's audit."""
    return int((time.monotonic() + deadline_s) * 1e6)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """When robots ask.

    Attributes:
        name: for tables.
        period_s: mean time between the requests of one robot, and the deadline of each; None: closed loop, no deadline.
        poisson: times are random (exponential gaps), not on a cadence with a random phase.
    """

    name: str
    period_s: float | None = None
    poisson: bool = False

    def times(self, start: float, stop: float, draw: random.Random) -> Iterator[float]:
        """Yield when one robot asks."""
        if self.period_s is None:
            raise ValueError("a closed loop has no schedule")
        at = start + (draw.expovariate(1 / self.period_s) if self.poisson else draw.uniform(0, self.period_s))
        while at < stop:
            yield at
            at += draw.expovariate(1 / self.period_s) if self.poisson else self.period_s


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a fleet did between `start` and `stop`, warm-up left out; client CPU as a share of one core."""

    start: float
    stop: float
    asked: list[Asked]
    client_cpu: float


async def run_fleet(
    opener: Callable[[str], Any], robots: int, pattern: Pattern, *, seconds: float, warm_up: float, seed: int
) -> Run:
    """Let robots ask for a while.

    Args:
        opener: opens the line of the robot with this name.
        seed: of phases and gaps, so that contenders see the same schedule.

    Raises:
        TimeoutError: answers were still missing long after the end.
    """
    lines: list[RobotLine] = [await opener(f"robot-{index}") for index in range(robots)]
    start = time.monotonic() + 0.05
    stop = start + warm_up + seconds
    cpu = time.process_time()
    wall = time.monotonic()
    tasks = []
    for index, line in enumerate(lines):
        draw = random.Random(f"{seed}:{index}")
        robot = _closed_loop(line, stop) if pattern.period_s is None else _on_schedule(line, pattern, start, stop, draw)
        tasks.append(asyncio.create_task(robot))
    try:
        async with asyncio.timeout(warm_up + seconds + _DRAIN_S):
            logs = await asyncio.gather(*tasks)
        used = (time.process_time() - cpu) / (time.monotonic() - wall)
    finally:
        for line in lines:
            await line.close()
    begin = start + warm_up
    asked = [entry for log in logs for entry in log if begin <= entry.due < stop]
    return Run(start=begin, stop=stop, asked=asked, client_cpu=used)


async def _closed_loop(line: RobotLine, stop: float) -> list[Asked]:
    log = []
    while (due := time.monotonic()) < stop:
        outcome, batch = await line.ask(None)
        log.append(Asked(due=due, answered=time.monotonic(), outcome=outcome, batch=batch))
    return log


async def _on_schedule(
    line: RobotLine, pattern: Pattern, start: float, stop: float, draw: random.Random
) -> list[Asked]:
    log: list[Asked] = []
    outstanding: set[asyncio.Task[None]] = set()

    async def ask(due: float) -> None:
        # The deadline is the robot's: it counts from when the observation was due.
        left = due + (pattern.period_s or 0.0) - time.monotonic()
        outcome, batch = await line.ask(max(left, 1e-3))
        log.append(Asked(due=due, answered=time.monotonic(), outcome=outcome, batch=batch))

    for due in pattern.times(start, stop, draw):
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if outstanding and not line.overlaps:
            log.append(Asked(due=due, answered=due, outcome=UNSENT))
            continue
        task = asyncio.create_task(ask(due))
        outstanding.add(task)
        task.add_done_callback(outstanding.discard)
    await asyncio.gather(*outstanding)
    return log
