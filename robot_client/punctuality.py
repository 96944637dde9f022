"""Settings of the whole process that make ticks punctual: an application may choose them, an import must not."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL_S = 0.0005


def prefer_punctuality() -> None:
    """Let a thread that wakes for its tick have the interpreter sooner, and spare it long garbage collections.

    Another thread that computes in Python keeps the interpreter for up to `sys.getswitchinterval`, 5 ms by default; it
    becomes 0.5 ms. Objects that exist by now are not looked at by the collector any more (`gc.freeze`), so call this
    once, after the robot has been made and before the first episode.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
