"""Environments to learn in, side by side: nothing is mixed up, and a killed run ends as one that was not."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from finetune.common.environments.registry import make_env
from finetune.common.learning import JobConfig, LearningJob
from finetune.common.run import metrics
from finetune.tmrl.base import LocalPolicy
from finetune.tmrl.config import AgentConfig, TmrlConfig
from finetune.tmrl.learner import SteeringLearner
from models.folders import checkpoint_folder
from tests.finetune.test_ogpo_job import MAKERS, TASK, dppo_learner, drop
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune.common.learner import Learner
    from finetune.common.macro import Macro

ENVS = 3


def tmrl_learner() -> SteeringLearner:
    agent = AgentConfig(hidden=16, layers=1, critics=2, level_bound=0.0, context_bound=0.0)
    config = TmrlConfig(agent=agent, warmup=4, updates=1, batch=8)
    return SteeringLearner(config, LocalPolicy(checkpoint_folder("zoo:slot-clone")), states=3, seed=0)


def job(folder: Path, make: Callable[[], Learner], *, envs: int = ENVS, steps: int = 130) -> LearningJob:
    config = JobConfig(out=folder, steps=steps, evaluate_every=50, episodes=2, envs=envs)
    return LearningJob(config, make(), partial(make_env, TASK), identity={"method": make.__name__})


def kept(made: LearningJob, monkeypatch: pytest.MonkeyPatch) -> list[Macro]:
    """Run a job and return what its learner was given to keep."""
    given: list[Macro] = []
    keep = made.learner.keep

    def spy(macro: Macro) -> None:
        given.append(macro)
        keep(macro)

    monkeypatch.setattr(made.learner, "keep", spy)
    made.train(lambda *_: None)
    return given


@pytest.mark.parametrize("make", [*MAKERS, tmrl_learner])
def test_a_killed_run_ends_as_one_that_was_not(make: Callable[[], Learner], tmp_path: Path) -> None:
    whole = job(tmp_path / "whole", make)
    whole.train(lambda *_: None)

    def kill(step: int, _: str) -> None:
        if step > 100:
            raise KeyboardInterrupt

    killed = job(tmp_path / "killed", make)
    with pytest.raises(KeyboardInterrupt):
        killed.train(kill)
    resumed = job(tmp_path / "killed", make)
    assert resumed.counts.steps > 0
    resumed.train(lambda *_: None)
    rows = metrics(tmp_path / "whole")
    assert [drop(row) for row in rows] == [drop(row) for row in metrics(tmp_path / "killed")]
    assert rows[-1]["online_episodes"] % ENVS == 0
    assert rows[-1]["updates"] > 0
    for name, module in whole.learner.modules.items():
        assert parameters_hash(module) == parameters_hash(resumed.learner.modules[name]), name


def test_episodes_come_whole_with_what_was_noted_of_each_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(tmp_path, dppo_learner)
    given = kept(made, monkeypatch)
    before: Macro | None = None
    for macro in given:
        if before is not None and not before.over:
            np.testing.assert_array_equal(macro.observations[0], before.observations[-1])
        chunk = macro.note.points[-1].numpy()[: len(macro.actions)]
        np.testing.assert_allclose(np.clip(chunk, -1.0, 1.0), macro.actions, atol=1e-6)
        before = macro
    assert given[-1].over
    assert sum(macro.over for macro in given) == made.counts.episodes
    assert sum(len(macro.rewards) for macro in given) == made.counts.steps
    assert len({tuple(macro.observations[0]) for macro in given}) == len(given)  # each chunk once


def test_the_first_episodes_are_those_of_one_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = kept(job(tmp_path / "several", tmrl_learner), monkeypatch)
    alone = kept(job(tmp_path / "alone", tmrl_learner, envs=1), monkeypatch)
    starts = [
        [
            given[0].observations[0],
            *(two.observations[0] for one, two in pairwise(given) if one.over),
        ]
        for given in (several, alone)
    ]
    found, wanted = (sorted(map(tuple, some[:ENVS])) for some in starts)
    assert found == wanted  # the same scenes, whichever was over first


def test_a_run_with_other_environments_is_another(tmp_path: Path) -> None:
    job(tmp_path, tmrl_learner).train(lambda *_: None)
    with pytest.raises(ValueError, match=r"other settings \(envs\)"):
        job(tmp_path, tmrl_learner, envs=1)
    with pytest.raises(ValueError, match="envs"):
        JobConfig(out=tmp_path, envs=0)
