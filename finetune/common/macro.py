"""One decision, several steps: a chunk is played open loop, and what happened is handed back whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Macro:
    """What a chunk led to, n steps of it.

    Attributes:
        observations: float32 (n + 1, O), from before the first step to after the last.
        actions: float32 (n, A), as played.
        rewards: float32 (n,).
        terminated: the task ended the episode: nothing follows. `truncated`: the clock did: the value goes on.
        success: whether the last step said so.
        infos: of each step.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: bool
    truncated: bool
    success: bool
    infos: tuple[dict[str, Any], ...]

    @property
    def over(self) -> bool:
        """Whether the episode is."""
        return self.terminated or self.truncated


class MacroEnv:
    """An environment that plays chunks.

    Args:
        env: its observations are vectors, its actions lie in [-1, 1].
        execute: steps of a chunk that are played, unless the episode ends before.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, execute: int) -> None:
        if execute < 1:
            raise ValueError(f"execute: {execute}, must be 1 or more")
        self.env, self.execute = env, execute

    def reset(self, *, seed: int | None = None) -> NDArray[np.float32]:
        """Begin an episode and return what is seen, float32 (O,)."""
        seen, _ = self.env.reset(seed=seed)
        self.seen = np.asarray(seen, np.float32)
        return self.seen

    def step(self, chunk: NDArray[np.float32]) -> Macro:
        """Play the first `execute` rows of a chunk (H, A), cut to [-1, 1]."""
        rows = np.clip(np.asarray(chunk[: self.execute], np.float32), -1.0, 1.0)
        observations, rewards, infos = [self.seen], [], []
        terminated = truncated = False
        for row in rows:
            seen, reward, terminated, truncated, info = self.env.step(row)
            observations.append(np.asarray(seen, np.float32))
            rewards.append(float(reward))
            infos.append(info)
            if terminated or truncated:
                break
        self.seen = observations[-1]
        return Macro(
            observations=np.stack(observations),
            actions=rows[: len(rewards)],
            rewards=np.asarray(rewards, np.float32),
            terminated=bool(terminated),
            truncated=bool(truncated),
            success=bool(infos[-1]["success"]),
            infos=tuple(infos),
        )
