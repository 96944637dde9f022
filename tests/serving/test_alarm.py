from __future__ import annotations

import asyncio

import pytest

from serving.alarm import Alarm


async def test_a_wait_over_the_limit_ends_in_a_timeout_and_the_task_goes_on():
    alarm = Alarm(0.02)
    for _ in range(3):
        with pytest.raises(TimeoutError), alarm:
            await asyncio.sleep(10)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
    alarm.stop()


async def test_waits_within_the_limit_pass_however_many_there_are():
    alarm = Alarm(0.2)
    for _ in range(30):
        with alarm:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.25)  # the timer fires while nobody waits
    with alarm:
        await asyncio.sleep(0.01)
    alarm.stop()


async def test_the_limit_counts_from_the_present_wait():
    alarm = Alarm(0.1)
    loop = asyncio.get_running_loop()
    with alarm:
        await asyncio.sleep(0.08)
    started = loop.time()
    with pytest.raises(TimeoutError), alarm:
        await asyncio.sleep(10)
    assert loop.time() - started >= 0.099
    alarm.stop()


async def test_an_error_of_the_wait_itself_passes():
    alarm = Alarm(1.0)
    with pytest.raises(ZeroDivisionError), alarm:
        raise ZeroDivisionError
    with alarm:
        await asyncio.sleep(0)
    alarm.stop()


async def test_a_cancellation_by_another_passes_even_where_the_alarm_rings_too():
    async def wait(alarm: Alarm) -> None:
        with alarm:
            await asyncio.sleep(10)

    for limit in (10.0, 0.0):
        alarm = Alarm(limit)
        task = asyncio.create_task(wait(alarm))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        alarm.stop()


async def test_it_is_handed_from_task_to_task_but_never_shared():
    alarm = Alarm(5.0)

    async def wait(seconds: float) -> None:
        with alarm:
            await asyncio.sleep(seconds)

    await asyncio.create_task(wait(0.0))
    await asyncio.create_task(wait(0.0))
    first = asyncio.create_task(wait(0.05))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one wait at a time"):
        await wait(0.0)
    await first
    alarm.stop()


async def test_a_stopped_alarm_leaves_nothing_behind():
    alarm = Alarm(0.05)
    with alarm:
        await asyncio.sleep(0)
    alarm.stop()
    alarm.stop()
    assert alarm._timer is None
    with pytest.raises(TimeoutError), alarm:
        await asyncio.sleep(10)
    alarm.stop()
