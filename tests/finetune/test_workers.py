"""Rollout workers: the same run as without, and one whose worker is killed goes on as if it had not been."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from clients.errors import RoboserveError
from finetune.common.environments.registry import make_env
from finetune.common.environments.seeing import maker
from finetune.common.learning import JobConfig
from finetune.common.macro import MacroEnv
from finetune.common.run import metrics
from finetune.common.worker_envs import WorkerEnv, played
from finetune.common.workers import Worker
from finetune.ogpo.train import OgpoJob
from finetune.tmrl.base import LocalPolicy
from models.folders import checkpoint_folder
from tests.finetune.test_ogpo_job import TINY, drop
from tests.finetune.test_rewards_late import Lamp
from tests.finetune.test_vla_head import checkpoint
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TASK = "slot:shift=0.018"


class Drifting(Lamp):
    """A lamp that is never twice the same."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._level += float(np.random.default_rng().uniform(0.1, 1.0))
        return super().step(action)


class Poisoned(Lamp):
    """A lamp that takes its process with it."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if action[0] > 0.5:
            os._exit(1)
        if action[0] < -0.5:
            raise RoboserveError("invalid_output", "action: too dark")
        return super().step(action)


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


def run(folder: Path, *, workers: int, envs: int, kill_at: tuple[int, ...] = ()) -> OgpoJob:
    config = JobConfig(out=folder, steps=130, evaluate_every=40, episodes=3, lanes=2, workers=workers, envs=envs)
    job = OgpoJob(config, replace(TINY, best_of=2), checkpoint_folder("zoo:slot-clone"), task=TASK)
    left = list(kill_at)

    def kill(step: int, _: str) -> None:
        if left and step >= left[0]:
            os.kill(job.workers[left.pop(0) % workers].pid, signal.SIGKILL)

    job.train(kill)
    assert left == []
    assert sum(worker.losses for worker in job.workers) == len(kill_at)
    return job


@pytest.mark.parametrize("envs", [1, 3])
def test_a_run_with_workers_that_die_is_the_run_without_any(
    envs: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if envs > 1:  # the first starts a Ray of its own, as a job does where there is none
        request.getfixturevalue("_ray")
    whole = run(tmp_path / "whole", workers=0, envs=envs)
    broken = run(tmp_path / "broken", workers=2, envs=envs, kill_at=(30, 71))
    rows = metrics(tmp_path / "broken")
    assert [drop(row) for row in metrics(tmp_path / "whole")] == [drop(row) for row in rows]
    assert rows[-1]["updates"] > 0
    for name, module in whole.learner.modules.items():
        assert parameters_hash(module) == parameters_hash(broken.learner.modules[name]), name


@pytest.mark.usefixtures("_ray")
def test_an_episode_whose_worker_dies_goes_on_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    here = Lamp()
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 1)).astype(np.float32)
    with played(Lamp, workers=1, learning=1, judged=1, draw=True) as there:
        (env,), (other,) = there.learning, there.judged
        assert (env.instruction, env.render_mode, other.render_mode) == ("light the lamp", "rgb_array", None)
        assert env.reset(seed=4)[0] == here.reset(seed=4)[0]
        other.reset(seed=5)
        for count, action in enumerate(actions):
            if count in (2, 5):
                os.kill(there.workers[0].pid, signal.SIGKILL)
            told, wanted = env.step(action), here.step(action)
            assert told[0] == wanted[0]
            assert told[1:] == wanted[1:]
            assert np.array_equal(env.render(), here.render())
        assert other.step(actions[0])[0].shape == (1,)
        assert there.workers[0].losses == 2
    died = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in died] == [
        f"a rollout worker died; the next one plays {steps} steps again" for steps in (2, 5)
    ]


@pytest.mark.usefixtures("_ray")
def test_a_robot_that_a_worker_plays_is_looked_at_where_decisions_are_made(tmp_path: Path) -> None:
    make = maker("robot:name=pointmass,horizon=24", LocalPolicy(checkpoint(tmp_path)).encoder)
    chunk = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    with played(make, workers=1, learning=1, judged=1, draw=False) as there:
        env, here = (MacroEnv(one, execute=4, each_step=False) for one in (there.learning[0], make()))
        assert np.array_equal(env.reset(seed=4), here.reset(seed=4))
        for count in range(3):
            if count:
                os.kill(there.workers[0].pid, signal.SIGKILL)
            ours, wanted = env.step(chunk), here.step(chunk)
            assert np.array_equal(ours.observations, wanted.observations, equal_nan=True)
            assert np.isnan(ours.observations[1:4]).all()
            assert np.isfinite(ours.observations[[0, 4]]).all()
        assert there.workers[0].losses == 2


@pytest.mark.usefixtures("_ray")
def test_what_cannot_be_played_again_is_said_and_does_not_go_on() -> None:
    with played(Drifting, workers=1, learning=1, judged=1, draw=False) as there:
        (env,) = there.learning
        env.reset(seed=0)
        env.step(np.zeros(1, np.float32))
        os.kill(there.workers[0].pid, signal.SIGKILL)
        with pytest.raises(RoboserveError, match="lane 0, seed 0: played again, its 1 steps led elsewhere"):
            env.step(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="a robot with a clock of its own"):
        Worker(partial(make_env, "robot:name=pointmass,pace=clock"), lanes=1)


@pytest.mark.usefixtures("_ray")
def test_refusals_come_through_and_a_step_that_kills_every_worker_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.common.workers._MOST_DEATHS", 1)
    worker = Worker(Poisoned, lanes=1)
    env = WorkerEnv(worker, 0, draw=False)
    with pytest.raises(RoboserveError, match="reset must come before"):
        env.step(np.zeros(1, np.float32))
    env.reset()
    with pytest.raises(RoboserveError, match="too dark") as caught:
        env.step(np.full(1, -1.0, np.float32))
    assert caught.value.code == "invalid_output"
    with pytest.raises(IndexError):
        env.step(np.zeros(0, np.float32))
    env.step(np.zeros(1, np.float32))
    with pytest.raises(RoboserveError, match="workers: 2 died one after the other"):
        env.step(np.ones(1, np.float32))
    worker.close()
