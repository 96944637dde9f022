"""A policy that raises, that answers nonsense, that takes its process with it; and a replica that is killed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException

from clients.errors import ERROR_TABLE, RoboserveError
from clients.policy import PolicyClient
from clients.wire import decode
from tests.serving.speaking import LIMIT_S, Neighbour, act, image, observation, post, talk

if TYPE_CHECKING:
    import psutil

pytestmark = pytest.mark.usefixtures("neighbour")

CRASHING = "/policy/crashing"
TWO = ("left", "right")
RECOVERY_S = 60.0

FAULTS = {
    "raise": ("policy_failed", ["raised"]),
    "nan": ("invalid_output", ["actions", "finite"]),
    "short": ("invalid_output", ["actions", "(15, 4)", "(16, 4)"]),
}


def told(instruction: str, request_id: str = "r1", **changes):
    return act(request_id, observation=observation(TWO, instruction), **changes)


@pytest.fixture
def beside(platform):
    """A neighbour on the very policy that fails, riding in the same batches."""
    with Neighbour(platform, CRASHING, TWO).watching() as watching:
        yield watching


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_policy_is_its_requests_own(platform, beside, fault):
    code, words = FAULTS[fault]
    with talk(platform, CRASHING) as session:
        for _ in range(5):
            reply = session.ask(told(fault))
            check(reply, code, words)
            assert "actions" not in reply
            assert session.ask(told("go", "after"))["type"] == "action"
    beside.check()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_policy_over_http(platform, beside, fault):
    code, words = FAULTS[fault]
    response = post(platform, CRASHING + "/act", told(fault))
    assert response.status_code == ERROR_TABLE[code].http == 500
    check(decode(response.content), code, words)
    assert post(platform, CRASHING + "/act", told("go")).status_code == 200


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_policy_in_openpi_terms(platform, beside, fault):
    code, words = FAULTS[fault]
    message = {"observation/state": np.zeros(8), **{f"observation/{camera}": image() for camera in TWO}}
    with talk(platform, CRASHING, native=False) as session:
        text = session.ask({**message, "prompt": fault})
        assert text.startswith(f"{code}: ")
        assert all(word in text for word in words)
        with pytest.raises(ConnectionClosed) as closed:
            session.hear()
        assert closed.value.rcvd.code == 1011
    with talk(platform, CRASHING, native=False) as session:
        assert session.ask({**message, "prompt": "go"})["actions"].shape == (16, 4)


def check(reply, code, words):
    assert (reply["type"], reply["code"]) == ("error", code)
    assert all(word in reply["message"] for word in words), reply["message"]
    assert "asked to raise" not in reply["message"]


def test_bad_requests_in_one_batch_with_good_ones(platform):
    with talk(platform, CRASHING) as session:
        for index, instruction in enumerate(("go", "raise", "nan", "go", "short", "go")):
            session.send(told(instruction, str(index), session=str(index)))
        replies = {reply["request_id"]: reply for reply in (session.hear() for _ in range(6))}
    assert [replies[str(index)].get("code", "ok") for index in range(6)] == [
        "ok",
        "policy_failed",
        "invalid_output",
        "ok",
        "invalid_output",
        "ok",
    ]


def until_served(platform, path: str = CRASHING, cameras: tuple[str, ...] = TWO) -> float:
    """Connect again and again, as a robot does; return the seconds that it took to be answered."""
    started = time.monotonic()
    while time.monotonic() - started < RECOVERY_S:
        try:
            with PolicyClient(platform.websocket(path), connect_timeout_s=2.0, timeout_s=5.0) as client:
                images = {camera: image() for camera in cameras}
                client.act(images=images, state=np.zeros(8, np.float32), instruction="go")
                return time.monotonic() - started
        except RoboserveError as error:
            if error.code not in ("unavailable", "deadline_exceeded"):
                raise
            time.sleep(0.05)
    raise AssertionError(f"not served again within {RECOVERY_S} s")


def others(platform) -> dict[str, list[psutil.Process]]:
    return {name: platform.replicas(name) for name in ("zero", "slow", "strict", "replay", "locked", "rolling")}


@pytest.mark.parametrize("how", ["die", "kill"])
def test_a_replica_that_dies_is_replaced_and_the_other_policies_do_not_notice(platform, how, record_property):
    before = others(platform)
    [replica] = platform.replicas("crashing")
    with talk(platform, CRASHING) as session:
        assert session.ask(told("go"))["type"] == "action"
        if how == "die":
            session.send(told("die"))
        else:
            replica.kill()
        started = time.monotonic()
        with pytest.raises((WebSocketException, OSError, EOFError)):
            session.hear()
        noticed_s = time.monotonic() - started
    replica.wait(LIMIT_S)
    served_s = until_served(platform)
    record_property("noticed_s", noticed_s)
    record_property("served_again_s", served_s)
    print(f"{how}: the session knew after {noticed_s:.3f} s, a new one was served after {served_s:.1f} s")
    assert noticed_s < LIMIT_S
    assert [process.pid for process in platform.replicas("crashing")] != [replica.pid]
    assert others(platform) == before


def test_while_a_replica_is_dead_clients_are_told_and_not_left_hanging(platform):
    [replica] = platform.replicas("crashing")
    replica.kill()
    replica.wait(LIMIT_S)
    statuses = set()
    started = time.monotonic()
    while time.monotonic() - started < RECOVERY_S:
        try:
            status = post(platform, CRASHING + "/act", told("go")).status_code
        except httpx.TransportError:
            continue
        statuses.add(status)
        if status == 200:
            break
        time.sleep(0.05)
    assert 200 in statuses
    assert statuses <= {200, 404, 500, 503}
    until_served(platform)


def test_callers_whose_replica_dies_in_their_forward_all_learn_of_it(platform):
    faults: list[str] = []

    def ask(instruction: str) -> None:
        try:
            with talk(platform, CRASHING) as session:
                for _ in range(1000):
                    session.ask(told(instruction))
        except (WebSocketException, OSError, EOFError) as error:
            faults.append(type(error).__name__)

    threads = [threading.Thread(target=ask, args=("go",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    with talk(platform, CRASHING) as session:
        session.send(told("die"))
        for thread in threads:
            thread.join(LIMIT_S)
    assert len(faults) == 4
    until_served(platform)
