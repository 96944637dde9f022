"""Time for the control loop: one monotonic clock, and a sleep that wakes on it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the loop needs of time; tests put their own in its place."""

    def now(self) -> float:
        """Return seconds on a monotonic clock."""
        ...

    def sleep_until(self, at: float) -> None:
        """Return at `at` or as soon as possible after it."""
        ...


class MonotonicClock:
    """The system's monotonic clock.

    Args:
        spin_s: the last stretch before the wanted time is spent awake. A sleeping thread returns late by the
            scheduler's latency and, in Python, by the time that another thread keeps the interpreter.
    """

    def __init__(self, spin_s: float = 0.001) -> None:
        self._spin_s = spin_s

    def now(self) -> float:
        """Return seconds on a monotonic clock."""
        return time.monotonic()

    def sleep_until(self, at: float) -> None:
        """Sleep, then spin for the last stretch."""
        left = at - time.monotonic() - self._spin_s
        if left > 0:
            time.sleep(left)
        while time.monotonic() < at:
            pass  # keeps the interpreter: a yield here may hand it to another thread for longer than the stretch lasts
