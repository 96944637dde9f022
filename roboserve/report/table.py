"""The demo's table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from roboserve.report.episodes import read_episodes, reward_faults, rows

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

HEADINGS = ("task", "success", "progress", "Hz held", "on time", "p50 ms", "p99 ms", "batch", "holds", "events")


def cells(folder: Path) -> list[tuple[str, ...]]:
    """Return the table's rows as text, the totals last.

    "on time" is the share of ticks within 2 ms of their time; "progress" is what the reward model gave the last frames,
    on average.
    """
    found: list[tuple[str, ...]] = []
    for row in rows(read_episodes(folder)):
        latency = ("-", "-") if row.p50_ms is None else (f"{row.p50_ms:.0f}", f"{row.p99_ms:.0f}")
        share = f"{row.successes}/{row.episodes} {row.successes / row.episodes:.0%}"
        progress = "-" if row.progress is None else f"{row.progress:.2f}"
        batch = "-" if row.batch is None else f"{row.batch:.2f}"
        rate = (f"{row.rate_hz:.2f}", f"{row.within_2ms:.1%}")
        found.append((row.task, share, progress, *rate, *latency, batch, str(row.holds), str(row.events)))
    return found


def print_table(console: Console, folder: Path) -> int:
    """Print the table and return the number of episodes that succeeded."""
    table = Table(*HEADINGS)
    lines = cells(folder)
    for number, line in enumerate(lines):
        table.add_row(*line, style="bold" if number == len(lines) - 1 else None, end_section=number == len(lines) - 2)
    console.print(table)
    episodes = read_episodes(folder)
    for fault, count in reward_faults(episodes).items():
        console.print(
            f"[yellow]reward: {count} episodes without a whole curve: {escape(fault)}[/yellow]", highlight=False
        )
    return sum(episode.success for episode in episodes)
