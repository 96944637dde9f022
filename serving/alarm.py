"""A limit on waiting that costs next to nothing to set, for waits that come with every message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Alarm:
    """Does what `asyncio.timeout` does, again and again with one limit, for one task at a time.

    `asyncio.timeout` makes and cancels a timer for each wait, which is a tenth of what a small message costs here. This
    one leaves its timer running and looks, when it fires, whether the present wait is over its limit.

    Args:
        seconds: the limit on one wait, from entering the block.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due = 0.0
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._rang = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._task is not None:
            raise RuntimeError("one wait at a time")
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("a wait needs a task")
        self._task, self._rang, self._cancelling = task, False, task.cancelling()
        self._due = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(self._due, self._look, loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the wait.

        Raises:
            TimeoutError: the alarm rang, and nobody else cancelled the task.
        """
        task, self._task = self._task, None
        if not self._rang or task is None:
            return
        if task.uncancel() <= self._cancelling and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def stop(self) -> None:
        """Drop the timer; call it when there is nothing left to wait for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._task is None:
            return
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._look, loop)
            return
        self._rang = True
        self._task.cancel()
