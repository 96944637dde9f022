"""Environments whose goal is seen: MetaWorld's and OGBench's own success, scenes by seed, and the shifts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from finetune.common.demonstrations import demonstrate
from finetune.common.environments.registry import make_env

if TYPE_CHECKING:
    import gymnasium
    from numpy.typing import NDArray

CUBE, REACH = "ogbench-cube", "metaworld-goals:task=reach"


def shown(env: gymnasium.Env[Any, Any], seed: int | None, steps: int) -> list[NDArray[np.float32]]:
    """Play the expert and return what is seen."""
    random = np.random.default_rng(0)
    seen = [env.reset(seed=seed)[0]]
    expert: Any = env.unwrapped
    return [*seen, *(env.step(expert.expert(random))[0] for _ in range(steps))]


@pytest.mark.parametrize("task", [CUBE, f"{CUBE}:task=4", REACH])
def test_the_expert_solves_it_and_success_ends_the_episode(task: str) -> None:
    found = demonstrate(make_env(task), episodes=3, chunk_length=4, seed=1)
    assert found.success == 1.0
    env = make_env(task)
    assert found.states.shape[1:] == env.observation_space.shape
    assert found.chunks.shape[1:] == (4, *(env.action_space.shape or ()))
    assert len(found.states) < 3 * 150  # none went on to its horizon


@pytest.mark.parametrize("task", [CUBE, REACH])
def test_a_scene_depends_on_its_seed_alone(task: str) -> None:
    env, other = make_env(task), make_env(task)
    once = [*shown(env, 7, 12), *shown(env, None, 3)]
    shown(other, 8, 20)
    again = [*shown(other, 7, 12), *shown(other, None, 3)]
    for one, two in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(once[0], shown(env, 8, 0)[0])


@pytest.mark.parametrize(("task", "column"), [(CUBE, 29), (REACH, 36)])
def test_a_mirrored_goal_is_named_and_not_where_it_is(task: str, column: int) -> None:
    joint = "," if ":" in task else ":"
    true, mirrored = make_env(task), make_env(f"{task}{joint}named=mirrored")
    for seed in range(3):
        own, named = true.reset(seed=seed)[0], mirrored.reset(seed=seed)[0]
        assert named[column] == pytest.approx(-own[column], abs=1e-6)
        np.testing.assert_array_equal(np.delete(own, column), np.delete(named, column))
    assert demonstrate(mirrored, episodes=1, chunk_length=4, seed=0).success == 1.0  # the expert knows better


@pytest.mark.parametrize("side", ["left", "right"])
def test_goals_lie_on_their_side(side: str) -> None:
    env = make_env(f"{REACH},side={side}")
    places = np.array([env.reset(seed=seed)[0][36] for seed in range(20)])
    assert ((places < 0) == (side == "left")).all()


def test_ogbench_tasks_are_its_own() -> None:
    goals = {task: make_env(f"{CUBE}:task={task}").reset(seed=0)[0] for task in (1, 4)}
    np.testing.assert_allclose(goals[1][28:], [0.0, -1.0, 0.2], atol=1e-6)  # (0.425, -0.1, 0.02) m
    np.testing.assert_allclose(goals[4][28:], [0.75, 2.0, 0.2], atol=1e-6)  # (0.5, 0.2, 0.02) m
    np.testing.assert_allclose(goals[4][19:21], [-0.75, -2.0], atol=0.11)  # the cube, within 1 cm of (0.35, -0.2) m


@pytest.mark.parametrize("task", [CUBE, REACH])
@pytest.mark.parametrize(("paid", "before", "last"), [("success", 0.0, 1.0), ("time", -1.0, 0.0)])
def test_what_a_step_is_paid(task: str, paid: str, before: float, last: float) -> None:
    env = make_env(f"{task}{',' if ':' in task else ':'}paid={paid}")
    env.reset(seed=3)
    expert: Any = env.unwrapped
    rewards = []
    for _ in itertools.count():
        _, reward, terminated, truncated, info = env.step(expert.expert(np.random.default_rng(0)))
        rewards.append(reward)
        assert info["success"] == terminated
        if terminated or truncated:
            break
    assert terminated
    assert rewards == [*[before] * (len(rewards) - 1), last]


def test_an_episode_without_success_is_cut_off_and_seen() -> None:
    env = make_env(f"{CUBE}:horizon=5,image_size=64")
    env.reset(seed=0)
    ends = [env.step(np.zeros(5, np.float32))[2:4] for _ in range(5)]
    assert ends == [*[(False, False)] * 4, (False, True)]
    frame: Any = env.render()
    assert (frame.shape, frame.dtype) == ((64, 64, 3), np.uint8)
    assert frame.std() > 5
    env.close()


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (f"{CUBE}:task=6", "task, horizon, image_size: 6, 200, 96, must be 0 to 5, >= 1, >= 1"),
        (f"{CUBE}:paid=well", "paid: 'well', must be one of success, time"),
        (f"{REACH},named=wrongly", "named: 'wrongly', must be one of true, mirrored"),
        (f"{REACH},side=up", "side: 'up', must be one of left, right, any"),
        (f"{CUBE}:paid=time,worth=30", "worth: 30, is of success, and paid is time"),
        (f"{REACH},worth=0", "worth: 0, must be above 0"),
        (f"{CUBE}:colour=red", "colour"),
    ],
)
def test_what_it_does_not_take_is_named(task: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_env(task)
