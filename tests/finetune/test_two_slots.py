"""Two slots: the expert takes either, a success says which, and an evaluation how evenly they were taken."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from finetune.common.environments.registry import make_env
from finetune.common.intervals import entropy
from finetune.common.judging import evaluate
from finetune.common.macro import Chosen, MacroEnv


def test_the_expert_takes_either_and_it_is_told_which() -> None:
    env, random, taken = make_env("slot:slots=2"), np.random.default_rng(0), Counter[int]()
    for seed in range(40):
        seen, _ = env.reset(seed=seed)
        assert seen.shape == env.observation_space.shape == (4,)
        assert seen[2] < 0 < seen[3]
        over = False
        while not over:
            _, reward, terminated, truncated, info = env.step(env.unwrapped.expert(random))
            over = terminated or truncated
        assert (terminated, reward) == (info["success"], 0.0 if info["success"] else -1.0)
        taken[info["mode"]] += 1
    assert min(taken[0], taken[1]) > 8
    assert taken[None] < 8


def test_one_slot_is_no_choice() -> None:
    env = make_env("slot")
    env.reset(seed=0)
    assert "mode" not in env.step(np.zeros(2))[4]
    with pytest.raises(ValueError, match="slots: 3, must be 1 or 2"):
        make_env("slot:slots=3")


class Straight:
    """A policy that goes to the left slot, or to the one that is nearer."""

    def __init__(self, *, nearer: bool) -> None:
        self.nearer = nearer

    def act(self, states: np.ndarray, generator: object, mode: str) -> Chosen:
        aims = states[:, 2]
        if self.nearer:
            aims = np.where(np.abs(states[:, 3] - states[:, 0]) < np.abs(aims - states[:, 0]), states[:, 3], aims)
        across = (aims - states[:, 0]) / 0.1
        down = np.where(np.abs(across) < 0.05, -1.0, np.clip((0.15 - states[:, 1]) / 0.1, -1.0, 1.0))
        return Chosen(chunks=np.stack([across, down], axis=-1)[:, None].astype(np.float32))


def test_an_evaluation_tells_how_evenly_the_ways_were_taken() -> None:
    envs = [MacroEnv(make_env("slot:slots=2"), execute=1) for _ in range(10)]
    left, either = (evaluate(Straight(nearer=nearer), envs, episodes=20, seed=0) for nearer in (False, True))
    assert (left["success"], left["ways"]) == (1.0, 0.0)
    assert either["success"] == 1.0
    assert 0.6 < either["ways"] <= 1.0
    assert [entropy(counts) for counts in ([], [7], [3, 0, 3], [1, 1, 1, 1])] == [0.0, 0.0, 1.0, 2.0]
