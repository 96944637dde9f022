"""OGPO's success buffer, slow policy, collection and settings, by small policies."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.common.experience import sources
from finetune.ogpo.advantage import blended, centred, penalised
from finetune.ogpo.config import ChiSquaredConfig, OgpoConfig, variant
from tests.chunk_learners import STATES, TINY, fill, learner, macro, replay

if TYPE_CHECKING:
    from finetune.common.critics import CriticEnsemble
    from models.policies.state_flow.network import StateFlowNetwork


# O7


def test_the_success_buffer_holds_steps_of_solved_episodes_alone() -> None:
    made = replay(2, macro([-1.0] * 3, truncated=True), macro([-1.0] * 3, terminated=True, first=50))
    made.add(macro([-1.0] * 2, first=90))
    assert made.solved == 3
    assert made.sample_solved(200, np.random.default_rng(0)).states.min() >= 50
    assert made.sample_solved(200, np.random.default_rng(0)).states.max() < 60


def test_cloning_waits_for_the_first_success_and_is_weighed() -> None:
    assert "cloning_loss" not in fill(learner(), solved=False).update(sources(0, 0))
    assert "cloning_loss" not in fill(learner(replace(TINY, cloning=0.0)), solved=True).update(sources(0, 0))
    moved = []
    for weight in (1.0, 1000.0):
        made = fill(learner(replace(TINY, cloning=weight)), solved=True)
        facts = made.update(sources(0, 0))
        assert facts["cloning_loss"] > 0
        moved.append(
            [parameter.grad.norm().item() for parameter in made.network.parameters() if parameter.grad is not None]
        )
    assert np.median(np.array(moved[1]) / np.array(moved[0])) > 50


# O8


def test_chi_squared_starts_as_a_constant_that_centring_cancels() -> None:
    values, ratio = torch.randn(3, 4, 8), torch.ones(4, 8)
    config = ChiSquaredConfig()
    advantage, beta = penalised(values, ratio, config)
    assert torch.allclose(advantage, centred(blended(values, ratio, config)), atol=1e-6)
    assert beta == pytest.approx(0.1 * values.std(dim=0).mean().item())
    assert torch.allclose(blended(values, ratio, config), (values.mean(dim=0) + values.min(dim=0).values) / 2)
    assert torch.allclose(blended(values, 10 * ratio, config), values.min(dim=0).values, atol=1e-5)


def test_the_slow_policy_moves_ten_times_slower_than_the_average() -> None:
    made = fill(learner(replace(variant(TINY, "ogpo+chi2"), learning_rate=1e-2)), solved=False)
    start = copy.deepcopy(made.network)
    for number in range(5):
        made.update(sources(0, number))

    def distance(network: StateFlowNetwork) -> float:
        pairs = zip(network.parameters(), start.parameters(), strict=True)
        return float(torch.stack([(first - second).detach().norm() for first, second in pairs]).norm())

    assert 8 < distance(made.average) / distance(made.slow) < 12
    assert float(made.state()["ratio"]["mean"]) < 1  # chains of the average are likelier under what is still near it


def test_chi_squared_narrows_the_upper_clip_when_critics_disagree() -> None:
    bounds: list[float] = []
    for most in (100.0, 1e-4):
        made = fill(
            learner(replace(TINY, advantage="group", chi_squared=ChiSquaredConfig(most_return=most))), solved=False
        )
        states = made.experience.sample(sources(0, 0).rows)
        with torch.no_grad():
            for parameter in made.network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        bounds.append(made.policy_loss(states, torch.Generator().manual_seed(0))[1]["clip_high"])
    assert bounds[0] == pytest.approx(1.01)
    assert 1 < bounds[1] < 1.01


# O10


def test_collection_takes_the_best_of_several_and_drawing_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(replace(TINY, best_of=16))

    def first(_critics: CriticEnsemble, states: Tensor, chunks: Tensor) -> Tensor:
        return chunks[:, 0, 0].reshape(1, len(states), -1).expand(3, -1, -1)

    monkeypatch.setattr(made, "values", first)
    states = np.zeros((20, STATES), np.float32)
    best = made.act(states, torch.Generator().manual_seed(0), "collect").chunks[:, 0, 0].mean()
    plain = made.act(states, torch.Generator().manual_seed(0), "draw").chunks[:, 0, 0].mean()
    assert best > plain + 0.5
    assert set(made.judged.values()) == {"collect", "draw"}


def test_replay_begins_empty_and_updates_wait_for_steps() -> None:
    made = learner(replace(TINY, experience=replace(TINY.experience, start=10, updates=0.5)))
    assert made.facts() == {"updates": 0, "kept_steps": 0, "solved_steps": 0}
    fill(made, solved=False)
    assert [len(list(made.learn(steps))) for steps in (11, 12, 20, 20)] == [0, 1, 4, 0]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="group, clip, cloning: 1"):
        OgpoConfig(group=1)
    with pytest.raises(ValueError, match="advantage: 'conservative', must be \"group\""):
        OgpoConfig(chi_squared=ChiSquaredConfig())
    with pytest.raises(ValueError, match="heads: 1, must be 2 or more"):
        OgpoConfig(heads=1, best_of=8)
