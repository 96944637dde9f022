"""A thread with a bounded mailbox, for subscribers whose work must not slow the control loop."""

from __future__ import annotations

import queue
import threading
from typing import Any, Callable, Optional


class Worker:
    """Calls `handle` with each item in order, in a thread of its own.

    Args:
        handle: what to do with an item.
        capacity: items that may wait; one that comes while so many wait is refused.
    """

    def __init__(self, handle: Callable[[Any], None], *, name: str, capacity: int) -> None:
        self._handle = handle
        self._items: queue.Queue[Any] = queue.Queue(capacity)
        self._failure: Optional[BaseException] = None
        self._end = object()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Any) -> bool:
        """Hand over an item without waiting; returns whether there was room.

        Raises:
            Exception: what `handle` raised on an earlier item; nothing is handled after that.
        """
        if self._failure is not None:
            raise self._failure
        try:
            self._items.put_nowait(item)
        except queue.Full:
            return False
        return True

    def finish(self) -> None:
        """Wait until everything that was put has been handled, and end the thread.

        Raises:
            Exception: what `handle` raised.
        """
        self._items.put(self._end)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            item = self._items.get()
            if item is self._end:
                return
            if self._failure is None:
                try:
                    self._handle(item)
                except Exception as error:  # noqa: BLE001 - raised again in the thread that asks next
                    self._failure = error
