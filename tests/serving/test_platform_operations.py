"""What an operator and a client's developer see: health, contract, metrics, logs, routes, dialects, sessions."""

from __future__ import annotations

import json
import threading
import time

import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from clients.contract import PROTOCOL, PolicyContract
from clients.wire import decode
from tests.serving.speaking import LIMIT_S, act, flat, image, jpeg, observation, post, talk


def get(platform, path, **headers):
    return httpx.get(platform.url(path), headers=headers, timeout=LIMIT_S)


@pytest.mark.parametrize("path", ["/healthz", "/policy/zero/healthz", "/policy/slow/healthz", "/policy/strict/healthz"])
def test_health_answers_ok(platform, path):
    response = get(platform, path)
    assert (response.status_code, response.content) == (200, b"OK\n")


def test_everybody_else_is_answered_while_a_forward_runs(platform):
    slow = "/policy/slow"
    with talk(platform, slow) as busy:
        busy.send(act("busy"))
        time.sleep(0.1)
        done = threading.Event()

        def wait():
            assert busy.hear()["type"] == "action"
            done.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert get(platform, slow + "/healthz").status_code == 200
        with talk(platform, slow) as other:
            assert other.ask({"type": "ping", "request_id": "p"}) == {"type": "pong", "request_id": "p"}
        assert get(platform, slow + "/contract").status_code == 200
        assert not done.is_set(), "the answers came only after the forward"
        waiting.join(LIMIT_S)
        assert done.is_set()


def test_the_contract_is_the_same_in_every_way_that_it_is_told(platform):
    with talk(platform) as native, talk(platform, native=False) as openpi:
        first, metadata = native.first, openpi.first
    packed = decode(get(platform, "/contract", accept="application/msgpack").content)
    assert first == packed == get(platform, "/contract").json()
    keys = metadata.pop("openpi_keys")
    assert keys == {"images": {"observation/front": "front"}, "state": "observation/state", "prompt": "prompt"}
    assert metadata == first
    contract = PolicyContract.from_map(first)
    assert contract.model == "zero"
    assert contract.limits["in_flight"] == 8
    assert len(contract.content_hash) == 64


def test_the_default_policy_answers_under_its_name_as_well(platform):
    for path in ("/", "/policy/zero", "/policy/zero/"):
        with talk(platform, path) as session:
            assert session.first["model"] == "zero"
    with talk(platform, "/any/path/of/an/old/client", native=False) as session:
        assert session.ask(flat())["actions"].shape == (16, 4)


@pytest.mark.parametrize("path", ["/policy/nobody", "/policy/zeroo", "/reward/any", "/path/any/draw"])
def test_an_unknown_model_is_refused_by_name(platform, path):
    with pytest.raises(InvalidStatus) as refused, talk(platform, path):
        pass
    assert refused.value.response.status_code == 404
    error = json.loads(refused.value.response.body)
    assert error["code"] == "not_found"
    assert path.split("/")[2] in error["message"]
    assert post(platform, path, act()).status_code == 404


def test_a_subprotocol_that_is_not_spoken_is_refused_and_the_known_named(platform):
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(platform.websocket("/"), subprotocols=["roboserve.v9", "mqtt"]),
    ):
        pass
    assert refused.value.response.status_code == 404
    error = json.loads(refused.value.response.body)
    assert all(word in error["message"] for word in ("roboserve.v9", "mqtt", PROTOCOL))


def test_the_first_subprotocol_that_is_known_is_taken(platform):
    with connect(platform.websocket("/"), subprotocols=["roboserve.v9", PROTOCOL], max_size=None) as session:
        assert session.subprotocol == PROTOCOL
        assert decode(session.recv(timeout=LIMIT_S))["type"] == "contract"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/act"), ("POST", "/healthz"), ("PUT", "/act"), ("DELETE", "/"), ("GET", "/nothing")]
)
def test_a_route_that_is_none(platform, method, path):
    response = httpx.request(method, platform.url(path), timeout=LIMIT_S)
    assert response.status_code == 404
    error = response.json()
    assert error["code"] == "not_found"
    assert f"{method} {path}" in error["message"]


def test_a_reply_says_what_answered_and_how_long_each_part_took(platform):
    with talk(platform, "/policy/rolling") as session:  # the default policy has another session to batch with
        reply = session.ask(act("abc"))
    assert reply["request_id"] == "abc"
    assert reply["batch_size"] == 1
    assert reply["model"].keys() == {"id", "revision", "content_hash"}
    assert reply["timings"].keys() == {"decode", "queue", "batch_wait", "forward", "encode", "total"}
    assert all(value >= 0 for value in reply["timings"].values())
    assert reply["timings"]["total"] >= reply["timings"]["forward"]
    assert reply["actions"].dtype == np.float32
    assert reply["actions"].shape == (16, 4)
    assert "model_actions" not in reply


def test_http_answers_as_the_websocket_does(platform):
    response = post(platform, "/act", act("abc", options={"return_model_actions": True}))
    reply = decode(response.content)
    assert response.headers["content-type"] == "application/msgpack"
    assert reply["request_id"] == "abc"
    np.testing.assert_array_equal(reply["actions"], np.zeros((16, 4), np.float32))
    assert reply["model_actions"].shape == (16, 4)


@pytest.mark.parametrize("picture", [image(), jpeg()], ids=["raw", "jpeg"])
def test_images_are_taken_raw_or_compressed(platform, picture):
    with talk(platform) as session:
        assert session.ask(act(observation={**observation(), "images": {"front": picture}}))["type"] == "action"


def test_many_requests_on_one_http_connection_are_answered_in_order(platform):
    """Pipelined: all are sent before the first answer is read."""
    with httpx.Client(timeout=LIMIT_S) as client:
        for index in range(20):
            response = client.post(platform.url("/act"), content=_packed(f"r{index}"))
            assert decode(response.content)["request_id"] == f"r{index}"
    import socket

    with socket.create_connection(("127.0.0.1", platform.port), timeout=LIMIT_S) as connection:
        for index in range(5):
            body = _packed(f"p{index}")
            connection.sendall(f"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        data = b""
        while data.count(b"content_hash") < 5:
            chunk = connection.recv(65536)
            assert chunk
            data += chunk
    assert [data.index(f"p{index}".encode()) for index in range(5)] == sorted(
        data.index(f"p{index}".encode()) for index in range(5)
    )


def _packed(request_id: str) -> bytes:
    from clients.wire import encode

    return encode(act(request_id))


def test_requests_of_one_session_may_overlap_and_are_told_apart(platform):
    with talk(platform) as session:
        for index in range(6):
            session.send(act(f"r{index}", session=f"s{index}"))
        assert {session.hear()["request_id"] for _ in range(6)} == {f"r{index}" for index in range(6)}


def test_a_recording_is_played_per_session_and_reset_starts_it_over(platform):
    replay = "/policy/replay"
    with talk(platform, replay) as one, talk(platform, replay) as other:
        first = one.ask(act())["actions"]
        second = one.ask(act())["actions"]
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(other.ask(act())["actions"], first)
        assert one.ask({"type": "reset", "request_id": "x"}) == {"type": "reset", "request_id": "x"}
        np.testing.assert_array_equal(one.ask(act())["actions"], first)
        # A session with a name of its own goes on where it was, on whatever connection.
        np.testing.assert_array_equal(one.ask(act(session="arm"))["actions"], first)
        np.testing.assert_array_equal(other.ask(act(session="arm"))["actions"], second)
        assert other.ask({"type": "reset", "request_id": "y", "session": "arm"})["type"] == "reset"
        np.testing.assert_array_equal(one.ask(act(session="arm"))["actions"], first)


def test_a_policy_that_remembers_wants_a_session_over_http(platform):
    response = post(platform, "/policy/replay/act", act())
    assert response.status_code == 400
    assert "session" in decode(response.content)["message"]
    assert post(platform, "/policy/replay/act", act(session="web")).status_code == 200
    assert post(platform, "/policy/replay/reset", {"session": "web", "request_id": "q"}).status_code == 200
    assert post(platform, "/policy/replay/reset", {"request_id": "q"}).status_code == 400


def test_real_time_chunking_from_the_servers_memory(platform):
    with talk(platform) as session:
        session.ask(act("a"))
        assert session.ask(act("b", options={"executed": 4, "inference_delay": 2}))["type"] == "action"
        session.ask({"type": "reset"})
        refused = session.ask(act("c", options={"executed": 4}))
        assert (refused["code"], "executed" in refused["message"]) == ("invalid_request", True)


def test_metrics_count_what_happened(platform):
    def read():
        text = get(platform, "/policy/strict/metrics").text
        values = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                values[name] = float(value)
        return values

    def find(values, name, *labels):
        return sum(v for k, v in values.items() if k.startswith(name + "{") and all(label in k for label in labels))

    before = read()
    with talk(platform, "/policy/strict") as session:
        session.ask(act())
        session.ask(act(deadline_ms=0))
        assert find(read(), "roboserve_sessions") == 1
    after = read()
    for name, labels, change in (
        ("roboserve_requests_total", ['code="ok"'], 1),
        ("roboserve_requests_total", ['code="deadline_exceeded"'], 1),
        ("roboserve_batch_size_count", [], 1),
        ("roboserve_batch_size_sum", [], 1),
        ("roboserve_forward_seconds_count", [], 1),
        ("roboserve_request_seconds_count", [], 2),
    ):
        assert find(after, name, *labels) - find(before, name, *labels) == change, name
    assert all('model="strict"' in name and 'family="policy"' in name for name in after)


def test_logs_are_json_lines_that_a_peer_cannot_forge(platform):
    forged = 'evil\n{"levelname": "ERROR", "message": "forged"}\x1b[31m'
    with talk(platform, "/policy/crashing") as session:
        session.ask(act("log-1", model=forged))
        session.ask(act("log-2", cameras=("left", "right"), observation=_instructed("raise")))
    httpx.get(platform.url("/policy/crashing/%0a%7b%22forged%22%3a1%7d"), timeout=LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        lines = [
            line for path in platform.logs.glob("replica_policy-crashing*") for line in path.read_text().splitlines()
        ]
        if any("log-2" in line for line in lines):
            break
        time.sleep(0.1)
    records = [json.loads(line) for line in lines]  # each line is a record, whatever a peer sent
    assert not any("forged" in record for record in records)
    [refused] = [record for record in records if record.get("request") == "log-1"]
    assert refused["code"] == "not_found"
    assert "\x1b" not in refused["message"]
    assert "\n" not in refused["message"]
    [failed] = [record for record in records if record.get("request") == "log-2"]
    assert (failed["levelname"], failed["code"]) == ("ERROR", "policy_failed")
    assert "asked to raise" in json.dumps(failed)  # the operator sees the cause


def _instructed(instruction):
    return observation(("left", "right"), instruction)
