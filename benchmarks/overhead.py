"""What a server adds to the policy: one robot, a policy that answers at once, ours and bare servers in one run.

The policy is light, so our server runs it on its event loop; one contender has it run as a model is, on a thread.

All servers run during the whole measurement and take turns in a new order each round, so that whatever else the machine
does hits all alike. A time is from before encoding the observation to after decoding the reply.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.support import lines, platforms, results
from benchmarks.support.payloads import Payload, payload
from benchmarks.support.processes import baseline, our_platform
from benchmarks.support.stats import summarize, turns
from clients.images import decode_image
from models.policies.contract import Observation
from models.policies.scripted import Interface, ZeroPolicy

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from rich.console import Console

ZERO = "models.policies.scripted:ZeroPolicy"
BARE, REFERENCE = "bare forward, no server", "bare websockets server, openpi style"
THREAD = "roboserve, websocket, forward in a thread"
CAMERAS = {1: ("front",), 2: ("front", "wrist")}
THREADED = "-in-a-thread"
STYLES = ("app", "openpi", "asgi")
VARIANTS = {"raw": (1, "raw"), "jpeg": (1, "jpeg"), "raw2": (2, "raw"), "jpeg2": (2, "jpeg")}
PARTS = ("decode", "queue", "batch_wait", "forward", "encode", "total")


@dataclass(kw_only=True)
class Contender:
    """One way to the policy, and what was measured of it."""

    name: str
    line: lines.Line
    milliseconds: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def measure(self, requests: int, warm_up: int) -> None:
        """Ask in a closed loop."""
        for _ in range(warm_up):
            self.line.ask()
        cpu = time.process_time()
        for _ in range(requests):
            started = time.perf_counter()
            reply = self.line.ask()
            self.milliseconds.append((time.perf_counter() - started) * 1e3)
            for part, value in reply.get("timings", {}).items():
                self.parts.setdefault(part, []).append(value)
        self.cpu_s += time.process_time() - cpu


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the servers of one number of cameras listen; the routes are the policy's on the platform."""

    platform: int
    app: int
    openpi: int
    asgi: int
    route: str
    thread_route: str


def contenders(load: Payload, ports: Ports, cameras: int) -> list[Contender]:
    """Return every contender for one payload, connected."""
    interface = Interface(cameras=CAMERAS[cameras])
    images = {name: decode_image(image, field=name) for name, image in load.images.items()}
    observation = Observation(images=images, state=load.state, instruction=load.instruction)
    base = f"ws://127.0.0.1:{ports.platform}{ports.route}"
    native = {"type": "act", "request_id": "0", "observation": load.native()}
    made: list[tuple[str, Callable[[], lines.Line]]] = [
        (BARE, lambda: lines.BareLine(ZeroPolicy(ZeroPolicy.Config(interface=interface)), observation)),
        (REFERENCE, lambda: lines.OpenpiLine(f"ws://127.0.0.1:{ports.openpi}", load)),
        ("bare uvicorn, HTTP POST", lambda: lines.HttpLine(ports.asgi, "/", load.openpi())),
        ("our app on bare uvicorn, websocket", lambda: lines.NativeLine(f"ws://127.0.0.1:{ports.app}/", load)),
        ("roboserve, websocket", lambda: lines.NativeLine(base, load)),
        (THREAD, lambda: lines.NativeLine(f"ws://127.0.0.1:{ports.platform}{ports.thread_route}", load)),
        ("roboserve, websocket, our PolicyClient", lambda: lines.ClientLine(base, load)),
        ("roboserve, openpi dialect", lambda: lines.OpenpiLine(base, load)),
        ("roboserve, HTTP POST", lambda: lines.HttpLine(ports.platform, f"{ports.route}/act", native)),
    ]
    return [Contender(name=name, line=make()) for name, make in made]


@contextlib.contextmanager
def servers(cameras: Sequence[int]) -> Any:
    """Run all servers for these numbers of cameras; yields the ports by number of cameras."""
    configs = {number: {"interface": {"cameras": list(CAMERAS[number])}} for number in cameras}
    with contextlib.ExitStack() as stack:
        applications = [
            platforms.application(f"zero{number}{suffix}", ZERO, {**configs[number], "light": not suffix})
            for number in cameras
            for suffix in ("", THREADED)
        ]
        platform = stack.enter_context(our_platform(applications))
        yield {
            number: Ports(
                platform=platform,
                route=f"/policy/zero{number}",
                thread_route=f"/policy/zero{number}{THREADED}",
                **{
                    style: stack.enter_context(baseline(style, ZERO, configs[number]))
                    for style in ("app", "openpi", "asgi")
                },
            )
            for number in cameras
        }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("overhead", str(__doc__))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=150, help="per contender and round")
    parser.add_argument("--variants", default="raw,jpeg,raw2", help=f"comma-separated, of {', '.join(VARIANTS)}")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.requests = 2, 20
    chosen = {name: VARIANTS[name] for name in options.variants.split(",") if name in VARIANTS}
    if not chosen or len(chosen) != len(options.variants.split(",")):
        parser.error(f"--variants: {options.variants!r}, must be of {', '.join(VARIANTS)}")
    screen = results.console()
    journal = results.Journal.open("overhead", options)
    results.print_machine(screen, journal.common)
    with screen.status("starting servers"):
        running = contextlib.ExitStack()
        ports = running.enter_context(servers(sorted({cameras for cameras, _ in chosen.values()})))
    with running:
        for cameras, codec in chosen.values():
            load = payload(CAMERAS[cameras], codec, options.seed)
            found = contenders(load, ports[cameras], cameras)
            _take_turns(screen, load, found, options)
            _report(screen, journal, load, found)
    return 0


def _take_turns(screen: Console, load: Payload, found: list[Contender], options: argparse.Namespace) -> None:
    with results.progress(screen) as bar:
        task = bar.add_task(load.name, total=options.rounds * len(found))
        for contender in turns(found, options.rounds, random.Random(options.seed)):
            contender.measure(options.requests, warm_up=max(3, options.requests // 15))
            bar.advance(task)
    for contender in found:
        contender.line.close()


def _report(screen: Console, journal: results.Journal, load: Payload, found: list[Contender]) -> None:
    summaries = {contender.name: summarize(contender.milliseconds) for contender in found}
    forward, reference = summaries[BARE].p50, summaries[REFERENCE].p50
    rows = []
    for contender in found:
        summary = summaries[contender.name]
        cpu = contender.cpu_s / len(contender.milliseconds) * 1e3
        parts = {part: round(summarize(values).p50, 4) for part, values in contender.parts.items() if values}
        journal.write(
            {
                "contender": contender.name,
                "payload": load.name,
                "payload_bytes": load.size,
                "round_trip_ms": summary.to_map(),
                "overhead_p50_ms": round(summary.p50 - forward, 4),
                "ratio_to_reference": round(summary.p50 / reference, 3),
                "client_cpu_ms": round(cpu, 4),
                "server_p50_ms": parts,
            }
        )
        times = (summary.p50, summary.p90, summary.p99, summary.p999, summary.p50 - forward, cpu)
        own = f"{parts['total']:.3f}" if "total" in parts else ""
        ratio = f"{summary.p50 / reference:.2f}" if contender.name != BARE else ""
        rows.append((contender.name, ratio, *(f"{value:.3f}" for value in times), own))
    columns = (
        "path",
        "ratio",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "overhead p50",
        "client CPU ms",
        "inside our server p50",
    )
    title = f"{load.name} ({load.size / 1e3:.1f} kB), {summaries[BARE].count} requests each; ratio to: {REFERENCE}"
    results.print_table(screen, title, columns, rows)


if __name__ == "__main__":
    sys.exit(main())
