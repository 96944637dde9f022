"""A replay buffer that remembers a picture of every state, so that all rewards can be told anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from stable_baselines3.common.type_aliases import ReplayBufferSamples


class PictureBuffer(ReplayBuffer):
    """Steps of one environment, each with the picture of the state it led to, and its true reward beside the learned.

    The picture and the true reward of a step come in its `info`, as "picture" and "true_reward".

    Attributes:
        judge: gives the reward of pictures (n, s, s, 3); None keeps the environment's own.
        entropy: while it is not None, batches are paid for how far their states are from their neighbours instead.
    """

    def __init__(self, *arguments: Any, image_size: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.n_envs != 1:
            raise ValueError(f"n_envs: {self.n_envs}, must be 1")
        self.pictures = np.zeros((self.buffer_size, image_size, image_size, 3), np.uint8)
        self.true_rewards = np.zeros(self.buffer_size, np.float32)
        self.trajectories: list[tuple[int, int]] = []
        self.judge: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None
        self.entropy: StateEntropy | None = None
        self._began = 0

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """Take a step; what is paid for it is the judge's word."""
        if self.full:
            raise ValueError("buffer: is full; it must hold the whole run, for all of it is told anew")
        row = self.pos
        self.pictures[row] = infos[0]["picture"]
        self.true_rewards[row] = infos[0]["true_reward"]
        if self.judge is not None:
            reward = self.judge(self.pictures[row : row + 1])
        super().add(obs, next_obs, action, reward, done, infos)
        if bool(done[0]):
            self.trajectories.append((self._began, row + 1 - self._began))
            self._began = row + 1

    def all_trajectories(self) -> list[tuple[int, int]]:
        """Return (first row, length) of each episode, that under way included."""
        under_way = self.size() - self._began
        return [*self.trajectories, (self._began, under_way)] if under_way else self.trajectories

    def relabel(self) -> None:
        """Tell every reward anew."""
        if self.judge is not None and self.size():
            self.rewards[: self.size(), 0] = self.judge(self.pictures[: self.size()])

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Draw a batch."""
        batch = super().sample(batch_size, env)
        if self.entropy is None:
            return batch
        states = torch.from_numpy(self.observations[: self.size(), 0]).float()
        return batch._replace(rewards=self.entropy.reward(batch.observations, states).unsqueeze(-1))


class StateEntropy:
    """Pays for states far from their neighbours (PEBBLE, arXiv 2106.05091): log of the distance to the k-th nearest.

    Divided by its running standard deviation, so that its size is that of a reward.

    Args:
        neighbours: k; `among`: states of the buffer, drawn anew for each batch, that are looked at.
    """

    def __init__(self, *, neighbours: int, among: int, seed: int) -> None:
        self._k, self._among = neighbours, among
        self._random = torch.Generator().manual_seed(seed)
        self._count, self._mean, self._square = 0, 0.0, 0.0

    def reward(self, batch: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Return a reward (B,) for states (B, d), among all states (n, d)."""
        if len(states) > self._among:
            states = states[torch.randint(len(states), (self._among,), generator=self._random)]
        distances = torch.cdist(batch.float(), states)
        k = min(self._k + 1, len(states))  # the nearest is the state itself
        found = torch.log(distances.kthvalue(k, dim=1).values + 1e-6)
        self._learn(found)
        spread = max(1e-3, (self._square / self._count) ** 0.5)
        paid: torch.Tensor = found / spread
        return paid

    def _learn(self, found: torch.Tensor) -> None:
        """Take values into the running mean and sum of squares (Chan, Golub and LeVeque 1979)."""
        count, mean = len(found), float(found.mean())
        total, apart = self._count + count, mean - self._mean
        self._square += float(((found - mean) ** 2).sum()) + apart**2 * self._count * count / total
        self._mean += apart * count / total
        self._count = total
