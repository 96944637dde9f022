"""Replay of decisions: what a high-level agent chose, and what the chunk that followed led to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """A batch of decisions.

    Attributes:
        states, after: float32 (B, S), before and after. `choices`: float32 (B, U), what the agent chose.
        rewards: float32 (B,), plain sums over the chunk. `done`: float32 (B,), 1 where the task ended the episode; an
            episode that the clock cut off goes on in its value.
    """

    states: NDArray[np.float32]
    after: NDArray[np.float32]
    choices: NDArray[np.float32]
    rewards: NDArray[np.float32]
    done: NDArray[np.float32]


class DecisionReplay:
    """Decisions in the order they were made; the oldest are forgotten first.

    Args:
        capacity: decisions; `state_size`, `choice_size`: of one.
        half_solved: draw half of every batch from episodes that succeeded, once there are any.
    """

    def __init__(self, *, capacity: int, state_size: int, choice_size: int, half_solved: bool = False) -> None:
        self.capacity, self._half_solved = capacity, half_solved
        self._states = np.zeros((capacity, state_size), np.float32)
        self._after = np.zeros((capacity, state_size), np.float32)
        self._choices = np.zeros((capacity, choice_size), np.float32)
        self._rewards = np.zeros(capacity, np.float32)
        self._done = np.zeros(capacity, np.float32)
        self._solved = np.zeros(capacity, bool)
        self._made = self._episode_start = 0

    def __len__(self) -> int:
        return min(self._made, self.capacity)

    def add(
        self,
        state: NDArray[np.float32],
        choice: NDArray[np.float32],
        reward: float,
        after: NDArray[np.float32],
        *,
        done: bool,
        over: bool,
        success: bool,
    ) -> None:
        """Keep a decision; the end of an episode marks all its decisions as solved or not.

        Args:
            done: the task ended the episode; `over`: it ended, be it by the clock; `success`: see `Macro`.
        """
        place = self._made % self.capacity
        self._states[place], self._choices[place], self._after[place] = state, choice, after
        self._rewards[place], self._done[place], self._solved[place] = reward, float(done), False
        self._made += 1
        if over:
            length = min(self._made - self._episode_start, self.capacity)
            self._solved[(self._made - 1 - np.arange(length)) % self.capacity] = success
            self._episode_start = self._made

    def sample(self, batch: int, random: np.random.Generator) -> Decisions:
        """Draw decisions.

        Raises:
            ValueError: there are none.
        """
        if not len(self):
            raise ValueError("replay: empty")
        solved = np.flatnonzero(self._solved[: len(self)]) if self._half_solved else np.empty(0, np.int64)
        if len(solved) and len(solved) < len(self):
            rest = np.flatnonzero(~self._solved[: len(self)])
            rows = np.concatenate([random.choice(solved, batch // 2), random.choice(rest, batch - batch // 2)])
        else:
            rows = random.integers(0, len(self), batch)
        return Decisions(
            states=self._states[rows],
            after=self._after[rows],
            choices=self._choices[rows],
            rewards=self._rewards[rows],
            done=self._done[rows],
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything, to be saved."""
        arrays = {name: getattr(self, f"_{name}")[: len(self)].copy() for name in _ARRAYS}
        return {**arrays, "counters": np.array([self._made, self._episode_start], np.int64)}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Take what `state` gave."""
        self._made, self._episode_start = (int(value) for value in state["counters"])
        for name in _ARRAYS:
            getattr(self, f"_{name}")[: len(self)] = state[name]


_ARRAYS = ("states", "after", "choices", "rewards", "done", "solved")
