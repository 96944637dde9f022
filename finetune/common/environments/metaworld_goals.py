"""MetaWorld tasks whose context shifts: goals on one side of the table only, or named where they are not.

A policy that was shown goals on the left has never been where those on the right are. One that is told the mirrored
goal knows how to reach the true one, but not that it should: what TMRL (arXiv 2605.12236) finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from finetune.bc.expert import ScriptedExpert
from finetune.common.environments.goals import GoalRules
from finetune.sac.environment import MetaWorldEnv

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Side = Literal["left", "right", "any"]
GOAL = (36, 39)
"""Columns of the state that say where the goal is, m."""
_DRAWS = 200


class MetaWorldGoalsEnv(MetaWorldEnv):
    """`MetaWorldEnv` with goals of one side only, ended by success, and with its expert.

    Observation: float32 (39,), the last three where the goal is.

    Args:
        side: of the goal, as the robot sees it: "left" is x below `middle`.
        middle: m.
        rules: see `GoalRules`; goals are mirrored at `middle`.

    Raises:
        ValueError: for another side, name or pay.
    """

    def __init__(
        self,
        task: str,
        *,
        side: Side = "any",
        middle: float = 0.0,
        horizon: int = 75,
        repeat: int = 2,
        image_size: int = 96,
        **rules: Any,
    ) -> None:
        if side not in get_args(Side):
            raise ValueError(f"side: {side!r}, must be one of {', '.join(get_args(Side))}")
        self._rules = GoalRules(**rules)
        super().__init__(task, own_reward="sparse", horizon=horizon, repeat=repeat, image_size=image_size)
        self._side, self._middle = side, middle
        self._expert = ScriptedExpert(self._robot)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw scenes until the goal is on its side.

        Raises:
            RuntimeError: no scene of a great many has it there.
        """
        state, info = super().reset(seed=seed, options=options)
        for _ in range(_DRAWS):
            place = float(self._robot.privileged_observation[GOAL[0]])
            if self._side == "any" or (place < self._middle) == (self._side == "left"):
                return state, info
            state, info = super().reset()
        raise RuntimeError(f"side: no goal of {self._robot.task.name} is {self._side} of {self._middle:g} m")

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play an action; success ends the episode."""
        state, _, _, truncated, info = super().step(action)
        success = bool(info["success"])
        return state, self._rules.reward(success=success), success, truncated, info

    def _state(self) -> NDArray[np.float32]:
        state = super()._state()
        state[GOAL[0]] = self._rules.told(state[GOAL[0]], middle=self._middle)
        return state

    def expert(self, random: np.random.Generator) -> NDArray[np.float32]:  # noqa: ARG002  others draw from it
        """Return the scripted expert's action."""
        return self._expert.action()
