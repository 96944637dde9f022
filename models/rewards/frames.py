"""Which frames of a clip a reward model is shown: named policies, so that an answer can say how it came about.

The same weights give different values under different policies (public code shows 4, 8, 16 or all frames, spaced or the
last ones, rounded or floored), so the name travels with every request and every answer, with the indices it led to.

A name is one of

- `linspace-K`: K frames evenly spaced from the first to the last, both included, rounded to the nearest; a clip of
  fewer than K frames is shown as it is. What Robometer's authors describe, with K = 8.
- `linspace-K-pad`: the same, short clips padded to K by repeating the last frame (Robometer's wrapper of one
  environment).
- `linspace-K-repeat`: always K indices, so short clips repeat frames in place (LeRobot's dataset script, K = 4).
- `floor-K`: as `linspace-K-repeat`, rounded down (Robometer's evaluation server, K = 4).
- `last-K`, `last-K-pad`: the last K frames (LeRobot's encoder; Robometer's vector wrapper pads).
- `all`: every frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["linspace", "floor", "last", "all"]
Short = Literal["", "pad", "repeat"]
MODES = ("single_pass", "prefix", "final")
"""Progress modes: `single_pass` shows the clip's frames once and reads a value at each; `prefix` asks anew for each
frame with the frames up to it and reads its last value (the paper's protocol); `final` is the clip's last value."""

_NAME = re.compile(r"(linspace|floor|last)-([1-9][0-9]{0,3})(?:-(pad|repeat))?")


@dataclass(frozen=True, kw_only=True)
class FramePolicy:
    """A frame policy; `parse` reads its name.

    Attributes:
        kind: how frames are chosen; `count`: how many (0 for "all"); `short`: what becomes of a clip with fewer.
    """

    kind: Kind
    count: int = 0
    short: Short = ""

    @classmethod
    def parse(cls, name: str) -> FramePolicy:
        """Read a policy's name.

        Raises:
            ValueError: naming the forms there are.
        """
        if name == "all":
            return cls(kind="all")
        match = _NAME.fullmatch(name)
        if match is None or (match[1], match[3]) in {("floor", "pad"), ("floor", "repeat"), ("last", "repeat")}:
            raise ValueError(
                f"frame policy {name!r:.40}: known are linspace-K, linspace-K-pad, linspace-K-repeat, floor-K, last-K, "
                "last-K-pad and all"
            )
        return cls(kind=cast("Kind", match[1]), count=int(match[2]), short=cast("Short", match[3] or ""))

    @property
    def name(self) -> str:
        """The name that `parse` reads."""
        return (
            "all" if self.kind == "all" else "-".join(part for part in (self.kind, str(self.count), self.short) if part)
        )

    def indices(self, length: int) -> tuple[int, ...]:
        """Return the frames shown of a clip of `length` frames, in order of time.

        Raises:
            ValueError: `length` is below 1.
        """
        if length < 1:
            raise ValueError(f"length {length}: a clip has at least one frame")
        if self.kind == "all" or (length <= self.count and not self._fills):
            return tuple(range(length))
        if self.kind == "last":
            return self._padded(range(max(0, length - self.count), length))
        if self.short == "pad" and length < self.count:
            return self._padded(range(length))
        places = np.linspace(0, length - 1, self.count) if self.count > 1 else np.array([length - 1.0])
        whole = np.floor(places) if self.kind == "floor" else np.rint(places)
        return tuple(int(place) for place in whole)

    @property
    def _fills(self) -> bool:
        return self.kind == "floor" or self.short != ""

    def _padded(self, shown: range) -> tuple[int, ...]:
        padding = self.count - len(shown) if self.short == "pad" else 0
        return (*shown, *(padding * (shown[-1],)))


def windows(policy: FramePolicy, mode: str, length: int) -> list[tuple[int, ...]]:
    """Return the frames of every query that a mode asks for a clip of `length` frames.

    `prefix` gives one window for each frame of the clip, the others give one in all.

    Raises:
        ValueError: an unknown mode, or `length` below 1.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r:.40}: known are {', '.join(MODES)}")
    if mode == "prefix":
        return [policy.indices(end) for end in range(1, length + 1)]
    return [policy.indices(length)]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where a window's value stands: at `position` of the frames that query `query` shows."""

    query: int
    position: int


def merged(wanted: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[Reading]]:
    """Return the queries that answer all windows, and where the last value of each window is read.

    A window that another one begins with needs no query of its own: values are causal, so the longer window gives the
    shorter one's on its way. (The first K prefixes under `linspace-K` take one query, all of them under `all`.)
    """
    order = sorted(range(len(wanted)), key=lambda index: -len(wanted[index]))
    queries: list[tuple[int, ...]] = []
    begins: dict[tuple[int, ...], Reading] = {}
    readings: dict[int, Reading] = {}
    for index in order:
        window = wanted[index]
        if window not in begins:
            queries.append(window)
            for end in range(1, len(window) + 1):
                begins.setdefault(window[:end], Reading(query=len(queries) - 1, position=end - 1))
        readings[index] = begins[window]
    return queries, [readings[index] for index in range(len(wanted))]
