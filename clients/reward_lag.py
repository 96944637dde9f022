"""A judge that runs behind its caller by a bounded number of steps, in a thread of its own, in order."""

from __future__ import annotations

import threading
from collections import deque
from typing import Callable, Deque, Generic, List, Optional, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class LaggedJudge(Generic[Item, Result]):
    """Judges items one after another in a thread; results come out in the order in which items went in, each once.

    Args:
        judge: what is done with an item; None as its result gives nothing out.
        lag: items that may wait or be under way; a further one waits for room.
    """

    def __init__(self, judge: Callable[[Item], Optional[Result]], *, lag: int) -> None:
        self._judge, self._lag = judge, lag
        self._condition = threading.Condition()
        self._items: Deque[Item] = deque()
        self._results: List[Result] = []
        self._failure: Optional[Exception] = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="roboserve-reward-env", daemon=True)
        self._thread.start()

    @property
    def outstanding(self) -> int:
        """Items that have no result yet."""
        with self._condition:
            return len(self._items)

    def put(self, item: Item) -> None:
        """Hand over an item; waits while `lag` of them are outstanding.

        Raises:
            Exception: what the judge raised on an earlier item.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._failure is not None or len(self._items) < self._lag)
            self._raise()
            self._items.append(item)
            self._condition.notify_all()

    def take(self) -> List[Result]:
        """Return the results there are, and forget them.

        Raises:
            Exception: what the judge raised, once the results before it were taken.
        """
        with self._condition:
            results, self._results = self._results, []
            if not results:
                self._raise()
            return results

    def drain(self) -> None:
        """Wait until nothing is outstanding; raises as `put`."""
        with self._condition:
            self._condition.wait_for(lambda: self._failure is not None or not self._items)
            self._raise()

    def recover(self) -> List[Item]:
        """After a failure, give up what is outstanding and return it; what comes next is judged again."""
        with self._condition:
            if self._failure is None:
                return []
            lost = list(self._items)
            self._items.clear()
            self._failure = None
            self._condition.notify_all()
            return lost

    def close(self) -> None:
        """End the thread; what is outstanding is given up."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or (self._items and self._failure is None))
                if self._closed:
                    return
                item = self._items[0]
            result: Optional[Result] = None
            failure: Optional[Exception] = None
            try:
                result = self._judge(item)
            except Exception as error:  # noqa: BLE001  it is raised where the caller next asks
                failure = error
            with self._condition:
                if failure is None:
                    self._items.popleft()
                    if result is not None:
                        self._results.append(result)
                self._failure = failure
                self._condition.notify_all()
