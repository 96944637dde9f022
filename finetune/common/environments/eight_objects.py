"""Eight objects on a circle, one to be put in a hole: a context that is wrong at first, and must be trusted after.

The named object is not the right one, the named hole is. Where the name counts for little another object is found, and
where its place counts in full the hole is met: by itself, no single context level does both (TMRL, arXiv 2605.12236, on
why the level is chosen anew at each decision).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from finetune.common.environments.eight_goals import GOALS, goal_places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

_STRIDE, _REACH, _STAY = 0.12, 0.15, 3
_HOLES = 0.5
"""Holes lie this far from the middle at most, on either axis."""


class EightObjectsEnv(gymnasium.Env["Vector", "Vector"]):
    """A hand that takes the first object within 0.15, and is paid 1 for the right one and 1 for it in the hole.

    It is in when it was over the hole for three steps in a row. Another object taken ends the episode.

    `info` says which object was taken (`mode`), if one was. Observation: float32 (13,): the hand's place; 1 if it
    holds something; 1 for the named object and 0 for the others; the hole's place, within 0.5 of the middle on either
    axis. Action: float32 (2,), -1 to 1, times 0.12 a step.

    Args:
        named: the object that the observation names; None draws one in every episode.
        shift: how many objects on from the named one lies the right one.
        width: how near the hole's middle it must be held.
        horizon: steps of an episode.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2 + 1 + GOALS + 2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, *, named: int | None = None, shift: int = 0, width: float = 0.1, horizon: int = 40) -> None:
        self._given, self._shift, self._width, self._horizon = named, shift, width, horizon
        self._places = goal_places()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, dict[str, Any]]:
        """Begin near the middle, with nothing in the hand."""
        super().reset(seed=seed, options=options)
        self.named = int(self.np_random.integers(GOALS)) if self._given is None else self._given
        self.place = self.np_random.uniform(-0.05, 0.05, 2)
        self.hole = self.np_random.uniform(-_HOLES, _HOLES, 2)
        self.held: int | None = None
        self._over = 0
        self._left = self._horizon
        return self._observe(), {}

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Move; the episode ends with an object in the hole or the wrong one in the hand, or is cut off."""
        self.place = self.place + _STRIDE * np.clip(action, -1.0, 1.0)
        self._left -= 1
        right, taken = (self.named + self._shift) % GOALS, False
        distances = np.linalg.norm(self._places - self.place, axis=-1)
        if self.held is None and distances.min() < _REACH:
            self.held = int(distances.argmin())
            taken = self.held == right
        over = self.held == right and float(np.linalg.norm(self.hole - self.place)) < self._width
        self._over = self._over + 1 if over else 0
        success = self._over >= _STAY
        ended = success or self.held not in (None, right)
        return self._observe(), float(taken) + success, ended, self._left <= 0, {"success": success, "mode": self.held}

    def expert(self, random: np.random.Generator) -> Vector:
        """Return a noisy action towards the named object, and then towards the hole."""
        way = ((self._places[self.named] if self.held is None else self.hole) - self.place) / _STRIDE
        action = way / max(1.0, float(np.abs(way).max())) * 0.8 + random.normal(0.0, 0.1, 2)
        return np.asarray(np.clip(action, -1.0, 1.0), np.float32)

    def _observe(self) -> Vector:
        return np.asarray([*self.place, self.held is not None, *np.eye(GOALS)[self.named], *self.hole], np.float32)
