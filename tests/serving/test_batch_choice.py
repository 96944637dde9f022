from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batch_choice import next_batch
from serving.batch_terms import ForwardTime


@dataclass(frozen=True)
class One:
    name: int
    deadline: float | None = None
    key: str = ""
    cost: float = 1.0


def line(base: float, each: float):
    return lambda cost: base + each * cost


def names(batch):
    return [one.name for one in batch]


def test_where_all_are_in_time_the_most_urgent_go():
    waiting = [One(index, deadline=1.0 + index) for index in range(6)]
    assert names(next_batch(waiting, now=0.0, max_cost=4, expect=line(0.03, 0.002))) == [0, 1, 2, 3]


def test_two_that_would_be_late_do_not_make_ten_late():
    late = [One(0, deadline=0.02), One(1, deadline=0.03)]
    waiting = late + [One(index, deadline=0.1) for index in range(2, 12)]
    assert names(next_batch(waiting, now=0.0, max_cost=16, expect=line(0.03, 0.002))) == list(range(2, 12))


def test_a_full_batch_does_not_make_its_most_urgent_late_where_a_smaller_one_brings_as_much():
    # Alone the first takes 32 of its 40 ms; with all the others it would take 62.
    waiting = [One(index, deadline=0.04) for index in range(16)]
    assert names(next_batch(waiting, now=0.0, max_cost=16, expect=line(0.03, 0.002))) == [0, 1, 2, 3, 4]


def test_late_is_better_than_never_where_nothing_is_in_time():
    waiting = [One(0, deadline=0.01), One(1, deadline=0.02)]
    assert names(next_batch(waiting, now=0.0, max_cost=16, expect=line(0.03, 0.002))) == [0, 1]


def test_without_a_deadline_there_is_no_late():
    waiting = [One(0), One(1, deadline=0.01), One(2)]
    assert names(next_batch(waiting, now=0.0, max_cost=16, expect=line(0.03, 0.002))) == [0, 1, 2]


def test_nothing_waits():
    assert next_batch([], now=0.0, max_cost=4, expect=line(0.03, 0.002)) == []


deadlines = st.one_of(st.none(), st.floats(0.001, 0.3))
ones = st.lists(st.tuples(deadlines, st.sampled_from("ab"), st.sampled_from([0.5, 1.0, 2.0])), max_size=7)


@given(ones, st.floats(0.0, 0.1), st.floats(0.0, 0.05), st.sampled_from([2.0, 4.0]))
def test_a_batch_keeps_its_budget_and_key_and_is_in_time_where_any_batch_is(drawn, base, each, max_cost):
    drawn.sort(key=lambda item: 10.0 if item[0] is None else item[0])
    waiting = [One(index, deadline, key, cost) for index, (deadline, key, cost) in enumerate(drawn)]
    expect = line(base, each)
    batch = next_batch(waiting, now=0.0, max_cost=max_cost, expect=expect)
    assert bool(batch) == bool(waiting)
    assert names(batch) == sorted(names(batch))
    assert sum(one.cost for one in batch) <= max_cost
    assert len({one.key for one in batch}) <= 1
    if not batch or waiting[0].deadline is None:
        return

    def in_time(group) -> bool:
        return expect(sum(one.cost for one in group)) <= min(one.deadline or math.inf for one in group)

    assert in_time(batch) == any(in_time([one]) for one in waiting)


@pytest.mark.parametrize(("base", "each"), [(0.03, 0.002), (0.0, 0.01), (0.05, 0.0)])
def test_the_forwards_of_a_linear_model_are_foreseen(base, each):
    times = ForwardTime()
    for cost in (1, 4, 2, 8, 3, 1):
        times.add(base + each * cost, cost)
    for cost in (1, 5, 16):
        assert times.expect(cost) == pytest.approx(base + each * cost)


def test_forwards_of_one_cost_say_nothing_of_others_and_none_say_nothing():
    times = ForwardTime()
    assert times.expect(4) == 0.0
    for _ in range(5):
        times.add(0.2, 1.0)
    assert times.expect(1) == times.expect(16) == pytest.approx(0.2)


def test_a_model_that_became_fast_is_believed():
    times = ForwardTime()
    for _ in range(50):
        times.add(1.0, 2.0)
    for _ in range(120):
        times.add(0.01, 2.0)
    assert times.expect(2.0) < 0.02


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 64)), max_size=30), st.floats(0, 64), st.floats(0, 64))
def test_what_is_expected_never_falls_with_the_cost(forwards, one, other):
    times = ForwardTime()
    for seconds, cost in forwards:
        times.add(seconds, cost)
    low, high = sorted((one, other))
    assert 0.0 <= times.expect(low) <= times.expect(high) + 1e-9
