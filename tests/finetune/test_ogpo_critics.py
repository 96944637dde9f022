"""OGPO's critics: windows, targets and what they do not read, by hand-made values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.common.experience import sources
from finetune.common.replay import StepReplay
from finetune.ogpo.agent import OgpoLearner
from finetune.ogpo.config import OgpoConfig
from tests.chunk_learners import COLUMNS, DISCOUNT, ROWS, STATES, TINY, fill, learner, macro, policy, replay
from tests.weights import parameters_hash

# O6


def test_a_target_by_hand_over_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made = OgpoLearner(TINY, *policy(), seed=0)
    monkeypatch.setattr(made, "values", lambda _critics, states, _chunks: torch.full((3, len(states), 1), 8.0))
    whole = replay(3, macro([1.0, 2.0, 4.0], truncated=True)).windows(np.array([0]))
    assert whole.returns[0] == 1 + 0.5 * 2 + 0.25 * 4
    assert (whole.alive[0], whole.weights[0]) == (1, 1)
    assert whole.after[0].tolist() == [3.0] * STATES
    ended = replay(3, macro([1.0, 2.0], terminated=True), macro([50.0, 50.0])).windows(np.array([0]))
    assert ended.returns[0] == 1 + 0.5 * 2
    assert (ended.alive[0], ended.weights[0]) == (0, 1)
    assert ended.played[0].tolist() == [1, 1, 0]
    made.execute = 3
    for windows, follows in ((whole, 0.5**3 * 8.0), (ended, 0.0)):
        batch = made.experience._tensors(windows)
        assert made.targets(batch, torch.Generator()).tolist() == [pytest.approx(windows.returns[0] + follows)]


def test_where_fewer_rows_are_played_than_a_chunk_has_these_alone_have_a_value() -> None:
    made = StepReplay(capacity=100, state_size=STATES, action_size=COLUMNS, horizon=3, execute=2, discount=DISCOUNT)
    for one in (macro([1.0, 2.0]), macro([4.0], truncated=True), macro([8.0, 16.0], terminated=True), macro([1.0] * 2)):
        made.add(one)
    windows = made.windows(np.arange(4))
    assert windows.chunks.shape == (4, 3, COLUMNS)
    assert windows.returns.tolist() == [1 + 0.5 * 2, 2 + 0.5 * 4, 4.0, 8 + 0.5 * 16]
    assert windows.after[:, 0].tolist() == [2.0, 1.0, 1.0, 2.0]
    assert windows.weights.tolist() == [1, 1, 0, 1]
    assert windows.alive.tolist() == [1, 1, 1, 0]
    assert windows.played.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]
    with pytest.raises(ValueError, match="capacity, horizon, execute: 100, 3, 4"):
        StepReplay(capacity=100, state_size=STATES, action_size=COLUMNS, horizon=3, execute=4, discount=DISCOUNT)


def test_critics_read_the_rows_that_are_played_and_the_likelihood_is_of_all() -> None:
    whole, network = policy()
    short = replace(whole, config=replace(whole.config, execute=1))
    made = OgpoLearner(TINY, short, network, seed=0)
    batch = fill(made, solved=False).experience.sample(sources(0, 0).rows)
    changed = batch.chunks.clone()
    changed[:, 1:] = 0.5
    values = made.values(made.critics, batch.states, batch.chunks)
    torch.testing.assert_close(made.values(made.critics, batch.states, changed), values)
    changed[:, 0] += 0.1
    assert not torch.allclose(made.values(made.critics, batch.states, changed), values)
    loss, _ = made.policy_loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    last = [value.grad for value in network.parameters()][-1]
    assert last is not None
    assert last.reshape(whole.chunk)[1:].abs().max() > 0


def test_windows_that_cross_an_episodes_end_do_not_count() -> None:
    cut_off = replay(3, macro([1.0, 2.0], truncated=True), macro([50.0], terminated=True), macro([1.0]))
    windows = cut_off.windows(np.array([0, 1]))
    assert windows.weights.tolist() == [0, 0]
    assert windows.returns.tolist() == [2.0, 2.0]


def test_a_window_without_weight_teaches_the_critics_nothing() -> None:
    made = fill(learner(), solved=False)
    batch = made.experience.sample(sources(0, 0).rows)
    before = parameters_hash(made.critics)
    for group in made.optimizers["critics"].param_groups:
        group["weight_decay"] = 0.0
    made._regress(batch._replace(weights=torch.zeros(len(batch.weights))), torch.Generator())
    assert parameters_hash(made.critics) == before


# O9


def test_more_next_actions_make_the_target_vary_less() -> None:
    spreads = []
    for number in (1, 8):
        made = learner(replace(TINY, next_actions=number))
        for parameter in made.target.parameters():
            parameter.mul_(3.0)
        fill(made, solved=False)
        batch = made.experience.sample(sources(0, 0).rows, 1)
        drawn = [made.targets(batch, torch.Generator().manual_seed(seed)).item() for seed in range(400)]
        spreads.append(np.var(drawn))
    assert spreads[1] / spreads[0] == pytest.approx(1 / 8, rel=0.3)


# O10


def test_targets_take_the_heads_mean_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([[[1.0, 9.0]], [[3.0, 5.0]]])

    def target(**changes: object) -> float:
        config = replace(TINY, heads=2, **changes)  # type: ignore[arg-type]
        made = learner(config)
        drawn = config.next_actions * config.target_best_of
        monkeypatch.setattr(made, "values", lambda *_: values[..., :drawn])
        fill(made, solved=False)
        batch = made.experience.sample(sources(0, 0).rows, 1)
        batch = batch._replace(returns=torch.zeros(1), alive=torch.ones(1))
        return made.targets(batch, torch.Generator()).item() / DISCOUNT**ROWS

    assert OgpoConfig().aggregate == "mean"
    assert target() == pytest.approx(2.0)
    assert target(aggregate="min") == pytest.approx(1.0)
    assert target(next_actions=2) == pytest.approx(4.5)
    assert target(target_best_of=2) == pytest.approx(7.0)
    assert target(target_best_of=2, aggregate="min") == pytest.approx(5.0)
