"""Any robot of `robot_client` as an environment: paced, checked and held while the learner thinks.

A robot with a clock is driven by a thread at its control rate: each tick plays the row that was handed over, or, when
none is there, holds (an absolute dimension repeats, a delta or velocity is 0), so that it never goes on moving while
updates run. A simulated robot may be stepped instead: it moves when it is told to, however long that takes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

import gymnasium
import numpy as np

from clients.errors import RoboserveError
from robot_client.clock import MonotonicClock
from robot_client.hold import hold_action
from robot_client.robot import FeelingRobot
from robot_client.robots.registry import make_robot
from robot_client.safety import Safety, SafetyConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from robot_client.robot import Robot, RobotObservation

Pace = Literal["clock", "step"]
_WAIT_S = 30.0


class RobotEnv(gymnasium.Env["NDArray[np.float32]", "NDArray[np.float32]"]):
    """A robot, its state as observation (float32) and its camera as what `render` gives.

    Actions lie in [-1, 1] and stand for the range of each dimension; every command passes the robot's limits and
    `safety`. The environment pays 1 where the robot says that the episode succeeded, which ends it, and 0 else.

    Args:
        robot: a `Robot`, or the name of one as the robot client knows it.
        task: of a robot that has tasks. `instruction`: what is to be done, for a reward model; the robot's own when "".
        told: what the policy is told to do; the instruction when "".
        camera: which one `render` shows; the first by default.
        pace: "clock" or "step", see above. `horizon`: steps of an episode.

    Raises:
        RoboserveError: there is no such robot or camera, or an action dimension has no finite range.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it
    render_mode = "rgb_array"

    def __init__(
        self,
        robot: Robot | str,
        *,
        task: str | None = None,
        instruction: str = "",
        told: str = "",
        camera: str = "",
        pace: Pace = "step",
        horizon: int = 200,
        safety: SafetyConfig | None = None,
    ) -> None:
        self._robot = make_robot(robot, task) if isinstance(robot, str) else robot
        interface = self._robot.interface
        self._low, self._high = (
            np.asarray(bound, np.float32) for bound in (interface.action.low, interface.action.high)
        )
        if not np.isfinite([self._low, self._high]).all():
            raise RoboserveError("invalid_request", f"robot: its actions {interface.action.names} need finite limits")
        self._camera = camera or interface.cameras[0]
        if self._camera not in interface.cameras:
            raise RoboserveError("not_found", f"camera: {camera!r}; the robot has {', '.join(interface.cameras)}")
        self.cameras = tuple(interface.cameras)
        self.instruction = instruction or str(getattr(self._robot, "instruction", ""))
        self.told = told or self.instruction
        size = interface.state.size
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (interface.action.size,), np.float32)
        self._safety = Safety(safety or SafetyConfig(), interface.action)
        self.pace = pace
        self._horizon, self._left, self._begun = horizon, 0, False
        self._feels = self._robot if pace == "step" and isinstance(self._robot, FeelingRobot) else None
        self._seen: RobotObservation | None = None
        self._felt = np.zeros(size, np.float32)
        self._last: NDArray[np.float32] | None = None
        self._driver = _Driver(self._robot, self._hold) if pace == "clock" else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; a simulated robot draws its scene from the seed."""
        super().reset(seed=seed, options=options)
        self._left, self._last = self._horizon, None
        drawn = int(self.np_random.integers(2**31))
        self._on_robot(lambda: self._begin(drawn))
        return self._felt, {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play a row for one tick.

        Raises:
            RoboserveError: `invalid_output` for a command that the safety checks refuse.
        """
        part = (np.clip(np.asarray(action, np.float32), -1.0, 1.0) + 1) / 2
        checked = self._safety.check(self._low + part * (self._high - self._low), self._last)
        if checked.action is None:
            raise RoboserveError("invalid_output", checked.refusal or "action: refused")
        self._last = checked.action
        told = checked.action
        finished = self._on_robot(lambda: self._play(told))
        self._left -= 1
        success = finished is True
        return self._felt, float(success), success, finished is False or self._left <= 0, {"success": success}

    @property
    def seen(self) -> RobotObservation:
        """What the robot saw at the latest step.

        Raises:
            RoboserveError: `invalid_request` before the first reset.
        """
        if self._seen is None:
            if not self._begun:
                raise RoboserveError("invalid_request", "robot: reset must come before the first observation")
            self._seen = self._robot.observe()
        return self._seen

    def render(self) -> Any:
        """Return what the camera saw at the latest step, uint8 (height, width, 3)."""
        return self.seen.images[self._camera]

    def close(self) -> None:
        """Stop driving the robot."""
        if self._driver is not None:
            self._driver.stop()
        close: Callable[[], None] | None = getattr(self._robot, "close", None)
        if close is not None:
            close()

    def _begin(self, seed: int) -> None:
        self._robot.reset(seed)
        self._begun = True
        self._sense()

    def _play(self, action: NDArray[np.float32]) -> bool | None:
        self._robot.act(action)
        self._sense()
        return self._robot.finished()

    def _sense(self) -> None:
        """Read the robot; of one that stands still until it is told to move, the cameras can wait until one looks."""
        if self._feels is not None:
            self._seen, felt = None, self._feels.feel()
        else:
            self._seen = self._robot.observe()
            felt = self._seen.state
        self._felt = np.array(felt, np.float32)

    def _hold(self) -> None:
        command = hold_action(self._robot.interface.action, self._last)
        if command is not None:
            self._robot.act(command)

    def _on_robot(self, work: Callable[[], Any]) -> Any:
        return work() if self._driver is None else self._driver.run(work)


class _Driver:
    """The thread that alone talks to a robot with a clock: one piece of work a tick, or a hold."""

    def __init__(self, robot: Robot, hold: Callable[[], None]) -> None:
        self._period_s, self._hold = 1.0 / robot.interface.control_hz, hold
        self._condition = threading.Condition()
        self._work: Callable[[], Any] | None = None
        self._result: Any = None
        self._failure: Exception | None = None
        self._begun = self._stopped = False
        self._thread = threading.Thread(target=self._drive, name="roboserve-robot-env", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], Any]) -> Any:
        """Have work done at the next tick, and return what it gave.

        Raises:
            RoboserveError: `unavailable` when the robot did not answer; else what the work raised.
        """
        with self._condition:
            if self._stopped:
                raise RoboserveError("unavailable", "robot: its environment was closed")
            self._work, self._failure = work, None
            if not self._condition.wait_for(lambda: self._work is None, timeout=_WAIT_S):
                raise RoboserveError("unavailable", f"robot: did not answer within {_WAIT_S:g} s")
            if self._failure is not None:
                raise self._failure
            return self._result

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
        self._thread.join(_WAIT_S)

    def _drive(self) -> None:
        clock = MonotonicClock()
        due = clock.now()
        while True:
            clock.sleep_until(due)
            due = max(due + self._period_s, clock.now())
            with self._condition:
                if self._stopped:
                    return
                self._tick()

    def _tick(self) -> None:
        if self._work is None:
            if self._begun:
                self._hold()
            return
        try:
            self._result = self._work()
        except Exception as error:  # noqa: BLE001  handed to whoever asked
            self._failure = error
        self._begun, self._work = True, None
        self._condition.notify_all()
