"""A MetaWorld task as a Gymnasium environment: the learner sees the state, a reward model sees the camera."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import gymnasium
import numpy as np

from robot_client.robots.metaworld import CAMERA, MetaWorldRobot

if TYPE_CHECKING:
    from numpy.typing import NDArray

OwnReward = Literal["sparse", "env"]
STATE = 39


class MetaWorldEnv(gymnasium.Env["NDArray[np.float32]", "NDArray[np.float32]"]):
    """One task; every episode has the same length, so that nothing but the reward says when the task is solved.

    Observation: float32 (39,), the simulator's state with positions of objects and goal. Action: float32 (4,), -1 to 1,
    held for `repeat` control steps. `info` carries `success` (solved now) and `is_success` (solved at some time).

    Args:
        task: a name of `robot_client.robots.metaworld_tasks`.
        own_reward: "sparse", 1 while the task is solved, else 0; or "env", MetaWorld's own dense reward, 0 to 10.
        horizon: decisions of an episode.
        repeat: control steps (20 a second) of one decision.
        image_size: side of the square frames that `render` gives, pixels.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it
    render_mode = "rgb_array"
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (STATE,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def __init__(
        self, task: str, *, own_reward: OwnReward = "sparse", horizon: int = 75, repeat: int = 2, image_size: int = 96
    ) -> None:
        self._robot = MetaWorldRobot(task, image_size=(image_size, image_size), max_steps=horizon * repeat)
        self._own_reward, self._repeat, self._horizon = own_reward, repeat, horizon

    @property
    def instruction(self) -> str:
        """The canonical wording of the task."""
        return self._robot.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a scene; the same seeds give the same scenes in the same order."""
        super().reset(seed=seed, options=options)
        self._robot.reset(int(self.np_random.integers(2**31)))
        self._left, self._solved = self._horizon, False
        return self._state(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play an action; the episode is cut off at its horizon and never ends before."""
        rewards, success = [], False
        for _ in range(self._repeat):
            self._robot.act(action)
            reward, success = self._robot.outcome
            rewards.append(reward)
            self._solved = self._solved or success
        self._left -= 1
        paid = float(success) if self._own_reward == "sparse" else float(np.mean(rewards))
        return self._state(), paid, False, self._left <= 0, {"success": success, "is_success": self._solved}

    def render(self) -> Any:
        """Return what the policy's camera sees, uint8 (image_size, image_size, 3)."""
        return self._robot.observe().images[CAMERA]

    def close(self) -> None:
        """Release simulator and renderer."""
        self._robot.close()

    def _state(self) -> NDArray[np.float32]:
        return self._robot.privileged_observation.astype(np.float32)
