from __future__ import annotations

import asyncio
import itertools
import random
import time

import pytest

from benchmarks.fleet import Tally
from benchmarks.support.payloads import payload
from benchmarks.support.policies import AuditedSlowPolicy, Forward, read_audit
from benchmarks.support.processes import baseline
from benchmarks.support.robots import UNSENT, Asked, NativeRobotLine, OpenpiRobotLine, Pattern, Run, run_fleet
from models.policies.contract import ActItem, ActOptions, Observation
from models.policies.scripted import Interface

POLICY = "benchmarks.support.policies:AuditedSlowPolicy"


def item(seed):
    blank = payload(("front",), "raw", 0)
    observation = Observation(images=blank.images, state=blank.state, instruction="")
    return ActItem(observation=observation, options=ActOptions(seed=seed))


def test_the_audit_tells_work_begun_past_its_deadline_from_work_in_time(tmp_path):
    path = tmp_path / "audit"
    policy = AuditedSlowPolicy(AuditedSlowPolicy.Config(audit=str(path), base_ms=1.0, per_item_ms=0.0))
    now = time.monotonic()
    policy.act([item(int((now + 10) * 1e6)), item(None), item(int((now - 0.5) * 1e6))])
    (forward,) = read_audit(path)
    assert len(forward.deadlines) == 3
    assert forward.deadlines[1] is None
    assert forward.ended - forward.started >= 0.001
    (late,) = forward.late_ms
    assert 500 <= late < 5000


def test_no_audit_means_no_forwards(tmp_path):
    assert read_audit(tmp_path / "none") == []


def test_a_cadence_is_regular_with_a_random_phase():
    pattern = Pattern(name="c", period_s=0.2)
    times = list(pattern.times(100.0, 110.0, random.Random(3)))
    assert 100.0 <= times[0] < 100.2
    assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([0.2] * (len(times) - 1))
    assert times[0] != next(pattern.times(100.0, 110.0, random.Random(4)))


def test_poisson_times_have_the_mean_that_was_asked_for():
    pattern = Pattern(name="p", period_s=0.4, poisson=True)
    times = list(pattern.times(0.0, 4000.0, random.Random(5)))
    assert 4000.0 / len(times) == pytest.approx(0.4, rel=0.05)


def test_a_closed_loop_has_no_schedule():
    with pytest.raises(ValueError, match="no schedule"):
        next(Pattern(name="closed").times(0.0, 1.0, random.Random(0)))


def test_only_answers_within_the_deadline_count_and_what_was_never_sent_is_missed():
    asked = [
        Asked(due=0.0, answered=0.05, outcome="ok", batch=2),
        Asked(due=0.1, answered=0.35, outcome="ok", batch=2),
        Asked(due=0.2, answered=0.21, outcome="superseded"),
        Asked(due=0.3, answered=0.3, outcome=UNSENT),
    ]
    forwards = [
        Forward(started=0.02, ended=0.06, deadlines=(0.2, 0.01)),
        Forward(started=9.0, ended=9.1, deadlines=(1.0,)),
    ]
    tally = Tally(deadline_s=0.2)
    tally.add(Run(start=0.0, stop=1.0, asked=asked, client_cpu=0.1), forwards)
    row = tally.to_map()
    assert (row["act_per_s"], row["in_time_per_s"], row["deadline_miss_rate"]) == (2.0, 1.0, 0.75)
    assert row["batches"] == {"2": 1}  # the other forward was not in this turn
    assert row["items_run_past_deadline"] == 1
    assert row["longest_past_deadline_ms"] == pytest.approx(10.0)


@pytest.mark.parametrize(("style", "line"), [("openpi", OpenpiRobotLine), ("app", NativeRobotLine)])
def test_a_fleet_is_answered_and_the_policy_notes_the_robots_own_deadlines(tmp_path, style, line):
    path = tmp_path / "audit"
    config = {"audit": str(path), "base_ms": 2.0, "per_item_ms": 1.0}
    load = payload(("front",), "jpeg", 0)
    with baseline(style, POLICY, config) as port:
        fleet = run_fleet(
            lambda name: line.open(f"ws://127.0.0.1:{port}", load, name),
            3,
            Pattern(name="c", period_s=5.0),
            seconds=6.0,
            warm_up=0.0,
            seed=1,
        )
        run = asyncio.run(fleet)
    assert {entry.outcome for entry in run.asked} == {"ok"}
    assert len(run.asked) in (3, 4, 5, 6)
    deadlines = [mark for forward in read_audit(path) for mark in forward.deadlines if mark is not None]
    assert len(deadlines) == len(run.asked)
    assert sorted(deadlines) == pytest.approx(sorted(entry.due + 5.0 for entry in run.asked), abs=2.0)


def test_the_payload_is_what_its_name_says():
    load = payload(("front", "wrist"), "raw", 1)
    assert load.size == 2 * 224 * 224 * 3 + 8 * 4
    assert set(load.openpi()) == {"observation/front", "observation/wrist", "observation/state", "prompt"}
    assert payload(("front",), "jpeg", 1).size < load.size / 10
    assert Interface().state_size == load.state.size
