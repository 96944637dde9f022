"""Benchmarks of one update: contenders in turns, a table of ratios, and where the time of ours goes."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.support import results
from benchmarks.support.stats import summarize, turns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from rich.console import Console

_TOP = 8


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """Add how often each contender has its turn."""
    parser.add_argument("--rounds", type=int, default=5, help="of each contender, in turns")
    parser.add_argument("--updates", type=int, default=20, help="of ours in a round")


def measure(work: Mapping[str, tuple[Callable[[], Any], int]], *, rounds: int, seed: int) -> dict[str, list[float]]:
    """Return seconds an update of each contender, one sample a round.

    Args:
        work: of each contender, an update and how many of them are a sample.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for name in turns(list(work), rounds, random.Random(seed)):
        update, number = work[name]
        started = time.perf_counter()
        for _ in range(number):
            update()
        seconds[name].append((time.perf_counter() - started) / number)
    return seconds


def tell(
    screen: Console, journal: results.Journal, seconds: Mapping[str, list[float]], *, ours: str, settings: str
) -> None:
    """Print and journal each contender's time with its ratio to ours."""
    best = summarize(seconds[ours]).p50
    table = []
    for name, samples in seconds.items():
        summary = summarize(samples)
        journal.write({"contender": name, "seconds": summary.to_map(), "ratio": round(summary.p50 / best, 2)})
        table.append((name, f"{1000 * summary.p50:.1f}", f"{summary.p50 / best:.1f}x"))
    results.print_table(screen, f"An update: {settings}", ("contender", "ms", "to ours"), table)


def tell_where(screen: Console, journal: results.Journal, update: Callable[[int], Any], *, updates: int) -> None:
    """Print and journal the operations that take most of our CPU time.

    Args:
        update: told the update's number.
    """
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for number in range(updates):
            update(number)
    found = sorted(watched.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    whole = sum(event.self_cpu_time_total for event in found)
    shares = {event.key: round(event.self_cpu_time_total / whole, 3) for event in found[:_TOP]}
    journal.write({"profile": shares})
    rows = [(name, f"{share:.0%}") for name, share in shares.items()]
    results.print_table(screen, "Where the time of ours goes", ("operation", "of CPU time"), rows)
