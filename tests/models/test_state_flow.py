"""The state policy keeps the policy contract, and takes its noise and context from outside (checklist C7)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.policies.state_flow import StateFlowPolicy
from tests.models.policy_contract import PolicyContract, item


@pytest.fixture
def policy() -> StateFlowPolicy:
    return StateFlowPolicy(StateFlowPolicy.Config(checkpoint="zoo:eight-goals"))


class TestStateFlow(PolicyContract):
    pass


def test_what_was_drawn_can_be_given_and_gives_the_same(policy: StateFlowPolicy) -> None:
    drawn = item(policy.spec, 3)
    drawn = replace(drawn, options=replace(drawn.options, seed=None, context_level=0.4))
    (first,) = policy.act([drawn])
    assert first.seed is not None
    assert first.context_level == 0.4
    again = replace(drawn, options=replace(drawn.options, seed=first.seed))
    assert np.array_equal(policy.act([again])[0].actions, first.actions)


def test_explicit_noise_decides_alone(policy: StateFlowPolicy) -> None:
    random = np.random.default_rng(0)
    spec = policy.spec
    noise = random.standard_normal((spec.chunk_length, spec.action.size), np.float32)
    context = random.standard_normal(spec.context_size, np.float32)
    given = item(spec, 3, noise=noise, context_level=0.5, context_noise=context)
    first, second = (policy.act([replace(given, options=replace(given.options, seed=seed))])[0] for seed in (1, 2))
    assert np.array_equal(first.actions, second.actions)
    assert first.seed is None
    other = replace(given, options=replace(given.options, context_noise=-context))
    assert not np.allclose(policy.act([other])[0].actions, first.actions)


def test_neighbours_may_differ_in_everything(policy: StateFlowPolicy) -> None:
    options = ({"context_level": 0.0}, {"context_level": 1.0}, {}, {"integration_steps": 3})
    items = [item(policy.spec, index, **chosen) for index, chosen in enumerate(options)]
    together = policy.act(items)
    for index, one in enumerate(items):
        assert np.allclose(policy.act([one])[0].actions, together[index].actions, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_level": 1.5}, "context_level: 1.5, must be from 0 to 1"),
        ({"noise": np.zeros((2, 2), np.float32)}, r"noise: shape \(2, 2\)"),
        ({"context_noise": np.zeros(3, np.float32)}, r"context_noise: shape \(3,\)"),
        ({"leftover": np.zeros((2, 2), np.float32)}, "no real-time chunking"),
    ],
)
def test_what_it_cannot_use_is_refused(policy: StateFlowPolicy, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy.act([item(policy.spec, 1, **options)])
