"""The control loop: one command a tick, on a fixed schedule, whatever the network does.

The schedule is absolute: tick n is due n periods after the first, so that errors do not add up. A tick that wakes more
than half a period late is left out together with its row, so that no two commands come closer than half a period.
Within a tick the command goes first and the robot is looked at afterwards; row 0 of the chunk for that look is due at
the next tick.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Deque, List, Optional, Sequence, Tuple

import numpy as np

from clients.errors import RoboserveError
from robot_client.action_queue import ActionQueue, Nothing, QueueConfig, Row
from robot_client.clock import Clock, MonotonicClock
from robot_client.hold import hold_action
from robot_client.records import EpisodeInfo, EpisodeReport, Event, RequestRecord, TickRecord
from robot_client.safety import Safety, SafetyConfig
from robot_client.tally import Tally

if TYPE_CHECKING:
    from clients.contract import PolicyContract
    from robot_client.link import PolicyLink
    from robot_client.planner import PlannedPath, PlannerConfig, Replanning
    from robot_client.robot import Robot, RobotObservation
    from robot_client.subscribers import Subscriber

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class EpisodeConfig:
    """How an episode is run.

    Attributes:
        instruction: what the policy is told.
        max_seconds: the episode ends here at the latest; there is no default on purpose.
        task: name for tables and folders.
        seed: of the robot's scene and of the requests.
        queue: how chunks are used.
        safety: limits on commands.
        on_reconnect: "resume" holds, connects anew and goes on; "stop" ends the episode when its rows are played out.
        ready_timeout_s: how long to wait for the policy before the first tick.
        planner: whom to ask for a path on the first frame, which is then drawn on every image that the policy sees,
            until `Episode.replan` or the planner's own `every_s` brings another.
    """

    instruction: str
    max_seconds: float
    task: str = "task"
    seed: Optional[int] = None
    queue: QueueConfig = field(default_factory=QueueConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    on_reconnect: str = "resume"
    ready_timeout_s: float = 30.0
    planner: Optional[PlannerConfig] = None

    def __post_init__(self) -> None:
        if not self.max_seconds > 0:
            raise RoboserveError("invalid_request", f"max_seconds: {self.max_seconds}, must be above 0")
        if self.on_reconnect not in ("resume", "stop"):
            raise RoboserveError("invalid_request", f"on_reconnect: {self.on_reconnect!r}; allowed are resume, stop")


class Episode:
    """One episode, to be run once by the thread that owns the robot; other threads may `interrupt` and `replan`.

    Args:
        link: started, or to be started by its own `with`.
        clock: for tests.
    """

    def __init__(
        self,
        robot: Robot,
        link: PolicyLink,
        config: EpisodeConfig,
        subscribers: Sequence[Subscriber] = (),
        *,
        clock: Optional[Clock] = None,
    ) -> None:
        self._robot = robot
        self._link = link
        self._config = config
        self._subscribers: Tuple[Subscriber, ...] = tuple(subscribers)
        self._failed: List[Subscriber] = []
        self._clock: Clock = MonotonicClock() if clock is None else clock
        self._interrupted = threading.Event()
        self._tally = Tally()
        self._last_action: Optional[Array] = None
        self._observation: Optional[RobotObservation] = None
        self._observed_at = 0.0
        self._own_events: Deque[Event] = deque()  # other threads may add to it
        self._start = 0.0
        self._missed = 0
        self._replanning: Optional[Replanning] = None

    def interrupt(self) -> None:
        """End the episode within one tick; safe from any thread."""
        self._interrupted.set()

    def replan(self) -> None:
        """Ask for a new path through what the robot sees next; the old one is followed until it comes.

        Safe from any thread. What came of it is an event of the report, "path" or "path_failed".

        Raises:
            RoboserveError: `invalid_request` for an episode that does not run, or without a planner.
        """
        if self._replanning is None:
            raise RoboserveError("invalid_request", "replan: no episode with a planner runs")
        self._replanning.ask()

    def run(self) -> EpisodeReport:
        """Run the episode to its end.

        Returns:
            the report, also when the server was lost or refused.

        Raises:
            RoboserveError: before the first tick, when the policy cannot be reached or does not fit the robot, or when
                the planner has no path.
            Exception: what the robot's own methods raise, after subscribers have been told of the end.
        """
        self._link.wait_ready(self._config.ready_timeout_s)
        self._robot.reset(self._config.seed)
        contract = self._link.wait_ready(self._config.ready_timeout_s)
        if self._config.queue.mode == "rtc" and "rtc" not in contract.supports:
            raise RoboserveError("contract_mismatch", f"mode rtc: policy {contract.model!r} does not support it")
        queue = ActionQueue(
            self._config.queue,
            execute=contract.execute,
            rate_hz=self._rate_hz,
            max_age_s=self._link.config.deadline_s + contract.chunk_length * self._period,
        )
        safety = Safety(self._config.safety, self._robot.interface.action, contract.action)
        path = self._plan(contract, queue)
        self._link.begin(queue, self._config.instruction, seed=self._config.seed, path=path)
        try:
            info = self._info(self._link.wait_ready(self._config.ready_timeout_s), path)
            for subscriber in self._subscribers:
                subscriber.on_episode_start(info)
            return self._play(info, queue, safety)
        finally:
            self._link.end()

    def _play(self, info: EpisodeInfo, queue: ActionQueue, safety: Safety) -> EpisodeReport:
        ended, success = "robot_failed", None
        self._start = self._clock.now()
        try:
            self._observe(anchor=0)
            self._start = self._clock.now() + self._period
            ended, success = self._ticks(queue, safety)
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            seconds = self._clock.now() - self._start
            self._stop(safety)
            self._link.end()
            self._tally.rest(*self._drain())
            report = self._tally.report(info, ended=ended, success=success, seconds=seconds, missed_ticks=self._missed)
            self._finish(report)
        return report

    def _finish(self, report: EpisodeReport) -> None:
        with contextlib.ExitStack() as endings:
            # Each is told, and what one of them raises is raised when all have been.
            for subscriber in reversed(self._subscribers):
                endings.callback(self._end_one, subscriber, report)

    def _end_one(self, subscriber: Subscriber, report: EpisodeReport) -> None:
        # What has failed already is in the report; it is told of the end so that it can close its files.
        with contextlib.suppress(Exception) if subscriber in self._failed else contextlib.nullcontext():
            subscriber.on_episode_end(report)

    @property
    def _rate_hz(self) -> float:
        return self._robot.interface.control_hz

    @property
    def _period(self) -> float:
        return 1.0 / self._rate_hz

    def _plan(self, contract: PolicyContract, queue: ActionQueue) -> Optional[PlannedPath]:
        config = self._config
        if config.planner is None:
            return None
        from robot_client.planner import Replanning, plan_path

        ask = partial(plan_path, config.planner, contract=contract, instruction=config.instruction)
        # Before the first tick this thread may wait, as it does for the policy: the robot stands as its reset left it.
        path = ask(self._robot.observe())
        self._replanning = Replanning(ask, follow=partial(self._link.follow, queue), note=self._note)
        return path

    def _replan_in_time(self, tick: int) -> None:
        every_s = None if self._config.planner is None else self._config.planner.every_s
        if every_s is not None and tick and tick % max(1, round(every_s * self._rate_hz)) == 0:
            self.replan()

    def _info(self, contract: PolicyContract, path: Optional[PlannedPath]) -> EpisodeInfo:
        config = self._config
        return EpisodeInfo(
            robot=type(self._robot).__name__,
            task=config.task,
            instruction=config.instruction,
            mode=config.queue.mode,
            rate_hz=self._rate_hz,
            seed=config.seed,
            max_seconds=config.max_seconds,
            started_unix=time.time(),
            interface=self._robot.interface,
            contract=contract,
            path=path,
        )

    def _ticks(self, queue: ActionQueue, safety: Safety) -> Tuple[str, Optional[bool]]:
        tick, last = 0, math.ceil(self._config.max_seconds * self._rate_hz - 1e-6)
        while True:
            scheduled = self._start + tick * self._period
            self._clock.sleep_until(scheduled)
            now = self._clock.now()
            slots_late = int((now - scheduled) / self._period + 0.5)
            if slots_late:
                self._missed += slots_late
                tick += slots_late
                continue
            if self._interrupted.is_set():
                return "interrupted", None
            if tick >= last:
                return "max_seconds", self._robot.finished()
            self._replan_in_time(tick)
            record = self._command(queue, safety, tick, now)
            success = self._robot.finished()
            before = self._observation
            if success is None:
                self._observe(anchor=tick + 1)
            self._tell(record, before)
            if success is not None:
                return "finished", success
            ending = self._ending(record)
            if ending is not None:
                return ending, None
            tick += 1

    def _command(self, queue: ActionQueue, safety: Safety, tick: int, now: float) -> TickRecord:
        found = queue.pop(tick, now)
        reason = self._why(found) if isinstance(found, Nothing) else None
        clamped: Tuple[str, ...] = ()
        action: Optional[Array] = None
        if isinstance(found, Row):
            checked = safety.check(found.action, self._last_action)
            action, clamped = checked.action, checked.clamped
            if checked.refusal is not None:
                reason = "unsafe"
                self._note("unsafe", checked.refusal)
        if reason is not None:
            action = self._held(safety)
        if action is not None:
            self._robot.act(action)
            self._last_action = action
        record = TickRecord(
            tick,
            tick * self._period,
            now - self._start,
            action,
            "chunk" if reason is None else "hold",
            hold_reason=reason,
        )
        if isinstance(found, Row):
            record = replace(
                record,
                chunk_id=found.chunk_id,
                row=found.row,
                age_ms=found.age_s * 1e3,
                depth=found.depth,
                clamped=clamped,
            )
        return record

    def _held(self, safety: Safety) -> Optional[Array]:
        held = hold_action(self._robot.interface.action, self._last_action)
        if held is None:
            return None
        checked = safety.check(held, self._last_action)
        if checked.refusal is not None:
            self._note("unsafe", f"hold: {checked.refusal}")
        return checked.action

    def _why(self, found: Nothing) -> str:
        if found.reason == "stale":
            return "stale"
        return {"lost": "lost", "refused": "refused"}.get(self._link.state, found.reason)

    def _ending(self, record: TickRecord) -> Optional[str]:
        if record.hold_reason is None:
            return None
        if self._link.state == "refused":
            return "refused"
        lost = any(event.kind == "lost" for event in record.events) or self._link.state == "lost"
        return "server_lost" if lost and self._config.on_reconnect == "stop" else None

    def _observe(self, *, anchor: int) -> None:
        wanted = self._link.wants(anchor)
        replanning = self._replanning
        planned = replanning is not None and replanning.wants
        if not wanted and not planned and not any(subscriber.needs_observations for subscriber in self._subscribers):
            self._observation = None
            return
        self._observed_at = self._clock.now()
        self._observation = self._robot.observe()
        if replanning is not None and planned:
            replanning.offer(self._observation)
        if wanted:
            self._link.offer(self._observation, anchor=anchor, observed_at=self._observed_at)

    def _tell(self, record: TickRecord, before: Optional[RobotObservation]) -> None:
        requests, events = self._drain()
        if requests or events:
            record = replace(record, requests=requests, events=events)
        self._tally.tick(record)
        for subscriber in self._subscribers:
            if subscriber not in self._failed:
                self._tell_one(subscriber, record, before)

    def _tell_one(self, subscriber: Subscriber, record: TickRecord, before: Optional[RobotObservation]) -> None:
        try:
            subscriber.on_step(record, before)
        except Exception as error:  # noqa: BLE001 - a robot does not stop because somebody could not write it down
            self._failed.append(subscriber)
            self._note("subscriber_failed", f"{type(subscriber).__name__}: {type(error).__name__}: {error}")

    def _drain(self) -> Tuple[Tuple[RequestRecord, ...], Tuple[Event, ...]]:
        requests, events = self._link.drain()
        own = [self._own_events.popleft() for _ in range(len(self._own_events))]
        return (
            tuple(replace(request, time_s=request.time_s - self._start) for request in requests),
            tuple(replace(event, time_s=event.time_s - self._start) for event in [*events, *own]),
        )

    def _note(self, kind: str, message: str) -> None:
        self._own_events.append(Event(kind, self._clock.now(), message))

    def _stop(self, safety: Safety) -> None:
        # A robot that was told a speed keeps it until it is told another.
        if self._last_action is None or "velocity" not in self._robot.interface.action.kinds:
            return
        held = self._held(safety)
        if held is not None:
            self._robot.act(held)


def run_episode(
    robot: Robot, link: PolicyLink, config: EpisodeConfig, subscribers: Sequence[Subscriber] = ()
) -> EpisodeReport:
    """Run one episode in this thread and return its report; see `Episode` for interrupting it.

    Raises:
        RoboserveError: as `Episode.run`.
    """
    return Episode(robot, link, config, subscribers).run()
