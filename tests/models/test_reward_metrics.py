"""Metrics of reward models by hand values, and what the clock reaches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rewards.metrics import (
    average_precision,
    bootstrap,
    confusion,
    kendall,
    mean_ranking,
    pearson,
    ranking,
    ranks,
    spearman,
    value_order_correlation,
)
from models.rewards.scripted import clock

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


def test_correlations_by_hand():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])
    assert pearson(a, b) == pytest.approx(0.9819805)
    assert spearman(a, b) == pytest.approx(1.0)
    assert spearman(a, -b) == pytest.approx(-1.0)
    assert pearson(a, np.ones(3)) == spearman(np.ones(3), a) == 0.0
    assert ranks(np.array([10.0, 20.0, 10.0, 30.0])).tolist() == [1.5, 3.0, 1.5, 4.0]
    with pytest.raises(ValueError, match="equal vectors"):
        pearson(a, b[:2])


@given(VALUES, st.floats(0.1, 10), st.floats(-5, 5))
def test_correlations_are_bounded_and_scale_free(values, scale, shift):
    array = np.array(values)
    other = np.arange(len(array), dtype=float)
    assert -1.0 <= pearson(array, other) <= 1.0
    assert pearson(scale * array + shift, other) == pytest.approx(pearson(array, other), abs=1e-5)
    assert spearman(array, other) == pytest.approx(spearman(np.cbrt(array), other), abs=1e-6)


def test_kendall_counts_ties_as_nothing():
    assert kendall([0.1, 0.2, 0.3], [0, 1, 2]) == 1.0
    assert kendall([0.3, 0.2, 0.1], [0, 1, 2]) == -1.0
    assert kendall([0.1, 0.1, 0.3], [0, 1, 2]) == pytest.approx(2 / 3)
    assert kendall([0.5, 0.5, 0.5], [0, 1, 2]) == 0.0
    with pytest.raises(ValueError, match="no two differ"):
        kendall([0.1, 0.9], [1, 1])


def test_ranking_goes_over_all_tuples():
    found = ranking({"successful": [0.9, 0.5], "suboptimal": [0.6], "failure": [0.1]})
    assert found["kendall"] == pytest.approx((1.0 + (1 + 1 - 1) / 3) / 2)
    assert found["pairs"] == pytest.approx((1.0 + 1.0 + 0.5) / 3)
    assert found["gap_failure"] == pytest.approx(0.6)
    assert found["gap_suboptimal"] == pytest.approx(0.1)
    assert ranking({"successful": [1.0]}) is None
    assert mean_ranking([{"successful": [1.0], "failure": [0.0]}, {"successful": [1.0]}])["kendall"] == 1.0
    with pytest.raises(ValueError, match="two qualities"):
        mean_ranking([{"successful": [1.0]}])


def test_the_clock_agrees_with_time_and_ranks_nothing():
    random = np.random.default_rng(0)
    lengths = random.integers(20, 60, 40)
    assert value_order_correlation([clock(length) for length in lengths], pearson) == pytest.approx(1.0)
    finals = {
        quality: [float(clock(n)[-1]) for n in lengths[:5]] for quality in ("failure", "suboptimal", "successful")
    }
    assert ranking(finals)["kendall"] == 0.0
    with pytest.raises(ValueError, match="no trajectory"):
        value_order_correlation([], pearson)


def test_confusion_is_diagonal_less_the_rest():
    assert confusion(np.array([[0.9, 0.1], [0.3, 0.7]])) == pytest.approx(0.6)
    assert confusion(np.full((3, 3), 0.4)) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="n x n"):
        confusion(np.ones((2, 3)))


def test_average_precision_by_hand():
    assert average_precision([0.9, 0.8, 0.1], [True, True, False]) == 1.0
    assert average_precision([0.9, 0.8, 0.7], [False, True, True]) == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 3)
    assert average_precision([0.5, 0.5, 0.5, 0.5], [True, False, False, False]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="one of them true"):
        average_precision([0.1], [False])


@given(VALUES)
def test_the_interval_holds_the_mean_and_comes_back_the_same(values):
    low, high = bootstrap(values, draws=400)
    assert low <= high
    assert bootstrap(values, draws=400) == (low, high)
    assert min(values) - 1e-6 <= low
    assert high <= max(values) + 1e-6
