"""Progress bars that training recipes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress


def progress_bars() -> Progress:
    """Return bars with name, count, time that remains, and a `note` that every task must give."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns)


def counting(bars: Progress, name: str, note: str) -> Callable[[int, int], None]:
    """Add a bar of unknown length, and return what tells it (done, in all)."""
    bar = bars.add_task(name, total=None, note=note)
    return lambda done, total: bars.update(bar, completed=done, total=total)
