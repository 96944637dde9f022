"""How well a learner does: fresh scenes, the same in every evaluation, played side by side."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune.common.intervals import entropy, wilson

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from finetune.common.learner import Learner, Mode
    from finetune.common.macro import Macro, MacroEnv

_EVALUATING = 2
_EVALUATION_SEEDS = 900_000


def noise(seed: int, purpose: int, number: int) -> torch.Generator:
    """Return a source that depends on all three."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, purpose, number]).generate_state(1)[0]))


def evaluate(
    learner: Learner,
    envs: list[MacroEnv],
    *,
    episodes: int,
    seed: int,
    mode: Mode = "draw",
    threads: ThreadPoolExecutor | None = None,
) -> dict[str, float]:
    """Play fresh scenes, the same in every evaluation, as many side by side as there are environments.

    Args:
        threads: play them at once, for environments in other processes.

    Returns:
        `success` with its 95 % interval, `episodes`, `return` and `steps` (means of an episode). Where the environment
        tells of successes in which of several ways (`mode`) they went: `ways`, the entropy of their shares, bits.
    """
    ends: list[Macro] = []
    side_by_side = map if threads is None else threads.map
    returns, steps = np.zeros(episodes), np.zeros(episodes)
    for first in range(0, episodes, len(envs)):
        lanes = _lanes(first, episodes, envs)

        def begin(lane: int, first: int = first) -> NDArray[np.float32]:
            return envs[lane].reset(seed=_EVALUATION_SEEDS + lane + first)

        states = dict(zip(lanes, side_by_side(begin, lanes), strict=True))
        decision = 0
        while states:
            source = noise(seed, _EVALUATING, first * 100_003 + decision)
            chunks = learner.act(np.stack(list(states.values())), source, mode).chunks
            decision += 1
            lane_order = list(states)
            macros = side_by_side(lambda lane, chunk: envs[lane].step(chunk), lane_order, chunks)
            for lane, macro in zip(lane_order, macros, strict=True):
                returns[first + lane] += float(macro.rewards.sum())
                steps[first + lane] += len(macro.rewards)
                states[lane] = macro.observations[-1]
                if macro.over:
                    ends.append(macro)
                    del states[lane]
    solved = sum(macro.success for macro in ends)
    low, high = wilson(solved, episodes)
    modes = Counter(macro.infos[-1]["mode"] for macro in ends if macro.success and "mode" in macro.infos[-1])
    return {
        "success": solved / episodes,
        "success_low": low,
        "success_high": high,
        "episodes": float(episodes),
        "return": float(returns.mean()),
        "steps": float(steps.mean()),
        **({"ways": entropy(list(modes.values()))} if modes else {}),
    }


def _lanes(first: int, episodes: int, envs: list[MacroEnv]) -> range:
    return range(min(len(envs), episodes - first))
