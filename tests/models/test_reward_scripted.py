"""The scripted reward model through the contract, and the clock."""

from __future__ import annotations

import numpy as np
import pytest

from models.rewards.scripted import BrightnessReward, clock
from tests.models.reward_contract import RewardContract


@pytest.fixture(scope="module")
def model():
    return BrightnessReward(BrightnessReward.Config())


class TestBrightness(RewardContract):
    """The model that other tests work answers out of keeps what every reward model promises."""


def test_the_clock_runs_from_nothing_to_done():
    np.testing.assert_allclose(clock(5), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert clock(1).tolist() == [1.0]
