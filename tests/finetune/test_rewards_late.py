"""Rewards of a served model in the jobs: no step without its reward, none twice, none out of order, none waited for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import pytest
import torch

from clients.errors import RoboserveError
from finetune.common.learning import JobConfig, LearningJob
from finetune.common.macro import Chosen, PaidMacros
from finetune.common.rewards import RewardConfig
from tests.serving.reward_running import RunningReward

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from finetune.common.macro import Macro


class Lamp(gymnasium.Env):
    """A lamp that an action makes brighter; its own reward is what nobody is to learn from."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium has it
    render_mode = "rgb_array"
    observation_space = gymnasium.spaces.Box(0, 255, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    instruction = "light the lamp"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._level, self._left = float(self.np_random.integers(40, 80)), 7
        return np.array([self._level], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._level = float(np.clip(self._level + 20 * float(action[0]), 0, 255))
        self._left -= 1
        return np.array([self._level], np.float32), -99.0, False, self._left == 0, {"success": False}

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), int(self._level), np.uint8)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningReward]:
    with RunningReward() as server:
        yield server


def play(running: RunningReward, *, lag: int, episodes: int = 3) -> tuple[list[Macro], list[int]]:
    """Return what was labelled, in order, and how many macros had come after each chunk that was played."""
    config = RewardConfig(source=f"served:{running.url}", lag=lag)
    random = np.random.default_rng(0)
    labelled: list[Macro] = []
    counts = []
    with config.connect() as client:
        wrapped = config.wrap(Lamp(), client)
        env = PaidMacros(wrapped, execute=3)
        for episode in range(episodes):
            env.reset(seed=episode)
            over = False
            while not over:
                over = env.step(random.uniform(-1, 1, (3, 1))).over
                labelled += env.labelled()
                counts.append(len(labelled))
        labelled += env.labelled(wait="all")
        assert env.labelled(wait="all") == []
        wrapped.close()
    return labelled, counts


def test_late_rewards_are_those_that_waiting_gives(running: RunningReward) -> None:
    waited, counts = play(running, lag=0)
    late, _ = play(running, lag=5)
    assert counts == list(range(1, 10))
    assert [len(macro.rewards) for macro in waited] == [3, 3, 1] * 3
    for one, other in zip(waited, late, strict=True):
        assert np.array_equal(one.observations, other.observations)
        assert np.allclose(one.rewards, other.rewards, atol=1e-6)
        assert np.allclose(other.rewards, other.observations[1:, 0].astype(int) / 255, atol=1e-6)
        assert one.over == other.over


class Pushes:
    """A learner that pushes at random and keeps what it is given."""

    execute, each_step, judged, modules, optimizers = 3, True, {"": "draw"}, {}, {}

    def __init__(self) -> None:
        self.chosen = 0
        self.kept: list[Macro] = []
        self.saved_without = 0

    def act(self, states: np.ndarray, generator: torch.Generator, mode: str) -> Chosen:
        chunks = torch.rand((len(states), 3, 1), generator=generator).numpy()
        numbers = range(self.chosen, self.chosen + len(chunks))
        if mode == "collect":
            self.chosen += len(chunks)
        return Chosen(chunks=chunks, notes=list(zip(numbers, chunks, strict=True)))

    def keep(self, macro: Macro) -> None:
        self.kept.append(macro)

    def learn(self, steps: int) -> list[dict[str, float]]:
        return []

    def facts(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        self.saved_without += self.chosen - len(self.kept)
        return {"kept": {"macros": np.array(len(self.kept))}}

    def load(self, state: dict[str, dict[str, np.ndarray]]) -> None:
        del state


@pytest.mark.parametrize("envs", [1, 2])
def test_a_job_keeps_every_step_once_in_order_and_paid_by_the_model(
    envs: int, running: RunningReward, tmp_path: Path
) -> None:
    reward = RewardConfig(source=f"served:{running.url}", lag=4)
    learner = Pushes()
    config = JobConfig(out=tmp_path, steps=40, evaluate_every=20, episodes=2, reward=reward, envs=envs)
    LearningJob(config, learner, Lamp, identity={}).train(lambda step, note: None)
    assert learner.saved_without == 0
    numbers = [macro.note[0] for macro in learner.kept]
    assert sorted(numbers) == list(range(learner.chosen))
    assert envs > 1 or numbers == sorted(numbers)
    for macro in learner.kept:
        chunk = macro.note[1]
        assert np.allclose(macro.actions, chunk[: len(macro.actions)])
        assert np.allclose(macro.rewards, macro.observations[1:, 0].astype(int) / 255, atol=1e-6)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(every, reward, shape\)"):
        LearningJob(replace(config, reward=RewardConfig()), learner, Lamp, identity={})


def test_without_a_model_the_environment_pays_at_once() -> None:
    env = PaidMacros(Lamp(), execute=3)
    env.reset(seed=0)
    played = env.step(np.ones((3, 1)))
    (labelled,) = env.labelled()
    assert labelled is played
    assert labelled.rewards.tolist() == [-99.0] * 3
    assert RewardConfig().identity == {"reward": "env"}


def test_what_pays_is_part_of_a_runs_identity_and_where_it_answers_is_not() -> None:
    here, there = (RewardConfig(source=f"served:ws://{host}:8000/reward/x").identity for host in ("a", "b"))
    assert here == there
    assert here["shape"]["form"] == "progress"


@pytest.mark.parametrize("source", ["served:", "robometer", "served: "])
def test_an_unknown_source_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="must be env, served:NAME or served:ADDRESS"):
        RewardConfig(source=source)


def test_a_task_without_words_is_refused(running: RunningReward) -> None:
    config = RewardConfig(source=f"served:{running.url}")
    silent = Lamp()
    silent.instruction = ""
    with config.connect() as client, pytest.raises(RoboserveError, match="no instruction"):
        config.wrap(silent, client)
