"""Replay: single steps that are read as windows of a chunk's length, and a buffer of what succeeded.

A sample starts at any step and holds the H that follow (Q-chunking, arXiv 2507.07969, as OGPO uses it). Of a chunk the
first E rows are played before the next is drawn, so these have a value:
R = sum over i < E of gamma^i r_(t+i), s' = s_(t+E), and the value of s' counts unless the episode was terminated
before. A window whose first E steps would cross the end of an episode which the clock cut off has weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.common.macro import Macro


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A batch of windows.

    Attributes:
        states: float32 (B, S), where they start; `after`: float32 (B, S), E steps later.
        chunks: float32 (B, H, A), the actions that were played.
        returns: float32 (B,), discounted sums of E rewards, or fewer up to a termination.
        alive: float32 (B,), 0 where the episode was terminated within E steps, so that nothing follows.
        weights: float32 (B,), 0 where E steps cross the end of an episode without termination.
        played: float32 (B, H), 1 for the actions up to the end of the episode.
    """

    states: NDArray[np.float32]
    after: NDArray[np.float32]
    chunks: NDArray[np.float32]
    returns: NDArray[np.float32]
    alive: NDArray[np.float32]
    weights: NDArray[np.float32]
    played: NDArray[np.float32]


_ARRAYS = ("states", "after", "actions", "rewards", "terminated", "ends", "solved")


class StepReplay:
    """Steps in the order they were made; the oldest are forgotten first.

    Args:
        capacity: steps; `state_size`, `action_size`: of one.
        horizon: steps of a window (H). `execute`: of which as many have a value (E); None is all of them.
        discount: gamma.
    """

    def __init__(
        self,
        *,
        capacity: int,
        state_size: int,
        action_size: int,
        horizon: int,
        discount: float,
        execute: int | None = None,
    ) -> None:
        self.execute = horizon if execute is None else execute
        if not capacity >= horizon >= self.execute >= 1:
            raise ValueError(
                f"capacity, horizon, execute: {capacity}, {horizon}, {self.execute}, must be "
                "capacity >= horizon >= execute >= 1"
            )
        self.capacity, self.horizon, self.discount = capacity, horizon, discount
        self._states = np.zeros((capacity, state_size), np.float32)
        self._after = np.zeros((capacity, state_size), np.float32)
        self._actions = np.zeros((capacity, action_size), np.float32)
        self._rewards = np.zeros(capacity, np.float32)
        self._terminated = np.zeros(capacity, bool)
        self._ends = np.zeros(capacity, bool)
        self._solved = np.zeros(capacity, bool)
        self._next = self._made = 0
        self._episode_start = 0

    def __len__(self) -> int:
        return min(self._made, self.capacity)

    @property
    def solved(self) -> int:
        """Steps of episodes that succeeded."""
        return int(self._solved[: len(self)].sum())

    def add(self, macro: Macro) -> None:
        """Keep what a chunk led to; the end of an episode marks all its steps as solved or not."""
        for index in range(len(macro.rewards)):
            place = self._next
            self._states[place], self._after[place] = macro.observations[index : index + 2]
            self._actions[place], self._rewards[place] = macro.actions[index], macro.rewards[index]
            last = index == len(macro.rewards) - 1
            self._terminated[place] = last and macro.terminated
            self._ends[place] = last and macro.over
            self._solved[place] = False
            self._next = (place + 1) % self.capacity
            self._made += 1
        if macro.over:
            length = min(self._made - self._episode_start, self.capacity)
            rows = (self._next - 1 - np.arange(length)) % self.capacity
            self._solved[rows] = macro.success
            self._episode_start = self._made

    def sample(self, batch: int, random: np.random.Generator) -> Windows:
        """Draw windows that start anywhere.

        Raises:
            ValueError: fewer steps than a window are there.
        """
        return self.windows(self._starts(random, batch))

    def sample_solved(self, batch: int, random: np.random.Generator) -> Windows:
        """Draw windows within episodes that succeeded.

        Raises:
            ValueError: no episode did.
        """
        ages = (np.flatnonzero(self._solved[: len(self)]) - self._oldest) % self.capacity
        ages = ages[ages < self._most_starts()]
        if not len(ages):
            raise ValueError("replay: no episode in it succeeded")
        return self.windows((self._oldest + random.choice(ages, batch)) % self.capacity)

    def windows(self, starts: NDArray[np.int64]) -> Windows:
        """Return the windows that start at these rows.

        After the end of an episode a chunk goes on with whatever was played next: no value depends on it, and a critic
        learns so.
        """
        rows = (starts[:, None] + np.arange(self.horizon)) % self.capacity
        ended = np.cumsum(self._ends[rows], axis=1) - self._ends[rows] > 0  # the episode was over before this step
        counted = ~ended
        valued = slice(self.execute)
        powers = self.discount ** np.arange(self.execute, dtype=np.float32)
        final = (self._terminated[rows] & counted)[:, valued].any(axis=1)
        return Windows(
            states=self._states[starts],
            after=self._after[rows[:, self.execute - 1]],
            chunks=self._actions[rows],
            returns=((self._rewards[rows] * counted)[:, valued] * powers).sum(axis=1).astype(np.float32),
            alive=np.asarray(~final, np.float32),
            weights=np.asarray(final | ~ended[:, self.execute - 1], np.float32),
            played=np.asarray(counted, np.float32),
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything, to be saved."""
        kept = len(self)
        arrays = {name: getattr(self, f"_{name}")[:kept].copy() for name in _ARRAYS}
        counters = np.array([self._next, self._made, self._episode_start], np.int64)
        return {**arrays, "counters": counters}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Take what `state` gave."""
        self._next, self._made, self._episode_start = (int(value) for value in state["counters"])
        for name in _ARRAYS:
            getattr(self, f"_{name}")[: len(self)] = state[name]

    @property
    def _oldest(self) -> int:
        return self._next if self._made > self.capacity else 0

    def _most_starts(self) -> int:
        most = len(self) - self.horizon + 1
        if most < 1:
            raise ValueError(f"replay: {len(self)} steps, fewer than the {self.horizon} of a window")
        return most

    def _starts(self, random: np.random.Generator, batch: int) -> NDArray[np.int64]:
        return (self._oldest + random.integers(0, self._most_starts(), batch)) % self.capacity
