"""Many robots and one policy that costs 30 + 2n ms for a batch of n: ours against a serial openpi-style server.

Robots ask in a closed loop, on a cadence (a chunk used up every 200 or 400 ms, random phases, an answer is of use until
the next is due), at random (Poisson), and more often than any server could answer. Both servers see the same schedules
and take turns. What the policy ran, and when, is what the policy itself noted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.support import platforms, results
from benchmarks.support.payloads import Payload, payload
from benchmarks.support.policies import Forward, read_audit
from benchmarks.support.processes import baseline, our_platform
from benchmarks.support.robots import UNSENT, Asked, NativeRobotLine, OpenpiRobotLine, Pattern, Run, run_fleet
from benchmarks.support.stats import Summary, summarize, turns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from rich.console import Console

POLICY = "benchmarks.support.policies:AuditedSlowPolicy"
OURS, SERIAL = "roboserve", "serial, openpi style"
PATTERNS = {
    "closed": Pattern(name="closed loop"),
    "cadence400": Pattern(name="cadence 400 ms", period_s=0.4),
    "cadence200": Pattern(name="cadence 200 ms", period_s=0.2),
    "poisson": Pattern(name="Poisson, mean 400 ms", period_s=0.4, poisson=True),
    "overload": Pattern(name="cadence 100 ms", period_s=0.1),
}
_SETTLE_S = 0.6


@dataclass(frozen=True, kw_only=True)
class Server:
    """One contender: how its robots connect, and where its policy keeps its notes."""

    name: str
    opener: Callable[[str], Any]
    audit: Path


@dataclass(kw_only=True)
class Tally:
    """What one fleet size and pattern came to on one server, over all its turns."""

    deadline_s: float | None
    seconds: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)

    def add(self, run: Run, forwards: list[Forward]) -> None:
        """Add one turn."""
        self.seconds += run.stop - run.start
        self.asked += run.asked
        self.forwards += [forward for forward in forwards if run.start <= forward.started < run.stop]
        self.client_cpu.append(run.client_cpu)

    @property
    def answers(self) -> list[Asked]:
        """Requests that were answered with actions."""
        return [entry for entry in self.asked if entry.outcome == "ok"]

    @property
    def in_time(self) -> int:
        """Answers that were still of use."""
        limit = float("inf") if self.deadline_s is None else self.deadline_s * 1e3
        return sum(entry.latency_ms <= limit for entry in self.answers)

    @property
    def latency(self) -> Summary | None:
        """Latency of the answers, in ms; None where there were none."""
        return summarize([entry.latency_ms for entry in self.answers]) if self.answers else None

    @property
    def miss_rate(self) -> float:
        """Share of requests, 0 to 1, without an answer in time."""
        return 1 - self.in_time / len(self.asked)

    @property
    def late_ms(self) -> list[float]:
        """For every item whose forward began after its robot's deadline: by how much."""
        return [late for forward in self.forwards for late in forward.late_ms]

    def to_map(self) -> dict[str, Any]:
        """Return everything for the results file."""
        batches = Counter(len(forward.deadlines) for forward in self.forwards)
        outcomes = Counter(entry.outcome for entry in self.asked)
        busy = sum(forward.ended - forward.started for forward in self.forwards)
        latency = self.latency
        return {
            "seconds": round(self.seconds, 3),
            "requests": len(self.asked),
            "outcomes": dict(outcomes),
            "act_per_s": round(len(self.answers) / self.seconds, 2),
            "in_time_per_s": round(self.in_time / self.seconds, 2),
            "deadline_miss_rate": None if self.deadline_s is None else round(self.miss_rate, 4),
            "latency_ms": None if latency is None else latency.to_map(),
            "batches": {str(size): batches[size] for size in sorted(batches)},
            "mean_batch": round(sum(batches.elements()) / max(1, batches.total()), 2),
            "model_busy": round(busy / self.seconds, 3),
            "items_run_past_deadline": len(self.late_ms),
            "longest_past_deadline_ms": round(max(self.late_ms, default=0.0), 3),
            "client_cpu": round(sum(self.client_cpu) / len(self.client_cpu), 3),
        }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _options(argv)
    screen = results.console()
    journal = results.Journal.open("fleet", options)
    results.print_machine(screen, journal.common)
    load = payload(("front",), options.codec, options.seed)
    running = contextlib.ExitStack()
    with screen.status("starting servers"):
        servers = running.enter_context(_servers(load, options))
    with running, results.progress(screen) as bar:
        task = bar.add_task("fleet", total=len(options.patterns) * len(options.robots) * options.rounds * len(servers))
        for pattern in (PATTERNS[name] for name in options.patterns):
            rows = []
            for robots in options.robots:
                bar.update(task, description=f"{pattern.name}, {robots} robots")
                tallies = _measure(servers, robots, pattern, options, lambda: bar.advance(task))
                for name, tally in tallies.items():
                    row = {"pattern": pattern.name, "robots": robots, "server": name, "payload": load.name}
                    journal.write({**row, **tally.to_map()})
                rows.append(_row(robots, tallies))
            _print(screen, pattern, load, rows, options)
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = results.parser("fleet", str(__doc__))
    parser.add_argument("--robots", default="1,2,4,8,16,32", help="comma-separated sizes of the fleet")
    parser.add_argument("--patterns", default=",".join(PATTERNS), help=f"comma-separated, of {', '.join(PATTERNS)}")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn, after a warm-up of half a second")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server")
    parser.add_argument("--codec", choices=("raw", "jpeg"), default="raw", help="of the one 224x224 image")
    parser.add_argument("--base-ms", type=float, default=30.0)
    parser.add_argument("--per-item-ms", type=float, default=2.0)
    parser.add_argument("--max-batch", type=int, default=16, help="of our server; the default of a configuration")
    parser.add_argument("--max-wait-ms", type=float, help="gathering wait of our server; it adapts when left out")
    options = parser.parse_args(argv)
    if options.quick:
        options.robots, options.seconds, options.rounds = "1,4", 0.8, 1
        options.patterns = "closed,cadence200"
    wrong = set(options.patterns.split(",")) - set(PATTERNS)
    if wrong:
        parser.error(f"--patterns: {', '.join(sorted(wrong))}, must be of {', '.join(PATTERNS)}")
    options.robots = [int(size) for size in options.robots.split(",")]
    options.patterns = options.patterns.split(",")
    return options


@contextlib.contextmanager
def _servers(load: Payload, options: argparse.Namespace) -> Iterator[list[Server]]:
    with tempfile.TemporaryDirectory(prefix="roboserve-bench-") as folder, contextlib.ExitStack() as stack:
        cost = {"base_ms": options.base_ms, "per_item_ms": options.per_item_ms}
        ours, serial = (Path(folder) / f"{name}.audit" for name in ("ours", "serial"))
        config = {**cost, "audit": str(ours)}
        batching = {"max_batch": options.max_batch, "max_wait_ms": options.max_wait_ms}
        served = platforms.application("slow", POLICY, config, batching)
        port = stack.enter_context(our_platform([served]))
        serial_port = stack.enter_context(baseline("openpi", POLICY, {**cost, "audit": str(serial)}))
        url, serial_url = f"ws://127.0.0.1:{port}/policy/slow", f"ws://127.0.0.1:{serial_port}"
        yield [
            Server(name=OURS, opener=lambda name: NativeRobotLine.open(url, load, name), audit=ours),
            Server(name=SERIAL, opener=lambda name: OpenpiRobotLine.open(serial_url, load, name), audit=serial),
        ]


def _measure(
    servers: list[Server], robots: int, pattern: Pattern, options: argparse.Namespace, advance: Callable[[], None]
) -> dict[str, Tally]:
    tallies = {server.name: Tally(deadline_s=pattern.period_s) for server in servers}
    turn = Counter[str]()
    for server in turns(servers, options.rounds, random.Random(f"{options.seed}:{robots}:{pattern.name}")):
        turn[server.name] += 1
        seed = options.seed * 1000 + turn[server.name]  # the nth turn of each server has the same schedule
        fleet = run_fleet(server.opener, robots, pattern, seconds=options.seconds, warm_up=0.5, seed=seed)
        run = asyncio.run(fleet)
        time.sleep(_SETTLE_S)  # the last forwards are noted, and the next fleet is not taken for this one
        tallies[server.name].add(run, read_audit(server.audit))
        advance()
    return tallies


def _row(robots: int, tallies: dict[str, Tally]) -> tuple[str, ...]:
    ours, serial = tallies[OURS], tallies[SERIAL]
    gain = ours.in_time / serial.in_time if serial.in_time else float("inf")
    cells = [str(robots), f"{gain:.1f}x" if serial.in_time else "all : none"]
    for tally in (ours, serial):
        latency = tally.latency
        cells.append(f"{tally.in_time / tally.seconds:.0f}")
        cells.append("-" if latency is None else f"{latency.p50:.0f} / {latency.p99:.0f}")
        cells.append("-" if tally.deadline_s is None else f"{tally.miss_rate:.1%}")
        cells.append("-" if tally.deadline_s is None else _past(tally))
    refused = Counter(entry.outcome for entry in ours.asked if entry.outcome not in ("ok", UNSENT))
    cells.append(" ".join(f"{code} {count}" for code, count in refused.most_common()) or "0")
    cells.append(f"{ours.to_map()['mean_batch']:.1f}")
    return tuple(cells)


def _past(tally: Tally) -> str:
    return f"{len(tally.late_ms)} ({max(tally.late_ms):.1f} ms)" if tally.late_ms else "0"


def _print(
    screen: Console, pattern: Pattern, load: Payload, rows: list[tuple[str, ...]], options: argparse.Namespace
) -> None:
    per_server = ("act/s in time", "p50 / p99 ms", "missed", "run past deadline")
    columns = ("robots", "gain", *per_server, *(f"serial {name}" for name in per_server), "refused", "mean batch")
    cost = f"{options.base_ms:g} + {options.per_item_ms:g}n ms"
    results.print_table(screen, f"{pattern.name}; model {cost}; {load.name}", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
