"""What a smoothed policy does at each context level: how often it does as it is told, and how many ways it knows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.common.intervals import entropy, wilson
from finetune.common.macro import MacroEnv
from finetune.tmrl.base import LocalPolicy
from models.policies.steered.choice import Steering

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import gymnasium

    from finetune.tmrl.base import SteeredPolicy


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """Episodes at one level.

    Attributes:
        level: 0 to 1. `episodes`: how many. `success`: share that did as told, `low` to `high` its 95 % interval.
        modes: distinct ways that episodes went, and `entropy` of their shares, bits; None where the environment tells
            of none (`mode` in its `info`).
    """

    level: float
    episodes: int
    success: float
    low: float
    high: float
    modes: int | None
    entropy: float | None


def by_level(
    policy: SteeredPolicy,
    make: Callable[[], gymnasium.Env[Any, Any]],
    levels: Sequence[float],
    *,
    episodes: int,
    seed: int,
    report: Callable[[int], None] | None = None,
) -> list[LevelResult]:
    """Play the same scenes at each level, with noise drawn from the standard normal.

    Args:
        report: told episodes played.
    """
    env = MacroEnv(make(), execute=policy.execute, each_step=False)
    results = []
    for number, level in enumerate(levels):
        ends, solved = Counter[Any](), 0
        for episode in range(episodes):
            success, mode = _play(policy, env, level, np.random.default_rng([seed, number, episode]), episode)
            solved += success
            ends[mode] += 1
            if report is not None:
                report(number * episodes + episode + 1)
        told = [count for mode, count in ends.items() if mode is not None]
        low, high = wilson(solved, episodes)
        results.append(
            LevelResult(
                level=level,
                episodes=episodes,
                success=solved / episodes,
                low=low,
                high=high,
                modes=len(told) if told else None,
                entropy=entropy(told) if told else None,
            )
        )
    return results


def judge(folder: Path, make: Callable[[], gymnasium.Env[Any, Any]], *, episodes: int, seed: int) -> dict[str, float]:
    """Return the success of a checkpoint folder at level 0 with its 95 % interval, and the episodes played."""
    (told,) = by_level(LocalPolicy(folder), make, [0.0], episodes=episodes, seed=seed)
    figures = {"success": told.success, "success_low": told.low, "success_high": told.high}
    return {**figures, "episodes": float(told.episodes)}


def _play(
    policy: SteeredPolicy, env: MacroEnv, level: float, random: np.random.Generator, episode: int
) -> tuple[bool, Any]:
    state, over = env.reset(seed=800_000 + episode), False
    context = random.standard_normal((1, policy.context_size), np.float32)  # one trust, and one error, an episode
    while not over:
        noise = random.standard_normal((1, *policy.chunk), np.float32)
        steering = Steering(noise=noise, level=np.full(1, level, np.float32), context_noise=context)
        macro = env.step(policy.act(state[None], steering)[0])
        state, over = macro.observations[-1], macro.over
    return macro.success, macro.infos[-1].get("mode")
