"""A line on the terminal while an episode runs, and a table when all are done."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Deque, List, Optional, Sequence, TextIO, Tuple

if TYPE_CHECKING:
    from robot_client.records import EpisodeInfo, EpisodeReport, TickRecord
    from robot_client.robot import RobotObservation

_EVERY_S = 0.25
_COLUMNS = ("task", "seed", "success", "ended", "rate", "on time", "latency p50/p99", "batch", "held")


class ConsoleView:
    """Subscriber that shows the running episode: a line that is rewritten on a terminal, one line an episode elsewhere.

    It draws in its own thread, four times a second, and by hand: a table library's redraw would keep the interpreter
    for longer than a tick can spare.
    """

    needs_observations = False

    def __init__(self, stream: Optional[TextIO] = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._info: Optional[EpisodeInfo] = None
        self._record: Optional[TickRecord] = None
        self._held = 0
        self._latencies: Deque[float] = deque(maxlen=20)
        self._done = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def on_episode_start(self, info: EpisodeInfo) -> None:
        """Begin to draw."""
        self._info, self._record, self._held = info, None, 0
        self._latencies.clear()
        self._done.clear()
        if self._live:
            self._thread = threading.Thread(target=self._draw, name="roboserve-console", daemon=True)
            self._thread.start()

    def on_step(self, record: TickRecord, observation: Optional[RobotObservation]) -> None:
        """Remember the tick, and print events as they come."""
        del observation
        self._record = record
        self._held += record.source == "hold"
        self._latencies.extend(item.latency_ms for item in record.requests if item.round_trip_ms is not None)
        for event in record.events:
            self._print(f"  {event.time_s:7.2f} s  {event.kind}: {event.message}")

    def on_episode_end(self, report: EpisodeReport) -> None:
        """Replace the line with the episode's result."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._print("  ".join(part for part in episode_row(report) if part))

    def _draw(self) -> None:
        while not self._done.wait(_EVERY_S):
            record, info = self._record, self._info
            if record is None or info is None:
                continue
            recent = sorted(self._latencies)
            latency = f"{recent[len(recent) // 2]:4.0f} ms" if recent else "   -   "
            state = record.hold_reason or f"chunk {record.chunk_id} row {record.row}"
            text = f"{info.task}  {record.actual_s:6.1f} s  latency {latency}  held {self._held:4d}  {state}"
            self._stream.write(f"\r{text[:118]:<118}")
            self._stream.flush()

    def _print(self, text: str) -> None:
        self._stream.write(f"\r{text:<118}\n" if self._live else f"{text}\n")
        self._stream.flush()


def episode_row(report: EpisodeReport) -> Tuple[str, ...]:
    """Return one episode as the cells of a table."""
    latency = report.latency_ms
    batches = report.batch_sizes
    answers = sum(batches.values())
    mean = sum(size * count for size, count in batches.items()) / answers if answers else 0.0
    return (
        report.info.task,
        "" if report.info.seed is None else str(report.info.seed),
        {True: "yes", False: "no", None: "-"}[report.success],
        report.ended,
        f"{report.rate_hz:.1f} Hz",
        f"{report.within_2ms:.1%}",
        f"{latency['p50']:.0f}/{latency['p99']:.0f} ms" if latency else "-",
        f"{mean:.1f}" if answers else "-",
        ", ".join(f"{count} {reason}" for reason, count in sorted(report.holds.items())) or "none",
    )


def print_table(reports: Sequence[EpisodeReport], stream: Optional[TextIO] = None) -> None:
    """Print one line an episode: with rich on a terminal where it is installed, in plain columns elsewhere."""
    out = sys.stdout if stream is None else stream
    rows = [episode_row(report) for report in reports]
    # Off a terminal rich would cut the cells to 80 columns.
    if not out.isatty() or importlib.util.find_spec("rich") is None:
        out.write(_plain_table([_COLUMNS, *rows]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console(file=out).print(table)


def _plain_table(rows: List[Tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"
