"""Reward formulas: golden values, the telescoping sum, success by a majority of a window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import RoboserveError
from clients.reward_shaping import RewardShape, Shaper, delta_reward, potential_reward, progress_reward, succeeded

UNIT = st.floats(0.0, 1.0)


def paid(shape, progress, *, env=(), success=(), every=1, terminated=False):
    """Rewards of an episode whose frames have these values, of which every n-th and the last are judged."""
    shaper = Shaper(shape, progress[0])
    last = len(progress) - 1
    found = []
    for step in range(1, len(progress)):
        reward = env[step - 1] if env else 0.0
        if step % every and step != last:
            found.append(shaper.unjudged(reward))
        else:
            ends = terminated and step == last
            probability = success[step] if success else None
            found.append(shaper.judged(reward, progress[step], probability, terminated=ends))
    return found


def rewards(*arguments, **options):
    return [each.reward for each in paid(*arguments, **options)]


def test_golden_values():
    assert progress_reward(0.25) == 0.25
    assert delta_reward(0.25, 0.75) == 0.5
    assert potential_reward(0.25, 0.5, gamma=0.9, kappa=2.0) == pytest.approx(2 * (0.45 - 0.25))
    assert potential_reward(0.25, 0.5, gamma=0.5, steps=2) == pytest.approx(0.25 - 0.5)


def test_forms_pay_a_step_from_the_frames_around_it():
    progress = [0.1, 0.3, 0.2, 0.7]
    assert rewards(RewardShape(form="progress"), progress) == pytest.approx([0.3, 0.2, 0.7])
    assert rewards(RewardShape(form="delta"), progress) == pytest.approx([0.2, -0.1, 0.5])
    shape = RewardShape(form="potential", gamma=0.5, kappa=2.0)
    assert rewards(shape, progress) == pytest.approx([0.1, -0.4, 0.3])
    assert rewards(shape, progress, terminated=True) == pytest.approx([0.1, -0.4, -0.4]), "an end has no potential"


def test_the_weighted_sum_with_the_environment_and_the_bonus():
    shape = RewardShape(form="delta", model_weight=10.0, env_weight=0.5, success_bonus=5.0, threshold=0.5, window=1)
    found = paid(shape, [0.0, 0.1, 0.3], env=(2.0, -4.0), success=(0.0, 0.4, 0.6))
    assert [each.reward for each in found] == pytest.approx([2.0, 5.0])
    assert [each.model for each in found] == pytest.approx([0.1, 0.2])
    assert [each.success for each in found] == [False, True]


def test_every_step_costs_whether_it_is_judged_or_not():
    shape = RewardShape(form="delta", env_weight=1.0, step_cost=0.01)
    free = RewardShape(form="delta", env_weight=1.0)
    progress, env = [0.0, 0.1, 0.3, 0.2], (1.0, 2.0, 3.0)
    for every in (1, 2):
        wanted = [each - 0.01 for each in rewards(free, progress, env=env, every=every)]
        assert rewards(shape, progress, env=env, every=every) == pytest.approx(wanted)


@given(st.lists(UNIT, min_size=2, max_size=40), st.floats(0.5, 1.0), st.floats(0.1, 3.0), st.integers(1, 5))
def test_potential_shaping_telescopes_whatever_is_judged(progress, gamma, kappa, every):
    found = rewards(RewardShape(form="potential", gamma=gamma, kappa=kappa), progress, every=every)
    total = sum(gamma**step * reward for step, reward in enumerate(found))
    horizon = len(progress) - 1
    assert total == pytest.approx(kappa * (gamma**horizon * progress[-1] - progress[0]), abs=1e-9)


@given(st.lists(UNIT, min_size=2, max_size=40), st.integers(1, 5))
def test_differences_sum_to_the_last_less_the_first(progress, every):
    assert sum(rewards(RewardShape(form="delta"), progress, every=every)) == pytest.approx(progress[-1] - progress[0])


def test_steps_between_judged_frames_get_nothing_from_the_model():
    progress = [0.0, 0.9, 0.2, 0.9, 0.4, 0.9, 0.9]
    assert rewards(RewardShape(), progress, every=2) == pytest.approx([0.0, 0.2, 0.0, 0.4, 0.0, 0.9])


@pytest.mark.parametrize(
    ("values", "threshold", "window", "expected"),
    [
        ([0.9], 0.65, 2, False),
        ([0.9, 0.64], 0.65, 2, False),
        ([0.65, 0.65], 0.65, 2, True),
        ([0.1, 0.7, 0.7], 0.65, 2, True),
        ([0.7, 0.1, 0.7], 0.65, 3, True),
        ([0.7, 0.7, 0.1, 0.1], 0.65, 4, False),
        ([0.0, 0.5], 0.5, 1, True),
        ([0.5, 0.0], 0.5, 1, False),
        ([], 0.5, 1, False),
    ],
)
def test_success_is_a_strict_majority_of_the_last_values(values, threshold, window, expected):
    assert succeeded(values, threshold=threshold, window=window) is expected


def test_seen_success_ends_the_episode_where_it_is_asked_to():
    probabilities = (0.0, 0.9, 0.9, 0.9)
    ends = [each.terminated for each in paid(RewardShape(terminate=True), [0.5] * 4, success=probabilities)]
    assert ends == [False, True, True]
    assert not any(each.terminated for each in paid(RewardShape(), [0.5] * 4, success=probabilities))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"form": "cubic"}, "allowed are progress, delta, potential"),
        ({"window": 0}, "window: 0"),
        ({"gamma": 0.0}, "gamma: 0"),
        ({"threshold": np.nan}, "threshold: nan"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options, text):
    with pytest.raises(RoboserveError, match=text):
        RewardShape(**options)
