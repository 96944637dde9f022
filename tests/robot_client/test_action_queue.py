from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import RoboserveError
from robot_client.action_queue import MODES, ActionQueue, Nothing, QueueConfig, Row
from robot_client.merge import delay_ticks, temporal_ensemble, weighted_overlap

HZ = 10.0


def make_queue(mode: str = "async", *, execute: int = 4, max_age_s: float = 100.0, **options) -> ActionQueue:
    return ActionQueue(QueueConfig(mode=mode, **options), execute=execute, rate_hz=HZ, max_age_s=max_age_s)


def chunk(value: float, rows: int = 8) -> np.ndarray:
    """Rows that tell their chunk and their number: (value + row / 100, row)."""
    number = np.arange(rows, dtype=np.float32)
    return np.stack([value + number / 100, number], axis=1)


def put(queue: ActionQueue, actions: np.ndarray, anchor: int, *, now: float | None = None, **options) -> str:
    observed_at = anchor / HZ
    outcome, _ = queue.put(
        actions,
        epoch=options.pop("epoch", queue.epoch),
        anchor=anchor,
        observed_at=observed_at,
        now=observed_at if now is None else now,
        **options,
    )
    return outcome


def play(queue: ActionQueue, first: int, last: int) -> list[Row | Nothing]:
    return [queue.pop(tick, tick / HZ) for tick in range(first, last)]


def test_a_row_is_played_at_its_own_tick_and_rows_whose_tick_passed_are_gone():
    queue = make_queue()
    put(queue, chunk(1), 0)
    assert [item.row for item in play(queue, 0, 3)] == [0, 1, 2]
    assert queue.pop(6, 0.6).row == 6  # ticks 3, 4 and 5 were missed by the loop: their rows are not made up for
    assert queue.pop(7, 0.7).row == 7
    assert queue.pop(8, 0.8) == Nothing("empty")


def test_a_chunk_that_arrives_late_starts_at_the_row_of_the_present_tick():
    queue = make_queue()
    put(queue, chunk(1), 0)
    play(queue, 0, 7)
    assert put(queue, chunk(2), 4) == "played"
    row = queue.pop(7, 0.7)
    assert (row.row, row.chunk_id) == (3, 2)


def test_a_chunk_whose_ticks_have_all_passed_is_refused():
    queue = make_queue()
    put(queue, chunk(1), 0)
    play(queue, 0, 8)
    assert put(queue, chunk(2, rows=4), 3) == "late"
    assert queue.pop(8, 0.8) == Nothing("empty")


def test_a_robot_that_held_since_it_was_observed_starts_at_row_0():
    queue = make_queue()
    assert play(queue, 0, 5) == [Nothing("waiting")] * 5
    put(queue, chunk(1), 0)
    assert queue.pop(5, 0.5).row == 0


def test_a_chunk_asked_for_before_a_reset_is_never_played():
    queue = make_queue()
    epoch = queue.epoch
    put(queue, chunk(1), 0)
    queue.begin_epoch()
    assert put(queue, chunk(2), 0, epoch=epoch) == "old_epoch"
    assert queue.pop(0, 0.0) == Nothing("waiting")


def test_rows_of_an_old_observation_are_held_back():
    queue = make_queue(max_age_s=0.35)
    put(queue, chunk(1), 0)
    assert [type(item) for item in play(queue, 0, 4)] == [Row] * 4
    assert queue.pop(4, 0.4) == Nothing("stale")


def test_a_stale_chunk_does_not_colour_the_ensemble():
    queue = make_queue("ensemble", max_age_s=0.35)
    put(queue, chunk(1), 0)
    play(queue, 0, 3)
    put(queue, chunk(5), 3)
    assert queue.pop(5, 0.5).action == pytest.approx(chunk(5)[2])


def test_blocking_plays_its_rows_and_then_asks():
    queue = make_queue("blocking", execute=3)
    assert queue.wants(0)
    put(queue, chunk(1), 0)
    assert [queue.wants(tick) for tick in range(5)] == [False, False, False, True, True]
    assert [getattr(item, "row", None) for item in play(queue, 0, 4)] == [0, 1, 2, None]


def test_replace_takes_the_newest_chunk():
    queue = make_queue()
    put(queue, chunk(1), 0)
    play(queue, 0, 4)
    put(queue, chunk(2), 4)
    assert queue.pop(4, 0.4).action == pytest.approx(chunk(2)[0])


def test_ensemble_matches_an_oracle():
    queue = make_queue("ensemble")
    put(queue, chunk(1), 0)
    play(queue, 0, 2)
    put(queue, chunk(2), 2)
    play(queue, 2, 4)
    put(queue, chunk(9), 4)
    rows = [chunk(1)[5], chunk(2)[3], chunk(9)[1]]
    weights = [np.exp(-0.01 * index) for index in range(3)]
    oracle = sum(weight * row for weight, row in zip(weights, rows, strict=True)) / sum(weights)
    assert queue.pop(5, 0.5).action == pytest.approx(oracle, abs=1e-6)


def test_weighted_merge_matches_an_oracle_where_chunks_overlap_and_is_new_elsewhere():
    queue = make_queue("weighted")
    put(queue, chunk(1), 0)
    play(queue, 0, 4)
    put(queue, chunk(2), 4)
    for tick in range(4, 12):
        new = chunk(2)[tick - 4]
        oracle = 0.3 * chunk(1)[tick] + 0.7 * new if tick < 8 else new
        assert queue.pop(tick, tick / HZ).action == pytest.approx(oracle, abs=1e-6)


def test_rtc_hands_on_the_unplayed_rest_in_model_space():
    queue = make_queue("rtc")
    model_rows = chunk(1) * 3.0 + 7.0
    put(queue, chunk(1), 0, now=0.25, model_actions=model_rows)
    play(queue, 0, 5)
    found = queue.continuation(5)
    assert (found.executed, found.inference_delay) == (5, 3)  # 0.25 s at 10 Hz; 3 rows are left
    np.testing.assert_array_equal(found.leftover, model_rows[5:])
    assert make_queue("async").continuation(0) is None


def test_rtc_has_nothing_to_continue_when_the_chunk_is_played_out():
    queue = make_queue("rtc")
    put(queue, chunk(1), 0, model_actions=chunk(1))
    play(queue, 0, 8)
    assert queue.continuation(8) is None


def test_an_answer_is_asked_for_before_the_queue_is_empty():
    queue = make_queue(execute=8, margin=1)
    put(queue, chunk(1), 0, now=0.2)  # two ticks of latency
    assert [queue.wants(anchor) for anchor in range(9)] == [False] * 5 + [True] * 4


def test_a_chunk_shorter_than_the_latency_is_waited_for():
    queue = make_queue()
    play(queue, 0, 10)
    put(queue, chunk(1), 0, now=1.0)  # ten ticks of latency, eight rows
    assert [queue.wants(anchor) for anchor in range(10, 20)] == [False] * 8 + [True] * 2


def test_delay_is_the_longest_recent_latency_rounded_up():
    assert delay_ticks([0.1, 0.21, 0.05], 10.0) == 3
    assert delay_ticks([0.1], 10.0) == 1
    assert delay_ticks([], 10.0) == 0


@pytest.mark.parametrize(
    "options", [{"mode": "average"}, {"execute": 0}, {"max_age_s": 0.0}, {"old_weight": 1.5}, {"margin": -1}]
)
def test_wrong_settings_are_refused(options):
    with pytest.raises(RoboserveError, match=next(iter(options))):
        QueueConfig(**options)


@given(
    old_start=st.integers(0, 10),
    new_start=st.integers(0, 10),
    old_length=st.integers(1, 8),
    new_length=st.integers(1, 8),
    weight=st.floats(0, 1),
)
def test_weighted_overlap_agrees_with_a_loop(old_start, new_start, old_length, new_length, weight):
    old, new = chunk(1, old_length), chunk(4, new_length)
    blended = weighted_overlap((old_start, old), (new_start, new), old_weight=weight)
    for row in range(new_length):
        at = new_start + row - old_start
        oracle = weight * old[at] + (1 - weight) * new[row] if 0 <= at < old_length else new[row]
        np.testing.assert_allclose(blended[row], oracle, rtol=1e-5)


@given(rows=st.integers(1, 6), decay=st.floats(0, 2))
def test_an_ensemble_stays_within_its_members(rows, decay):
    members = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    mean = temporal_ensemble(members, decay=decay)
    assert (mean >= members.min(axis=0) - 1e-6).all()
    assert (mean <= members.max(axis=0) + 1e-6).all()


@dataclass
class _Asked:
    epoch: int
    anchor: int
    serial: int


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    moves=st.lists(st.sampled_from(["tick", "tick", "tick", "skip", "ask", "ask", "answer", "reset"]), max_size=60),
    rows=st.integers(1, 9),
)
def test_whatever_happens_only_rows_of_this_epoch_and_this_tick_are_played(mode, moves, rows):
    queue = make_queue(mode, execute=3, max_age_s=0.9)
    tick, serial, asked = 0, 0, []
    born: dict[int, _Asked] = {}
    shifted: dict[int, int] = {}
    last_played = -1
    for move in moves:
        now = tick / HZ
        if move == "skip":
            tick += 3
        elif move == "reset":
            queue.begin_epoch()
        elif move == "ask":
            serial += 1
            asked.append(_Asked(queue.epoch, tick, serial))
        elif move == "answer" and asked:
            request = asked.pop(0)
            outcome, chunk_id = queue.put(
                np.full((rows, 1), request.serial, np.float32),
                epoch=request.epoch,
                anchor=request.anchor,
                observed_at=request.anchor / HZ,
                now=now,
            )
            assert (chunk_id is not None) == (outcome == "played")
            if chunk_id is not None:
                born[chunk_id] = request
        elif move == "tick":
            found = queue.pop(tick, now)
            if isinstance(found, Row):
                request = born[found.chunk_id]
                assert request.epoch == queue.epoch
                assert found.age_s == pytest.approx(now - request.anchor / HZ)
                assert found.age_s <= 0.9 + 1e-9
                start = shifted.setdefault(found.chunk_id, tick - found.row)
                assert tick - found.row == start, "a chunk never moves along the schedule once it plays"
                assert start == request.anchor or last_played < request.anchor, "shifted though the robot had moved"
                assert 0 <= found.row < rows
                last_played = tick
            tick += 1
