"""Looking costs: who needs to see only where decisions are made looks only there, and learns the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.common.environments.robot import RobotEnv
from finetune.common.learning import JobConfig
from finetune.common.run import metrics
from finetune.tmrl.base import LocalPolicy
from finetune.tmrl.config import AgentConfig, TmrlConfig
from finetune.tmrl.learner import SteeringLearner
from finetune.tmrl.train import TmrlJob
from models.policies.context_noise import ContextSchedule
from models.policies.flow_vla.head import ViewEncoder
from robot_client.robot import FeelingRobot, RobotObservation
from robot_client.robots.metaworld import MetaWorldRobot
from robot_client.robots.pointmass import PointMass
from tests.finetune.test_ogpo_job import drop
from tests.finetune.test_vla_head import TASK, checkpoint
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Feeling(PointMass):
    """A point mass that tells its state alone, and counts how often its camera is asked for."""

    looks = 0

    def observe(self) -> RobotObservation:
        self.looks += 1
        return super().observe()

    def feel(self) -> np.ndarray:
        return np.asarray(super().observe().state)


def test_a_robot_that_waits_is_looked_at_when_somebody_looks() -> None:
    robot = Feeling()
    assert isinstance(robot, FeelingRobot)
    env, plain = RobotEnv(robot), RobotEnv(PointMass())
    assert np.array_equal(env.reset(seed=3)[0], plain.reset(seed=3)[0])
    for _ in range(4):
        assert np.array_equal(env.step(np.ones(2))[0], plain.step(np.ones(2))[0])
    assert robot.looks == 0
    assert np.array_equal(env.render(), plain.render())
    assert np.array_equal(env.seen.state, plain.seen.state)
    assert robot.looks == 1
    env.step(-np.ones(2))
    plain.step(-np.ones(2))
    assert np.array_equal(env.render(), plain.render()), "a picture of before the step"


def test_a_robot_with_a_clock_is_looked_at_in_each_tick() -> None:
    robot = Feeling(control_hz=200.0)
    env = RobotEnv(robot, pace="clock")
    env.reset(seed=3)
    for _ in range(3):
        env.step(np.zeros(2))
    env.close()
    assert robot.looks == 4


def test_metaworlds_robot_feels_what_it_observes() -> None:
    robot = MetaWorldRobot("drawer-close", image_size=(16, 16))
    robot.reset(3)
    robot.act(np.array([0.3, -0.2, 0.1, 1.0]))
    assert np.array_equal(robot.feel(), robot.observe().state)
    robot.close()


def learned(folder: Path, base: Path) -> TmrlJob:
    agent = AgentConfig(hidden=16, layers=1, critics=2, context_bound=0.0, temperature=0.05)
    method = TmrlConfig(agent=agent, warmup=4, updates=1, batch=4)
    config = JobConfig(out=folder, steps=72, evaluate_every=48, episodes=2, lanes=2)
    job = TmrlJob(config, method, LocalPolicy(base), task=TASK)
    job.train(lambda *_: None)
    return job


def test_a_steered_vla_learns_the_same_from_looks_at_decisions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint(tmp_path / "base", context=ContextSchedule())
    encode, looks = ViewEncoder.encode, [0]

    def counted(self: ViewEncoder, *told: Any) -> Any:
        looks[0] += 1
        return encode(self, *told)

    monkeypatch.setattr(ViewEncoder, "encode", counted)
    sparing = learned(tmp_path / "sparing", base)
    # 24 steps an episode, 4 a decision: 3 to learn in and 3 evaluations of 2, each begun with a look
    assert looks == [(3 + 3 * 2) * (1 + 24 // 4)]
    assert np.isfinite(sparing.learner.replay.state()["states"][: sparing.learner.kept]).all()
    monkeypatch.setattr(SteeringLearner, "each_step", True)
    looks[0] = 0
    thorough = learned(tmp_path / "thorough", base)
    assert looks == [3 * (1 + 24) + 3 * 2 * (1 + 24 // 4)]
    rows = [[drop(row) for row in metrics(tmp_path / name)] for name in ("sparing", "thorough")]
    assert rows[0] == rows[1]
    hashes = [parameters_hash(job.learner.modules["actor"]) for job in (sparing, thorough)]
    assert hashes[0] == hashes[1]
