"""A new configuration on a running platform: what it changes is restarted gracefully, the rest goes on."""

from __future__ import annotations

import copy
import time

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.serving.platforms import SIZE, application
from tests.serving.speaking import LIMIT_S, act, talk

pytestmark = pytest.mark.usefixtures("neighbour")

ROLLING = "/policy/rolling"
ROLLOUT_S = 90.0


def test_a_policy_is_rolled_out_and_its_sessions_are_told_to_come_back(platform, record_property):
    names = ("zero", "slow", "crashing", "strict", "replay", "locked")
    before = {name: platform.replicas(name) for name in names}
    wanted = copy.deepcopy(platform.configuration)
    settings = next(entry for entry in wanted["applications"] if entry["name"] == "policy-rolling")
    settings["args"]["policy"]["config"]["interface"]["chunk_length"] = 8
    with talk(platform, ROLLING) as session:
        assert session.first["chunk_length"] == 16
        platform.deploy(wanted)
        platform.configuration = wanted
        started = time.monotonic()
        with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012  it ends when the session is closed
            while time.monotonic() - started < ROLLOUT_S:
                assert session.ask(act())["actions"].shape == (16, 4)
        closed_at = time.monotonic()
    assert closed.value.rcvd is not None, "the session was cut, not closed"
    assert closed.value.rcvd.code == 1012  # service restart: come back
    served_at = _until_rolled()(platform)
    record_property("until_closed_s", closed_at - started)
    record_property("gap_s", served_at - closed_at)
    print(f"rollout: closed after {closed_at - started:.1f} s, the new one served {served_at - closed_at:.1f} s later")
    assert {name: platform.replicas(name) for name in names} == before


def _until_rolled():
    def wait(platform) -> float:
        started = time.monotonic()
        while time.monotonic() - started < ROLLOUT_S:
            try:
                with talk(platform, ROLLING) as session:
                    if session.first["chunk_length"] == 8 and session.ask(act())["actions"].shape == (8, 4):
                        return time.monotonic()
            except Exception:  # noqa: BLE001  whatever a restart looks like from here
                time.sleep(0.05)
        raise AssertionError(f"the new policy does not answer after {ROLLOUT_S} s")

    return wait


def test_a_new_policy_is_served_only_after_its_warm_up_and_an_old_one_leaves(platform):
    """Its warm-up takes two seconds: health must not say yes before."""
    wanted = copy.deepcopy(platform.configuration)
    wanted["applications"].append(
        application("late", "SlowPolicy", config={"base_ms": 2000.0, "interface": {"image_size": SIZE}})
    )
    started = time.monotonic()
    platform.deploy(wanted)
    answers = []
    while time.monotonic() - started < ROLLOUT_S:
        answers.append(httpx.get(platform.url("/policy/late/healthz"), timeout=LIMIT_S).status_code)
        if answers[-1] == 200:
            break
        time.sleep(0.05)
    assert answers[-1] == 200
    assert set(answers[:-1]) <= {404, 500, 503}
    assert time.monotonic() - started >= 2.0
    logs = "".join(path.read_text() for path in platform.logs.glob("replica_policy-late*"))
    assert '"warm_up_ms"' in logs
    platform.deploy(platform.configuration)
    while platform.replicas("late") and time.monotonic() - started < ROLLOUT_S:
        time.sleep(0.1)
    assert platform.replicas("late") == []
    with talk(platform) as session:
        assert session.ask(act())["type"] == "action"
