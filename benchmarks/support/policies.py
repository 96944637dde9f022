"""A policy that costs time like a GPU model and notes every forward, so that a benchmark need not trust the server."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from models.policies.scripted import Interface, SlowPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.policies.contract import ActionChunk, ActItem, PolicySpec


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One forward as the policy saw it; times in seconds of `time.monotonic`, which is one clock for the whole machine.

    Attributes:
        deadlines: when each item's robot had no more use for the answer; None for an item without a deadline.
    """

    started: float
    ended: float
    deadlines: tuple[float | None, ...]

    @property
    def late_ms(self) -> tuple[float, ...]:
        """How late, in ms, the forward began for each item whose deadline had passed by then."""
        return tuple((self.started - at) * 1e3 for at in self.deadlines if at is not None and at < self.started)


class AuditedSlowPolicy:
    """A `SlowPolicy` that appends a line for each forward to a file.

    A robot of the benchmarks puts its own absolute deadline, in microseconds, into the request's seed: the one number
    that travels to the policy untouched whatever the server does with deadlines.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Cost in milliseconds as for `SlowPolicy`, the interface to pretend, and the file to append to."""

        audit: str
        base_ms: float = 30.0
        per_item_ms: float = 2.0
        interface: Interface = field(default_factory=Interface)

    def __init__(self, config: Config) -> None:
        self._slow = SlowPolicy(
            SlowPolicy.Config(base_ms=config.base_ms, per_item_ms=config.per_item_ms, interface=config.interface)
        )
        self._audit = Path(config.audit).open("a", encoding="ascii", buffering=1)  # noqa: SIM115  lives as long as this

    @property
    def spec(self) -> PolicySpec:
        """What it wants and gives."""
        return self._slow.spec

    def act(self, items: Sequence[ActItem]) -> list[ActionChunk]:
        """Sleep, note, and return zeros."""
        started = time.monotonic()
        chunks = self._slow.act(items)
        deadlines = ",".join("-" if item.options.seed is None else str(item.options.seed) for item in items)
        self._audit.write(f"{started:.6f} {time.monotonic():.6f} {deadlines}\n")
        return chunks

    def reset(self, session: str) -> None:
        """Keep nothing."""


def read_audit(path: Path) -> list[Forward]:
    """Read the forwards noted so far."""
    if not path.exists():
        return []
    forwards = []
    for line in path.read_text("ascii").splitlines():
        started, ended, deadlines = line.split(" ")
        marks = tuple(None if mark == "-" else int(mark) / 1e6 for mark in deadlines.split(","))
        forwards.append(Forward(started=float(started), ended=float(ended), deadlines=marks))
    return forwards
