"""The robot's side of the seam: a user's own robot is a class with the four methods below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Mapping, Optional, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from clients.contract import RobotInterface

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RobotObservation:
    """What the robot sees and feels at one tick.

    Attributes:
        images: camera name to uint8 (height, width, 3), RGB, at the camera's own size.
        state: float32 (state.size,), in the units of the robot's interface.
    """

    images: Mapping[str, Array]
    state: Array


class Robot(Protocol):
    """A robot, real or simulated. All four methods are called from the control thread only."""

    interface: RobotInterface
    """Cameras, state, action and control rate; checked against the server's contract before the first move."""

    def reset(self, seed: Optional[int]) -> None:
        """Go to the start of an episode; may block. A simulator draws its scene from `seed`."""
        ...

    def observe(self) -> RobotObservation:
        """Return the newest observation without waiting for anything but the sensors."""
        ...

    def act(self, action: Array) -> None:
        """Play one row of a chunk, float32 (action.size,), already checked and limited; return at once."""
        ...

    def finished(self) -> Optional[bool]:
        """Return None while the episode goes on, True on success, False when it ended without."""
        ...


@runtime_checkable
class FeelingRobot(Robot, Protocol):
    """A robot that can tell its state without its cameras, which for a simulated one are most of the work."""

    def feel(self) -> Array:
        """Return the state that `observe` would give, float32 (state.size,)."""
        ...
