"""OGBench's cube (Park et al., arXiv 2410.20092): an arm picks up a cube and puts it where the goal says.

State, tasks, simulator and expert are the package's own (`ogbench`, MIT). What is added: the goal is seen, success ends
the episode, and a scene depends on its seed alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from finetune.common.environments.goals import GoalRules

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CENTER, _SCALE = np.array([0.425, 0.0, 0.0]), 10.0
"""Of places in OGBench's own state: (metres - center) * scale."""
_STATE = 28
GOAL = (_STATE, _STATE + 3)
"""Columns of the observation that say where the cube shall be."""
_TASKS = 5
_CUBE_HEIGHT = 0.02


class OgbenchCubeEnv(gymnasium.Env["NDArray[np.float32]", "NDArray[np.float32]"]):
    """One cube, one arm (UR5e, 20 steps a second), ended by success.

    Observation: float32 (31,): OGBench's state (28: joints, hand, gripper, cube) and the goal's place, scaled as the
    cube's is. Action: float32 (5,), -1 to 1: motion of the hand in x, y, z and about z, and of the gripper. Success: a
    cube within 4 cm of the goal.

    Args:
        task: 1 to 5, OGBench's; 0 draws cube and goal anywhere on the table, as OGBench's data was collected.
        horizon: steps of an episode. `image_size`: side of the frames that `render` gives, pixels.
        rules: see `GoalRules`; goals are mirrored from left to right.

    Raises:
        ValueError: for an option that is not as above.
        ModuleNotFoundError: without the extra `ogbench`.
    """

    instruction = "put the cube on the target"
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it
    render_mode = "rgb_array"
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (GOAL[1],), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)

    def __init__(self, *, task: int = 0, horizon: int = 200, image_size: int = 96, **rules: Any) -> None:
        if not 0 <= task <= _TASKS or horizon < 1 or image_size < 1:
            raise ValueError(
                f"task, horizon, image_size: {task}, {horizon}, {image_size}, must be 0 to {_TASKS}, >= 1, >= 1"
            )
        self._rules = GoalRules(**rules)
        try:
            from ogbench.manipspace.envs.cube_env import CubeEnv
            from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}: ogbench-cube needs the extra ogbench: pip install 'roboserve[ogbench]'"
            ) from error
        self._env = CubeEnv(env_type="single", width=image_size, height=image_size)
        self._oracle = CubeMarkovOracle(env=self._env)
        self._task, self._horizon = task, horizon

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a scene; the same seeds give the same scenes in the same order."""
        super().reset(seed=seed, options=options)
        drawn = int(self.np_random.integers(2**31))
        self._env.action_space.seed(drawn)  # OGBench plays two of its random actions while it sets the scene
        scene = {"task_id": self._task} if self._task else {"task_info": self._anywhere()}
        state, self._facts = self._env.reset(seed=drawn, options=scene)
        self._goal = np.array(self._env.cur_task_info["goal_xyzs"][0])
        self._left = self._horizon
        self._oracle.reset(state, self._facts)
        return self._seen(state), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play an action."""
        state, _, _, _, self._facts = self._env.step(np.clip(action, -1.0, 1.0))
        success = bool(self._facts["success"])
        self._left -= 1
        return self._seen(state), self._rules.reward(success=success), success, self._left <= 0, {"success": success}

    def expert(self, random: np.random.Generator) -> NDArray[np.float32]:  # noqa: ARG002  others draw from it
        """Return the action of OGBench's oracle."""
        target = {
            "privileged/target_block": 0,
            "privileged/target_block_pos": self._goal,
            "privileged/target_block_yaw": np.zeros(1),
        }
        action: NDArray[np.float32] = np.asarray(
            self._oracle.select_action(None, {**self._facts, **target}), np.float32
        )
        return action

    def render(self) -> Any:
        """Return a frame, uint8 (image_size, image_size, 3); the goal is where a faint cube is."""
        return self._env.render()

    def close(self) -> None:
        """Release the simulator and its renderer."""
        self._env.close()

    def _anywhere(self) -> dict[str, Any]:
        low, high = self._env._target_sampling_bounds  # noqa: SLF001  the package tells them nowhere else
        places = np.append(self.np_random.uniform(low, high, (2, 2)), [[_CUBE_HEIGHT]] * 2, axis=1)
        return {"task_name": "anywhere", "init_xyzs": places[:1], "goal_xyzs": places[1:]}

    def _seen(self, state: NDArray[np.float64]) -> NDArray[np.float32]:
        told = np.array([self._goal[0], self._rules.told(self._goal[1]), self._goal[2]])
        goal = (told - _CENTER) * _SCALE
        seen: NDArray[np.float32] = np.concatenate([state, goal]).astype(np.float32)
        return seen
