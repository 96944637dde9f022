"""A job whose reward model's replica is killed: it waits for the next one, and no step is lost, doubled or unpaid."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from finetune.common.learning import JobConfig, LearningJob
from finetune.common.rewards import RewardConfig
from finetune.common.run import metrics
from serving.ports import free_port
from tests.finetune.test_rewards_late import Lamp, Pushes
from tests.serving.platforms import Platform, configuration, start, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from finetune.common.macro import Macro

REPLICA = "ray::ServeReplica:reward-bright:"
BRIGHT: dict[str, Any] = {
    "name": "reward-bright",
    "route_prefix": "/reward/bright",
    "import_path": "serving.reward:build",
    "args": {"name": "bright", "reward": {"factory": "models.rewards.scripted:BrightnessReward", "config": {}}},
    "deployments": [{"name": "RewardService", "ray_actor_options": {"num_cpus": 0.5}}],
}
STEPS, EVERY = 210, 70


class Killing(Pushes):
    """A learner that kills the replica once it has kept so many macros, and never looks back."""

    def __init__(self, platform: Platform, *, after: int) -> None:
        super().__init__()
        self._platform, self._after = platform, after
        self.killed: list[int] = []

    def keep(self, macro: Macro) -> None:
        super().keep(macro)
        if len(self.kept) == self._after:
            [victim] = self._platform.processes(REPLICA)
            self.killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    port = free_port()
    running = start(tmp_path_factory.mktemp("bright"), configuration(port, [BRIGHT]), port)
    yield running
    assert stop(running) == [], "processes of the platform outlived it"


@pytest.mark.slow
def test_it_goes_on_with_the_next_replica_and_every_step_is_paid_once(served: Platform, tmp_path: Path) -> None:
    learner = Killing(served, after=25)
    reward = RewardConfig(source=f"served:{served.websocket('/reward/bright')}", lag=4)
    config = JobConfig(out=tmp_path, steps=STEPS, evaluate_every=EVERY, episodes=2, reward=reward)
    counts: list[int] = []
    LearningJob(config, learner, Lamp, identity={}).train(lambda step, note: counts.append(step))
    assert len(learner.killed) == 1
    assert served.processes(REPLICA)[0].pid not in learner.killed
    assert counts == list(range(7, STEPS + 1, 7))
    assert [row["env_steps"] for row in metrics(tmp_path)] == [0, EVERY, 2 * EVERY, STEPS]
    assert sum(len(macro.rewards) for macro in learner.kept) == STEPS
    assert [macro.note[0] for macro in learner.kept] == list(range(learner.chosen))
    for macro in learner.kept:
        chunk = macro.note[1]
        assert np.allclose(macro.actions, chunk[: len(macro.actions)])
        assert np.allclose(macro.rewards, macro.observations[1:, 0].astype(int) / 255, atol=1e-6)
