"""Demonstrations as windows: each state with the chunk that was played from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray


class Demonstrator(Protocol):
    """An environment that can show how it is done."""

    def expert(self, random: np.random.Generator) -> NDArray[np.float32]:
        """Return an action for what it just showed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """States float32 (N, S) and chunks float32 (N, H, A) that begin there; the last action of an episode is held."""

    states: NDArray[np.float32]
    chunks: NDArray[np.float32]
    success: float


def demonstrate(
    env: gymnasium.Env[Any, Any],
    *,
    episodes: int,
    chunk_length: int,
    seed: int,
    noise: float = 0.0,
    keep_failures: bool = True,
) -> Demonstrations:
    """Let an environment's expert play.

    Args:
        env: also a `Demonstrator`.
        noise: standard deviation of what is added to the actions that are played and not to those that are kept, so
            that the demonstrations show how to recover (DART, Laskey et al. 2017).
        keep_failures: whether episodes that did not succeed are among the demonstrations.

    Raises:
        ValueError: no episode is left.
    """
    random = np.random.default_rng(seed)
    expert: Demonstrator = env.unwrapped  # type: ignore[assignment]
    states: list[NDArray[np.float32]] = []
    chunks: list[NDArray[np.float32]] = []
    solved = 0
    for episode in range(episodes):
        seen, _ = env.reset(seed=seed * 100_003 + episode)
        path, actions, over, success = [], [], False, False
        while not over:
            path.append(np.asarray(seen, np.float32))
            actions.append(expert.expert(random))
            played = (
                actions[-1] + noise * random.standard_normal(actions[-1].shape, np.float32) if noise else actions[-1]
            )
            seen, _, terminated, truncated, info = env.step(np.clip(played, -1.0, 1.0))
            success, over = bool(info["success"]), terminated or truncated
        solved += success
        if success or keep_failures:
            padded = np.stack([*actions, *[actions[-1]] * (chunk_length - 1)])
            states.extend(path)
            chunks.extend(padded[step : step + chunk_length] for step in range(len(path)))
    if not states:
        raise ValueError(f"demonstrations: none of {episodes} episodes succeeded")
    return Demonstrations(states=np.stack(states), chunks=np.stack(chunks), success=solved / episodes)
