"""Eight objects and a hole: what is taken, what is paid, and that no one level does for both halves of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.common.environments.registry import make_env
from finetune.common.macro import MacroEnv
from finetune.tmrl.base import LocalPolicy
from models.folders import checkpoint_folder
from models.policies.steered.choice import Steering

HELD = 2


def test_the_expert_takes_what_is_named_and_puts_it_in_the_hole() -> None:
    env, random = make_env("eight-objects"), np.random.default_rng(0)
    for seed in range(10):
        seen, _ = env.reset(seed=seed)
        assert seen.shape == env.observation_space.shape == (13,)
        named, hole = int(seen[3:11].argmax()), seen[11:]
        over, paid = False, []
        while not over:
            before = seen
            seen, reward, terminated, truncated, info = env.step(env.unwrapped.expert(random))
            assert (seen[3:] == before[3:]).all()
            assert bool(seen[HELD]) == (info["mode"] is not None)
            paid.append(float(reward))
            over = terminated or truncated
        assert info == {"success": True, "mode": named}
        assert np.linalg.norm(seen[:2] - hole) < 0.1
        assert (paid[-1], sum(paid)) == (1.0, 2.0)


def shown(task: str) -> tuple[list[float], bool, dict[str, Any]]:
    env, random = make_env(task), np.random.default_rng(0)
    env.reset(seed=0)
    over, paid = False, []
    while not over:
        _, reward, terminated, truncated, info = env.step(env.unwrapped.expert(random))
        paid.append(float(reward))
        over = terminated or truncated
    return paid, terminated, info


def test_another_object_ends_the_episode_unpaid() -> None:
    paid, terminated, info = shown("eight-objects:named=3,shift=1")
    assert (sum(paid), terminated, info) == (0.0, True, {"success": False, "mode": 3})
    assert len(paid) < 15


def test_the_right_one_outside_the_hole_is_half_of_it() -> None:
    paid, terminated, info = shown("eight-objects:named=3,width=1e-6")
    assert (sum(paid), terminated, info) == (1.0, False, {"success": False, "mode": 3})
    assert len(paid) == 40


def test_an_empty_hand_over_the_hole_is_not_paid() -> None:
    env = make_env("eight-objects")
    seen, _ = env.reset(seed=1)
    for _ in range(12):
        seen, reward, terminated, _, info = env.step(np.clip((seen[11:] - seen[:2]) / 0.12, -1, 1))
        assert (reward, terminated, info["mode"]) == (0.0, False, None)
    assert np.linalg.norm(seen[:2] - seen[11:]) < 0.1


def solved(policy: LocalPolicy, *, first: float, then: float) -> float:
    """Play 40 episodes whose other object is the right one, at one level until it is taken and at another after.

    The noise points to it, as well as the context's noise can at its bound; after that there is none.
    """
    count = 0
    env = MacroEnv(make_env("eight-objects:named=0,shift=4"), execute=policy.execute, each_step=False)
    other = np.full((1, policy.context_size), -0.3, np.float32)
    other[0, [0, 4, 8, 9]] = [-1.0, 1.0, 0.0, 0.0]
    for seed in range(40):
        state, over = env.reset(seed=seed), False
        while not over:
            level, towards, noise = (then, 0 * other, 0.0) if state[HELD] else (first, other, -1.0)
            chunk = np.zeros((1, *policy.chunk), np.float32)
            chunk[..., 0] = noise
            steering = Steering(noise=chunk, level=np.full(1, level, np.float32), context_noise=towards)
            played = env.step(policy.act(state[None], steering)[0])
            state, over = played.observations[-1], played.over
        count += played.success
    return count / 40


def test_two_levels_do_what_no_single_one_does() -> None:
    policy = LocalPolicy(checkpoint_folder("zoo:eight-objects"))
    assert solved(policy, first=0.5, then=0.0) > 0.7
    for level in (0.0, 0.25, 0.5, 1.0):
        assert solved(policy, first=level, then=level) < 0.35
