"""A replay buffer for rewards that come later than their steps."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clients.reward_env import Transition


class LabelledReplayBuffer(ReplayBuffer):
    """Holds a step back until its reward is there; one environment, whose rewards come in the order of its steps.

    Attributes:
        labelled: gives the transitions whose reward has come, as `clients.reward_env.RewardEnv.labelled` does; to be
            set before the first step, and again after a buffer was read from a file.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.n_envs != 1:
            raise ValueError(f"n_envs: {self.n_envs}, must be 1")
        self.labelled: Callable[[], Sequence[Transition]] | None = None
        self._waiting: deque[tuple[Any, ...]] = deque()

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """Take a step, and keep those whose reward is there now."""
        if infos[0].get("reward_ready", True):
            super().add(obs, next_obs, action, reward, done, infos)
            return
        if self.labelled is None:
            raise ValueError("labelled: must be set before a step without reward")
        self._waiting.append((obs, next_obs, action, done, infos))
        self.settle(self.labelled())

    def settle(self, transitions: Sequence[Transition]) -> None:
        """Keep the oldest steps that wait, with these rewards."""
        for transition in transitions:
            obs, next_obs, action, done, infos = self._waiting.popleft()
            super().add(obs, next_obs, action, np.array([transition.reward]), done, infos)

    def latest(self, steps: int) -> float:
        """Return the mean reward of this many of the newest steps, or of all where there are fewer; 0 without any."""
        count = min(steps, self.size())
        rows = np.arange(self.pos - count, self.pos) % self.buffer_size
        return float(self.rewards[rows].mean()) if count else 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Return what a file keeps: steps with their rewards, and not where rewards come from."""
        return {**self.__dict__, "labelled": None, "_waiting": deque()}
