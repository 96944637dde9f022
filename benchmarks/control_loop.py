"""Does the control loop keep time while the network and the model are slow? 50 Hz against a policy of 200 ms.

Our robot runtime drives a robot that does nothing through the whole platform. The same robot and policy are then driven
by the loop that stock clients have, which asks for a chunk within the tick that needs it. A call of the network's
library is counted by the thread that makes it: the control thread is to make none.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from websockets.sync.connection import Connection

from benchmarks.support import platforms, results
from benchmarks.support.payloads import INSTRUCTION, picture, state
from benchmarks.support.processes import our_platform
from benchmarks.support.stats import summarize, turns
from clients.contract import RobotInterface
from clients.policy import PolicyClient, fit_images
from robot_client import EpisodeConfig, LinkConfig, PolicyLink, QueueConfig, RobotObservation, run_episode
from robot_client.clock import MonotonicClock
from robot_client.punctuality import prefer_punctuality

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import numpy as np

    from clients.contract import PolicyContract
    from robot_client import EpisodeReport, TickRecord

SLOW = "models.policies.scripted:SlowPolicy"
OURS, BLOCKING = "robot_client, {mode}, {codec}", "loop that asks within the tick, {codec}"
CODECS = ("jpeg", "raw")
ON_TIME_MS = 2.0
_CHUNK = 50


class StillRobot:
    """A robot with one 640x480 camera that takes every command and does nothing."""

    def __init__(self, contract: PolicyContract, seed: int) -> None:
        self.interface = RobotInterface(
            cameras=("front",), state=contract.state, action=contract.action, control_hz=contract.control_hz
        )
        self._observation = RobotObservation(images={"front": picture(480, 640, seed)}, state=state(seed))

    def reset(self, seed: int | None) -> None:
        """Do nothing."""

    def observe(self) -> RobotObservation:
        """Return the same picture every time."""
        seen = self._observation  # copied, as a camera hands over a new frame
        return RobotObservation(images={name: frame.copy() for name, frame in seen.images.items()}, state=seen.state)

    def act(self, action: np.ndarray[Any, Any]) -> None:
        """Take the command."""

    def finished(self) -> bool | None:
        """Go on for ever."""
        return None


@dataclass(kw_only=True)
class Ticks:
    """A subscriber that keeps how late every tick was, in ms, and holds."""

    needs_observations: bool = False
    late_ms: list[float] = field(default_factory=list)
    holds: int = 0
    missed: int = 0
    act_ms: list[float] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)

    def on_episode_start(self, info: Any) -> None:
        """Nothing to prepare."""

    def on_step(self, record: TickRecord, observation: Any) -> None:  # noqa: ARG002  the protocol's signature
        """Note one tick."""
        self.late_ms.append(record.lateness_ms)
        self.holds += record.hold_reason is not None and record.hold_reason != "waiting"
        self.requests.update(request.outcome for request in record.requests)
        self.act_ms += [request.latency_ms for request in record.requests if request.round_trip_ms is not None]

    def on_episode_end(self, report: EpisodeReport) -> None:
        """Note the slots that no tick began in."""
        self.missed = report.missed_ticks


@dataclass(kw_only=True)
class NetworkCalls:
    """Calls of the websocket library by the thread that made them."""

    by_thread: dict[int, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count sends and receives of every connection while the block lasts."""
        send, receive = Connection.send, Connection.recv

        def counting(call: Any) -> Any:
            def counted(*arguments: Any, **options: Any) -> Any:
                thread = threading.get_ident()
                self.by_thread[thread] = self.by_thread.get(thread, 0) + 1
                return call(*arguments, **options)

            return counted

        Connection.send, Connection.recv = counting(send), counting(receive)  # type: ignore[method-assign]
        try:
            yield
        finally:
            Connection.send, Connection.recv = send, receive  # type: ignore[method-assign]

    def of_this_thread(self) -> int:
        """Return the calls that the calling thread made."""
        return self.by_thread.get(threading.get_ident(), 0)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One turn of one loop."""

    ticks: Ticks
    network_calls: int
    other_calls: int


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("control_loop", str(__doc__))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one turn")
    parser.add_argument("--model-ms", type=float, default=200.0)
    parser.add_argument("--hz", type=float, default=50.0)
    parser.add_argument("--mode", choices=("async", "blocking", "ensemble", "weighted"), default="async")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 1, 2.0
    screen = results.console()
    journal = results.Journal.open("control_loop", options)
    results.print_machine(screen, journal.common)
    interface = {"control_hz": options.hz, "chunk_length": _CHUNK, "execute": _CHUNK // 2}
    config = {"base_ms": options.model_ms, "per_item_ms": 0.0, "interface": interface}
    running = contextlib.ExitStack()
    with screen.status("starting the platform"):
        port = running.enter_context(our_platform([platforms.application("slow", SLOW, config)]))
    with running, results.progress(screen) as bar:
        url = f"ws://127.0.0.1:{port}/policy/slow"
        with PolicyClient(url) as client:
            robot = StillRobot(client.contract, options.seed)
        prefer_punctuality()
        loops = {
            form.format(mode=options.mode, codec=codec): functools.partial(loop, robot, url, codec, options)
            for codec in CODECS
            for form, loop in ((OURS, _ours), (BLOCKING, _asking_within_the_tick))
        }
        outcomes: dict[str, list[Outcome]] = {name: [] for name in loops}
        task = bar.add_task("control loop", total=len(loops) * options.rounds)
        for name in turns(list(loops), options.rounds, random.Random(options.seed)):
            outcomes[name].append(loops[name]())
            bar.advance(task)
    rows = [_row(name, found, journal, options) for name, found in outcomes.items()]
    columns = (
        "loop",
        "within 2 ms",
        "p50 late ms",
        "p99",
        "p99.9",
        "worst",
        "missed",
        "ticks/s",
        "holds",
        "act ms",
        "calls",
    )
    title = f"{options.hz:g} Hz, policy of {options.model_ms:g} ms, {options.rounds} x {options.seconds:g} s"
    title += "; calls: of the network, by the loop's own thread"
    results.print_table(screen, title, columns, rows)
    return 0


def _ours(robot: StillRobot, url: str, codec: str, options: argparse.Namespace) -> Outcome:
    ticks, calls = Ticks(), NetworkCalls()
    queue = QueueConfig(mode=options.mode)
    config = EpisodeConfig(instruction=INSTRUCTION, max_seconds=options.seconds, queue=queue)
    with calls.counted(), PolicyLink(LinkConfig(server=url, codec=codec), robot.interface) as link:
        run_episode(robot, link, config, [ticks])
    mine = calls.of_this_thread()
    return Outcome(ticks=ticks, network_calls=mine, other_calls=sum(calls.by_thread.values()) - mine)


def _asking_within_the_tick(robot: StillRobot, url: str, codec: str, options: argparse.Namespace) -> Outcome:
    """The loop of stock clients: play a chunk, and ask for the next in the tick that finds none left."""
    ticks, calls, clock = Ticks(), NetworkCalls(), MonotonicClock()
    period = 1 / options.hz
    with calls.counted(), PolicyClient(url) as client:
        calls.by_thread.clear()  # connecting is not part of the loop
        rows: list[np.ndarray[Any, Any]] = []
        start = clock.now() + period
        tick = 0
        while tick * period < options.seconds:
            due = start + tick * period
            clock.sleep_until(due)
            late_slots = int((clock.now() - due) / period + 0.5)
            if late_slots:  # the rule of our own loop, so that both are counted alike
                ticks.missed += late_slots
                tick += late_slots
                continue
            ticks.late_ms.append((clock.now() - due) * 1e3)
            if not rows:
                seen = robot.observe()
                asked = clock.now()
                images = fit_images(client.contract, seen.images, codec=codec)
                reply = client.act(images=images, state=seen.state, instruction=INSTRUCTION, session="s")
                rows = list(reply.actions[: client.contract.execute])
                ticks.act_ms.append((clock.now() - asked) * 1e3)
                ticks.requests["played"] += 1
            robot.act(rows.pop(0))
            tick += 1
    mine = calls.of_this_thread()
    return Outcome(ticks=ticks, network_calls=mine, other_calls=sum(calls.by_thread.values()) - mine)


def _row(name: str, found: list[Outcome], journal: results.Journal, options: argparse.Namespace) -> tuple[str, ...]:
    late = [value for outcome in found for value in outcome.ticks.late_ms]
    missed = sum(outcome.ticks.missed for outcome in found)
    holds = sum(outcome.ticks.holds for outcome in found)
    calls = sum(outcome.network_calls for outcome in found)
    summary = summarize(late)
    act = summarize([value for outcome in found for value in outcome.ticks.act_ms])
    rate = len(late) / (options.seconds * len(found))
    requests = sum((outcome.ticks.requests for outcome in found), Counter[str]())
    # A slot that no tick began in was not on time either.
    on_time = sum(value <= ON_TIME_MS for value in late) / (len(late) + missed)
    journal.write(
        {
            "loop": name,
            "ticks": len(late),
            "missed_ticks": missed,
            "within_2ms": round(on_time, 5),
            "late_ms": summary.to_map(),
            "act_ms": act.to_map(),
            "ticks_per_s": round(rate, 3),
            "requests": dict(requests),
            "holds_after_the_first_chunk": holds,
            "network_calls_in_control_thread": calls,
            "network_calls_in_other_threads": sum(outcome.other_calls for outcome in found),
        }
    )
    times = (f"{value:.3f}" for value in (summary.p50, summary.p99, summary.p999, summary.worst))
    return (name, f"{on_time:.2%}", *times, str(missed), f"{rate:.2f}", str(holds), f"{act.p50:.0f}", str(calls))


if __name__ == "__main__":
    sys.exit(main())
