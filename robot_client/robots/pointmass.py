"""A point on a table with a camera above it: the smallest robot, for a first run and for tests. Needs numpy only."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from clients.contract import RobotInterface, Vector
from robot_client.robot import RobotObservation

Array = np.ndarray[Any, Any]

HEIGHT, WIDTH = 48, 64
REACHED_M = 0.05


class PointMass:
    """A point in the square from -1 to 1 m that should get within 5 cm of a goal.

    State: x, y, goal_x, goal_y in m. Action: x and y, whose meaning `kind` chooses: where to be (m, "absolute"), how
    far to go in this tick (m, "delta"), or how fast to go (m/s, "velocity").

    Args:
        kind: "absolute", "delta" or "velocity".
        control_hz: ticks a second that one `act` stands for.
        max_speed: m/s that the point can do, whatever it is told.
    """

    instruction = "go to the green goal"

    def __init__(self, *, kind: str = "velocity", control_hz: float = 50.0, max_speed: float = 1.0) -> None:
        unit = "m/s" if kind == "velocity" else "m"
        limit = {"absolute": 1.0, "delta": max_speed / control_hz, "velocity": max_speed}.get(kind, 1.0)
        self.interface = RobotInterface(
            cameras=("top",),
            state=Vector(
                names=("x", "y", "goal_x", "goal_y"),
                units=("m",) * 4,
                kinds=("absolute",) * 4,
                low=(-1.0,) * 4,
                high=(1.0,) * 4,
            ),
            action=Vector(names=("x", "y"), units=(unit,) * 2, kinds=(kind,) * 2, low=(-limit,) * 2, high=(limit,) * 2),
            control_hz=control_hz,
        )
        self._kind = kind
        self._reach = max_speed / control_hz
        self._period = 1.0 / control_hz
        self._position = np.zeros(2)
        self._goal = np.zeros(2)

    def reset(self, seed: Optional[int]) -> None:
        """Put the point and its goal somewhere at least 0.5 m apart."""
        generator = np.random.default_rng(seed)
        while True:
            self._position, self._goal = generator.uniform(-0.9, 0.9, size=(2, 2))
            if np.linalg.norm(self._goal - self._position) >= 0.5:
                return

    def observe(self) -> RobotObservation:
        """Return the camera image, uint8 (48, 64, 3), and the state, float32 (4,)."""
        image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        for centre, colour in ((self._goal, (40, 200, 80)), (self._position, (230, 80, 60))):
            row = int((1.0 - centre[1]) / 2.0 * (HEIGHT - 1))
            column = int((1.0 + centre[0]) / 2.0 * (WIDTH - 1))
            image[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = colour
        return RobotObservation(
            images={"top": image}, state=np.concatenate([self._position, self._goal]).astype(np.float32)
        )

    def act(self, action: Array) -> None:
        """Move for one tick; the way is cut to what the point can do and to the table."""
        wanted = np.asarray(action, dtype=np.float64)
        step = {
            "absolute": wanted - self._position,
            "delta": wanted,
            "velocity": wanted * self._period,
        }[self._kind]
        length = float(np.linalg.norm(step))
        if length > self._reach:
            step = step * (self._reach / length)
        self._position = np.clip(self._position + step, -1.0, 1.0)

    def finished(self) -> Optional[bool]:
        """Return True within 5 cm of the goal, None before that."""
        return True if float(np.linalg.norm(self._goal - self._position)) <= REACHED_M else None
