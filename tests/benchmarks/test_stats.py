from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.support.stats import summarize, turns


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=3000))
def test_percentiles_are_samples_and_in_order(samples):
    summary = summarize(samples)
    values = [summary.p50, summary.p90, summary.p99, summary.p999, summary.worst]
    assert values == sorted(values)
    assert set(values) <= set(samples)
    assert summary.worst == max(samples)
    assert summary.count == len(samples)


def test_percentiles_by_nearest_rank():
    summary = summarize([float(value) for value in range(1, 1001)])
    assert (summary.p50, summary.p90, summary.p99, summary.p999) == (500, 900, 990, 999)


def test_no_samples_have_no_summary():
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_every_contender_has_one_turn_in_each_round_and_orders_differ():
    order = list(turns("abcd", 20, random.Random(1)))
    rounds = ["".join(order[start : start + 4]) for start in range(0, 80, 4)]
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(rounds)) > 5
