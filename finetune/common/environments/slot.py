"""A slot to be entered: a precise task that demonstrations with a wrong calibration almost always miss.

Where the slot is lies a little beside where the policy sees it, so that a copy of the demonstrations fails, and only
its outcome tells (the small case of OGPO, arXiv 2605.03065).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

_STRIDE, _HALF_WIDTH, _WALL = 0.1, 0.006, 0.0


class SlotEnv(gymnasium.Env["Vector", "Vector"]):
    """A point above a wall that must be crossed through a slot of half-width 0.006, paid -1 a step until it is.

    Observation: float32 (3,), place (2) and where the slot seems to be, or (4,) with two of them, left and right.
    Action: float32 (2,), -1 to 1, times 0.1 a step. A point that meets the wall beside a slot is stopped there and may
    slide along it. Of two, `info` says which was passed (`mode`), if one was.

    Args:
        shift: where a slot is, less where it seems to be.
        slots: 1, or 2, either of which will do: the expert takes the one or the other, by chance.
        horizon: steps of an episode.

    Raises:
        ValueError: another number of slots.
    """

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, *, shift: float = 0.0, slots: int = 1, horizon: int = 26) -> None:
        if slots not in (1, 2):
            raise ValueError(f"slots: {slots}, must be 1 or 2")
        self._shift, self._horizon = shift, horizon
        self._bounds = ((-0.4, 0.4),) if slots == 1 else ((-0.4, -0.1), (0.1, 0.4))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2 + slots,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, dict[str, Any]]:
        """Draw a start above the wall, the slots in it, and which one the expert takes."""
        super().reset(seed=seed, options=options)
        self.place = self.np_random.uniform((-0.5, 0.5), (0.5, 0.9))
        self.slots = [float(self.np_random.uniform(*bounds)) for bounds in self._bounds]
        self._aim = int(self.np_random.integers(len(self.slots))) if len(self.slots) > 1 else 0
        self._left = self._horizon
        return self._observe(), {}

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Move; the episode ends in the slot, or is cut off at the horizon."""
        before = self.place
        after = before + _STRIDE * np.clip(action, -1.0, 1.0)
        passed: int | None = None
        if after[1] <= _WALL:
            part = (before[1] - _WALL) / max(before[1] - after[1], 1e-9)
            crossing = before[0] + part * (after[0] - before[0])
            open_at = [abs(crossing - slot - self._shift) < _HALF_WIDTH for slot in self.slots]
            passed = open_at.index(True) if any(open_at) else None
            after = np.array([after[0], _WALL + 0.01] if passed is None else [crossing, _WALL])
        self.place = after
        self._left -= 1
        success = passed is not None
        info = {"success": success, **({"mode": passed} if len(self.slots) > 1 else {})}
        return self._observe(), 0.0 if success else -1.0, success, self._left <= 0, info

    def expert(self, random: np.random.Generator) -> Vector:
        """Return a noisy action that goes above where its slot seems to be, and then down through it."""
        across = (self.slots[self._aim] - self.place[0]) / _STRIDE
        down = -1.0 if abs(across) < 0.05 else np.clip((0.15 - self.place[1]) / _STRIDE, -1.0, 1.0)
        action = np.array([across, down]) + random.normal(0.0, 0.02, 2)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _observe(self) -> Vector:
        return np.array([*self.place, *self.slots], np.float32)
