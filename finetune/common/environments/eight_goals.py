"""Eight goals on a circle: a behaviour that a policy knows, and a context that names the wrong one.

The smallest case of a task shift: what must be done is among the demonstrations, but the policy is told otherwise
(TMRL, arXiv 2605.12236).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

GOALS = 8
_STRIDE, _NEAR = 0.12, 0.15


def goal_places() -> NDArray[np.float64]:
    """Return the goals' places on the unit circle, (8, 2)."""
    angles = np.arange(GOALS) * (2 * np.pi / GOALS)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


class EightGoalsEnv(gymnasium.Env["Vector", "Vector"]):
    """A point that starts near the middle and is paid 1, once, when it is within 0.15 of the rewarded goal.

    `info` says which goal was reached first (`mode`), if one was. Observation: float32 (10,), place, then 1 for the
    named goal and 0 for the others. Action: float32 (2,), -1 to 1, times 0.12 a step.

    Args:
        named: the goal that the observation names; None draws one in every episode.
        shift: how many goals on from the named one lies the rewarded one.
        horizon: steps of an episode.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2 + GOALS,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, *, named: int | None = None, shift: int = 0, horizon: int = 24) -> None:
        self._given, self._shift, self._horizon = named, shift, horizon
        self._places = goal_places()
        self._reached: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, dict[str, Any]]:
        """Begin near the middle."""
        super().reset(seed=seed, options=options)
        self.named = int(self.np_random.integers(GOALS)) if self._given is None else self._given
        self.place = self.np_random.uniform(-0.05, 0.05, 2)
        self._left, self._reached = self._horizon, None
        return self._observe(), {}

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Move; the episode ends at the rewarded goal, or is cut off at the horizon."""
        self.place = self.place + _STRIDE * np.clip(action, -1.0, 1.0)
        self._left -= 1
        distances = np.linalg.norm(self._places - self.place, axis=-1)
        success = bool(distances[(self.named + self._shift) % GOALS] < _NEAR)
        if self._reached is None and distances.min() < _NEAR:
            self._reached = int(distances.argmin())
        info = {"success": success, "mode": self._reached}
        return self._observe(), float(success), success, self._left <= 0, info

    def expert(self, random: np.random.Generator) -> Vector:
        """Return a noisy action towards the named goal."""
        way = (self._places[self.named] - self.place) / _STRIDE
        action = way / max(1.0, float(np.abs(way).max())) * 0.8 + random.normal(0.0, 0.1, 2)
        return np.asarray(np.clip(action, -1.0, 1.0), np.float32)

    def _observe(self) -> Vector:
        return np.asarray([*self.place, *np.eye(GOALS)[self.named]], np.float32)
