from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import RoboserveError
from serving.batcher import MonotonicClock
from tests.serving.batching import LIMIT_S, Bench, Work, outcome, until


async def test_one_item_is_answered_with_its_times():
    bench = Bench()
    served = await bench.batcher.submit(Work("a"))
    assert (served.result, served.batch_size) == ("a", 1)
    assert served.queue_s == served.batch_wait_s == 0.0
    await bench.batcher.close()


async def test_items_that_wait_ride_together():
    bench = Bench(max_cost=8)
    await bench.occupy()
    tasks = [bench.ask(name) for name in range(5)]
    await bench.queued(5)
    bench.model.release()
    assert [(await task).batch_size for task in tasks] == [5] * 5
    assert bench.model.names == [["first"], list(range(5))]
    await bench.batcher.close()


async def test_the_forward_never_runs_twice_at_once_and_never_on_the_loop():
    bench = Bench()
    tasks = [bench.ask(name) for name in range(10)]
    await asyncio.gather(*tasks)
    assert len(bench.model.threads) == 1
    assert threading.get_ident() not in bench.model.threads
    await bench.batcher.close()


async def test_the_loop_answers_while_a_forward_runs():
    bench = Bench(held=True)
    task = bench.ask("slow")
    await until(lambda: bench.model.waiting)
    ticks = 0
    for _ in range(100):
        await asyncio.sleep(0)
        ticks += 1
    assert ticks == 100
    assert not task.done()
    bench.model.release()
    assert await outcome(task) == "slow"
    await bench.batcher.close()


async def test_how_long_a_forward_has_run_can_be_seen():
    bench = Bench(held=True)
    task = bench.ask("slow")
    await until(lambda: bench.model.waiting)
    bench.clock.advance(7.0)
    assert bench.batcher.forward_running_s == 7.0
    bench.model.release()
    await task
    assert bench.batcher.forward_running_s == 0.0
    await bench.batcher.close()


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(0.1, 30.0)), min_size=1, max_size=12))
def test_the_most_urgent_goes_first_and_no_deadline_means_ten_seconds(deadlines):
    async def scenario():
        bench = Bench(max_cost=1)
        first = await bench.occupy()
        now = bench.clock.now()
        tasks = []
        for index, left in enumerate(deadlines):
            tasks.append(bench.ask(index, deadline=None if left is None else now + left))
            await bench.queued(index + 1)
        bench.model.release()
        await asyncio.gather(first, *tasks)
        await bench.batcher.close()
        return now, [names[0] for names in bench.model.names[1:]]

    now, served = asyncio.run(scenario())
    # Compared as absolute times, as the batcher does: two that differ by less than a rounding go in order of arrival.
    due = [now + (10.0 if left is None else left) for left in deadlines]
    assert served == sorted(range(len(deadlines)), key=lambda index: (due[index], index))


async def test_work_without_a_deadline_is_not_starved_by_a_stream_of_urgent_work():
    bench = Bench(max_cost=1, default_deadline_s=1.0)
    first = await bench.occupy()
    patient = bench.ask("patient")
    await bench.queued(1)
    others = []
    for index in range(20):
        others.append(bench.ask(index, deadline=bench.clock.now() + 0.3))
        await bench.queued(2)
        bench.model.let_go()
        await until(lambda index=index: len(bench.model.batches) == index + 2 and bench.model.waiting)
        bench.clock.advance(0.1)
        if patient.done() or ["patient"] in bench.model.names:
            break
    assert ["patient"] in bench.model.names
    assert bench.clock.now() - 100.0 <= 1.5
    bench.model.release()
    for _ in range(30):
        bench.model.let_go()
    await asyncio.gather(first, patient, *others, return_exceptions=True)
    await bench.batcher.close()


_ITEM = st.tuples(
    st.sampled_from(["a", "b", "c"]), st.sampled_from([0.5, 1.0, 2.0, 3.5, 4.0]), st.one_of(st.none(), st.floats(1, 9))
)


@settings(max_examples=60)
@given(st.lists(_ITEM, min_size=1, max_size=16))
def test_a_batch_has_one_key_and_stays_within_the_budget_and_everyone_is_answered(items):
    async def scenario():
        bench = Bench(max_cost=4.0)
        first = await bench.occupy()
        tasks = [
            bench.ask(Work((index, cost), key=key), cost=cost, deadline=left and bench.clock.now() + left)
            for index, (key, cost, left) in enumerate(items)
        ]
        await bench.queued(len(items))
        bench.model.release()
        results = [(await task).result for task in tasks]
        await first
        await bench.batcher.close()
        return results, bench.model.batches[1:]

    results, batches = asyncio.run(scenario())
    assert results == [(index, cost) for index, (_, cost, _) in enumerate(items)]
    assert sorted(work.name for batch in batches for work in batch) == sorted(results)
    for batch in batches:
        assert len({work.key for work in batch}) == 1
        assert sum(work.name[1] for work in batch) <= 4.0


async def test_an_item_over_the_whole_budget_is_refused():
    bench = Bench(max_cost=4.0)
    with pytest.raises(RoboserveError, match=r"cost: 5, limit 4") as caught:
        await bench.batcher.submit(Work("a"), cost=5.0)
    assert caught.value.code == "too_large"
    assert await outcome(bench.ask("b", cost=float("nan"))) == "too_large"
    assert await outcome(bench.ask("c", cost=4.0)) == "c"
    await bench.batcher.close()


async def test_late_work_is_refused_on_arrival():
    bench = Bench()
    with pytest.raises(RoboserveError, match="passed 250 ms ago") as caught:
        await bench.batcher.submit(Work("late"), deadline=bench.clock.now() - 0.25)
    assert caught.value.code == "deadline_exceeded"
    assert await outcome(bench.ask("nan", deadline=float("nan"))) == "deadline_exceeded"
    assert bench.model.batches == []
    assert bench.seen.drops == ["deadline_exceeded", "deadline_exceeded"]
    await bench.batcher.close()


@settings(max_examples=40)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=10), st.floats(0.0, 1.2))
def test_work_that_expires_in_the_queue_never_reaches_the_forward(lefts, passed):
    async def scenario():
        bench = Bench()
        first = await bench.occupy()
        start = bench.clock.now()
        tasks = [bench.ask(left, deadline=start + left) for left in lefts]
        await bench.queued(len(lefts))
        bench.clock.advance(passed)
        bench.model.release()
        results = [await outcome(task) for task in tasks]
        await first
        await bench.batcher.close()
        run = {work.name for batch in bench.model.batches[1:] for work in batch}
        now = bench.clock.now()
        for left, result in zip(lefts, results, strict=True):
            alive = start + left > now
            assert result == (left if alive else "deadline_exceeded")
            assert (left in run) == alive

    asyncio.run(scenario())


async def test_a_newer_observation_of_a_session_replaces_the_queued_one():
    bench = Bench()
    first = await bench.occupy()
    old = bench.ask("old", session="arm")
    other = bench.ask("other", session="leg")
    await bench.queued(2)
    new = bench.ask("new", session="arm")
    assert await outcome(old) == "superseded"
    assert bench.batcher.depth == 2
    bench.model.release()
    assert [await outcome(task) for task in (first, other, new)] == ["first", "other", "new"]
    assert bench.model.names == [["first"], ["other", "new"]]
    await bench.batcher.close()


async def test_what_is_already_in_the_forward_is_not_replaced():
    bench = Bench(held=True)
    running = bench.ask("running", session="arm")
    await until(lambda: bench.model.waiting)
    newer = bench.ask("newer", session="arm")
    await bench.queued(1)
    bench.model.release()
    bench.model.let_go()
    assert [await outcome(running), await outcome(newer)] == ["running", "newer"]
    await bench.batcher.close()


async def test_a_full_queue_refuses_and_says_so_and_takes_work_again_later():
    bench = Bench(max_queue=2)
    first = await bench.occupy()
    waiting = [bench.ask(name) for name in "ab"]
    await bench.queued(2)
    with pytest.raises(RoboserveError, match="queue: 2 requests waiting, limit 2") as caught:
        await bench.batcher.submit(Work("c"))
    assert caught.value.code == "overloaded"
    assert caught.value.retryable
    bench.model.release()
    assert [await outcome(task) for task in (first, *waiting)] == ["first", "a", "b"]
    assert await outcome(bench.ask("c")) == "c"
    await bench.batcher.close()


async def test_a_session_in_a_full_queue_may_replace_its_own():
    bench = Bench(max_queue=1)
    first = await bench.occupy()
    old = bench.ask("old", session="arm")
    await bench.queued(1)
    new = bench.ask("new", session="arm")
    bench.model.release()
    assert [await outcome(task) for task in (first, old, new)] == ["first", "superseded", "new"]
    await bench.batcher.close()


@pytest.mark.parametrize("fault", ["raise", "exit", "miscount"])
async def test_one_bad_item_fails_alone(fault):
    bench = Bench()
    await bench.occupy()
    tasks = [bench.ask(Work(name, fault=fault if name == "b" else "")) for name in "abc"]
    await bench.queued(3)
    bench.model.release()
    assert [await outcome(task) for task in tasks] == ["a", "policy_failed", "c"]
    assert bench.model.names == [["first"], ["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert await outcome(bench.ask("next")) == "next"
    await bench.batcher.close()


async def test_an_error_for_one_item_of_a_batch_is_that_items_own():
    bench = Bench()
    await bench.occupy()
    tasks = [bench.ask(Work(name, fault="error" if name == "b" else "")) for name in "abc"]
    await bench.queued(3)
    bench.model.release()
    assert [await outcome(task) for task in tasks] == ["a", "invalid_output", "c"]
    assert len(bench.model.batches) == 2
    await bench.batcher.close()


async def test_what_a_model_raises_is_told_to_the_log_and_not_to_the_client():
    bench = Bench()
    with pytest.raises(RoboserveError) as caught:
        await bench.batcher.submit(Work("a", fault="raise"))
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    await bench.batcher.close()


async def test_work_that_expires_while_a_broken_batch_is_asked_item_by_item_is_not_run():
    bench = Bench()
    await bench.occupy()
    bad = bench.ask(Work("bad", fault="raise"), deadline=bench.clock.now() + 1.0)
    good = bench.ask(Work("good"), deadline=bench.clock.now() + 2.0)
    await bench.queued(2)
    bench.model.let_go()
    await until(lambda: len(bench.model.batches) == 2 and bench.model.waiting)
    bench.clock.advance(0.5)
    bench.model.let_go()  # the batch raises; now each alone
    await until(lambda: len(bench.model.batches) == 3 and bench.model.waiting)
    bench.clock.advance(5.0)
    bench.model.release()
    assert [await outcome(bad), await outcome(good)] == ["policy_failed", "deadline_exceeded"]
    assert bench.model.names == [["first"], ["bad", "good"], ["bad"]]
    await bench.batcher.close()


async def test_a_request_given_up_in_the_queue_is_never_run():
    bench = Bench()
    first = await bench.occupy()
    gone, stays = bench.ask("gone", session="arm"), bench.ask("stays")
    await bench.queued(2)
    gone.cancel()
    await bench.queued(1)
    bench.model.release()
    assert [await outcome(first), await outcome(stays)] == ["first", "stays"]
    assert ["gone"] not in bench.model.names
    assert await outcome(bench.ask("again", session="arm")) == "again"
    await bench.batcher.close()


async def test_a_request_given_up_in_the_forward_leaves_its_neighbours_alone():
    bench = Bench()
    await bench.occupy()
    tasks = [bench.ask(name) for name in "abc"]
    await bench.queued(3)
    bench.model.let_go()
    await until(lambda: len(bench.model.batches) == 2 and bench.model.waiting)
    tasks[1].cancel()
    await asyncio.sleep(0)
    bench.model.release()
    assert [await outcome(tasks[0]), await outcome(tasks[2])] == ["a", "c"]
    assert tasks[1].cancelled()
    await bench.batcher.close()


async def test_replaced_requests_do_not_pile_up_behind_a_long_forward():
    bench = Bench()
    first = await bench.occupy()
    tasks = []
    for index in range(500):
        tasks.append(bench.ask(index, session="arm"))
        await asyncio.sleep(0)
    await bench.queued(1)
    assert len(bench.batcher._queue) == len(bench.batcher._by_session) == 1  # what it holds is what waits
    bench.model.release()
    assert await outcome(first) == "first"
    assert [await outcome(task) for task in tasks] == ["superseded"] * 499 + [499]
    await bench.batcher.close()


async def test_names_that_come_once_are_not_kept():
    bench = Bench(max_wait_s=0.0, active_window_s=0.5)
    for index in range(200):
        await bench.batcher.submit(Work(index), session=f"http-{index}")
        bench.clock.advance(0.1)
    assert len(bench.batcher._activity.seen) < 10
    await bench.batcher.close()


async def test_a_lone_session_is_never_made_to_wait():
    bench = Bench(max_wait_s=0.01)
    for index in range(20):
        await bench.batcher.submit(Work(index), session="arm")
        bench.clock.advance(0.02)
    assert bench.clock.waits == []
    await bench.batcher.close()


async def test_items_without_a_session_are_never_waited_for():
    bench = Bench(max_wait_s=0.01)
    for index in range(20):
        await bench.batcher.submit(Work(index))
    assert bench.clock.waits == []
    await bench.batcher.close()


async def test_a_fleet_is_gathered_and_leaves_as_soon_as_all_are_there():
    bench = Bench(max_wait_s=0.05)
    # both are known to be active
    await asyncio.gather(bench.ask("a", session=1), bench.ask("b", session=2))
    bench.clock.waits.clear()
    early = bench.ask("c", session=1)
    await until(lambda: bench.clock.waits != [])
    assert bench.model.names[-1] != ["c"]
    late = bench.ask("d", session=2)
    assert (await early).batch_size == (await late).batch_size == 2
    assert bench.clock.now() == 100.0  # no wait had to run out
    await bench.batcher.close()


async def test_gathering_ends_when_its_time_is_up():
    bench = Bench(max_wait_s=0.05)
    await asyncio.gather(bench.ask("a", session=1), bench.ask("b", session=2))
    bench.clock.waits.clear()
    lonely = bench.ask("c", session=1)
    await until(lambda: bench.clock.waits != [])
    bench.clock.advance(0.05)
    served = await asyncio.wait_for(lonely, LIMIT_S)
    assert served.batch_size == 1
    assert served.batch_wait_s == pytest.approx(0.05)
    assert sum(bench.clock.waits) <= 0.05 + 1e-9
    await bench.batcher.close()


async def test_a_session_that_left_is_not_waited_for_for_long():
    bench = Bench(max_wait_s=0.05, active_window_s=0.5)
    await asyncio.gather(bench.ask("a", session=1), bench.ask("b", session=2))
    bench.clock.waits.clear()
    bench.clock.advance(0.6)
    assert await outcome(bench.ask("c", session=1)) == "c"
    assert bench.clock.waits == []
    await bench.batcher.close()


async def test_the_adaptive_wait_is_a_part_of_the_forward_and_ten_milliseconds_at_most():
    bench = Bench(max_wait_s=None, active_window_s=1e6)
    bench.model.held = True
    for session in (1, 2):
        task = bench.ask("warm", session=session)
        for _ in range(2):
            await until(lambda: bench.model.waiting or bool(bench.clock.waits))
            if bench.model.waiting:
                break
            bench.clock.advance(0.011)
        bench.clock.advance(1000.0)
        bench.model.let_go()
        await task
    bench.clock.waits.clear()
    task = bench.ask("alone", session=1)
    await until(lambda: bench.clock.waits != [])
    assert max(bench.clock.waits) <= 0.010 + 1e-9
    bench.clock.advance(0.011)
    bench.model.release()
    await task
    await bench.batcher.close()


async def test_close_lets_the_running_forward_end_and_fails_what_waits():
    bench = Bench()
    running = await bench.occupy()
    waiting = [bench.ask(name) for name in "ab"]
    await bench.queued(2)
    closing = asyncio.create_task(bench.batcher.close())
    assert [await outcome(task) for task in waiting] == ["unavailable", "unavailable"]
    assert not running.done()
    bench.model.release()
    await closing
    assert await outcome(running) == "first"
    assert bench.batcher.closed
    assert await outcome(bench.ask("late")) == "unavailable"
    assert bench.model.names == [["first"]]


async def test_close_while_gathering_does_not_wait_the_gathering_out():
    bench = Bench(max_wait_s=1.0)
    await asyncio.gather(bench.ask("a", session=1), bench.ask("b", session=2))
    task = bench.ask("c", session=1)
    await until(lambda: bool(bench.clock.waits))
    await asyncio.wait_for(bench.batcher.close(), LIMIT_S)  # the clock stands still meanwhile
    assert await outcome(task) == "unavailable"


async def test_closing_an_unused_batcher_and_closing_twice():
    bench = Bench()
    await bench.batcher.close()
    await bench.batcher.close()
    assert await outcome(bench.ask("late")) == "unavailable"


async def test_a_fault_of_the_batcher_itself_leaves_nobody_waiting_and_shows():
    bench = Bench()

    def explode(size: int, forward_s: float) -> None:
        raise ZeroDivisionError

    bench.seen.on_batch = explode
    assert await outcome(bench.ask("a")) == "internal"
    await until(lambda: bench.batcher.closed)
    assert isinstance(bench.batcher.fault, ZeroDivisionError)
    assert await outcome(bench.ask("b")) == "unavailable"
    await bench.batcher.close()


async def test_other_work_runs_between_forwards_never_during_one():
    bench = Bench(held=True)
    task = bench.ask("a")
    await until(lambda: bench.model.waiting)
    order = []
    call = asyncio.create_task(bench.batcher.call(lambda: order.append(bench.model.waiting)))
    await asyncio.sleep(0.01)
    assert order == []
    bench.model.release()
    await call
    assert order == [False]
    await task
    await bench.batcher.close()
    with pytest.raises(RoboserveError, match="shutting down"):
        await bench.batcher.call(order.clear)


async def test_an_inline_forward_and_other_work_run_on_the_loop():
    bench = Bench(inline=True)
    tasks = [bench.ask(Work(name, fault="raise" if name == 3 else "")) for name in range(6)]
    assert [await outcome(task) for task in tasks] == [0, 1, 2, "policy_failed", 4, 5]
    threads = []
    await bench.batcher.call(lambda: threads.append(threading.get_ident()))
    assert bench.model.threads == set(threads) == {threading.get_ident()}
    await bench.batcher.close()
    assert await outcome(bench.ask("late")) == "unavailable"


async def test_inline_forwards_leave_the_loop_to_others_in_between():
    bench = Bench(inline=True, max_cost=1)
    tasks = [bench.ask(name) for name in range(20)]
    seen = []
    while not all(task.done() for task in tasks):
        seen.append(len(bench.model.batches))
        await asyncio.sleep(0)
    assert len(set(seen)) > 15
    await bench.batcher.close()


async def test_the_observer_sees_depth_batches_and_drops():
    bench = Bench(max_queue=1)
    first = await bench.occupy()
    second = bench.ask("second")
    await bench.queued(1)
    await outcome(bench.ask("third"))
    bench.model.release()
    await asyncio.gather(first, second)
    assert bench.seen.depths == [1, 0, 1, 0]
    assert bench.seen.sizes == [1, 1]
    assert bench.seen.drops == ["overloaded"]
    await bench.batcher.close()


_STEP = st.one_of(
    st.tuples(
        st.just("ask"),
        st.sampled_from("ab"),
        st.one_of(st.none(), st.sampled_from(["s", "t"])),
        st.one_of(st.none(), st.floats(0.05, 2.0)),
        st.sampled_from(["", "", "", "raise", "error", "miscount"]),
    ),
    st.tuples(st.just("advance"), st.floats(0.0, 1.0)),
    st.tuples(st.just("finish")),
    st.tuples(st.just("give_up"), st.integers(0, 30)),
)


class Chaos:
    """Plays a list of steps against a batcher whose model is held between them."""

    def __init__(self) -> None:
        self.bench = Bench(held=True, max_cost=3, max_queue=4)
        self.tasks: list[asyncio.Task] = []
        self.deadlines: list[float | None] = []

    async def play(self, steps) -> list:
        for name, *arguments in steps:
            await getattr(self, name)(*arguments)
        self.bench.model.held = False
        for _ in range(200):
            self.bench.model.let_go()
        results = await asyncio.wait_for(asyncio.gather(*self.tasks, return_exceptions=True), LIMIT_S)
        await self.bench.batcher.close()
        return results

    async def ask(self, key, session, left, fault) -> None:
        deadline = None if left is None else self.bench.clock.now() + left
        self.deadlines.append(deadline)
        work = Work(len(self.tasks), key=key, fault=fault)
        self.tasks.append(self.bench.ask(work, session=session, deadline=deadline))
        await self.settle()
        assert self.bench.batcher.depth <= 4

    async def advance(self, seconds) -> None:
        self.bench.clock.advance(seconds)

    async def finish(self) -> None:
        model = self.bench.model
        if not model.waiting:
            return
        seen = len(model.batches)
        model.let_go()
        await until(lambda: len(model.batches) > seen or not model.waiting)
        await self.settle()

    async def give_up(self, index) -> None:
        if index < len(self.tasks):
            self.tasks[index].cancel()

    async def settle(self) -> None:
        await until(lambda: self.bench.model.waiting or self.bench.batcher.depth == 0)
        await asyncio.sleep(0.001)


@settings(max_examples=80)
@given(st.lists(_STEP, max_size=25))
def test_whatever_happens_everyone_is_answered_once_and_no_promise_is_broken(steps):
    async def play():
        chaos = Chaos()
        return chaos, await chaos.play(steps)

    chaos, results = asyncio.run(play())
    model = chaos.bench.model
    for batch, at in zip(model.batches, model.times, strict=True):
        assert len({work.key for work in batch}) == 1
        assert len(batch) <= 3
        assert all(chaos.deadlines[work.name] is None or chaos.deadlines[work.name] > at for work in batch)
    runs = [work for batch in model.batches for work in batch]
    for name, result in enumerate(results):
        if not isinstance(result, asyncio.CancelledError):
            check_one(name, result, [work for work in runs if work.name == name])


def check_one(name, result, runs) -> None:
    faults = {"raise": "policy_failed", "miscount": "policy_failed", "error": "invalid_output"}
    if isinstance(result, RoboserveError):
        refused = result.code in {"superseded", "overloaded", "deadline_exceeded"}
        assert refused or result.code == faults[runs[0].fault]
    else:
        assert result.result == name
        assert len(runs) in (1, 2)  # 2: once with a neighbour that raised


async def test_the_real_clock_wakes_on_the_event_and_on_time():
    clock = MonotonicClock()
    event = asyncio.Event()
    start = clock.now()
    await clock.wait(event, 0.02)
    assert clock.now() - start >= 0.02
    event.set()
    await clock.wait(event, None)
    await clock.wait(event, LIMIT_S)
    assert time.monotonic() - start < LIMIT_S
