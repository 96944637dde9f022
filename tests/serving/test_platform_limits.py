"""Peers that are too slow, too many, too loud or too late; each finds a typed limit, and the others do not notice."""

from __future__ import annotations

import json
import os
import re
import socket
import time

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from clients.contract import PROTOCOL
from clients.wire import decode, encode
from tests.serving.speaking import LIMIT_S, MSGPACK, act, flat, post, talk

pytestmark = pytest.mark.usefixtures("neighbour")

STRICT = "/policy/strict"


def raw_connection(platform) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", platform.port), timeout=LIMIT_S)
    connection.settimeout(LIMIT_S)
    return connection


def upgraded(platform, path: str, subprotocol: str | None = PROTOCOL) -> socket.socket:
    """Open a websocket by hand, and read the handshake's answer and the first frame."""
    connection = raw_connection(platform)
    wish = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{wish}\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(4096)
    assert b" 101 " in head.split(b"\r\n")[0]
    return connection


def read_until(connection: socket.socket, words: bytes) -> bytes:
    data = b""
    while words not in data:
        chunk = connection.recv(65536)
        assert chunk, f"closed after {data[-200:]!r}"
        data += chunk
    return data


def push(
    connection: socket.socket, data: bytes, *, times: int, limit_s: float, pause_s: float = 0.0
) -> tuple[int, bool]:
    """Send again and again; return how often it went out whole, and whether the server ended the connection."""
    deadline = time.monotonic() + limit_s
    for sent in range(times):
        try:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            connection.sendall(data)
        except TimeoutError:
            return sent, False
        except OSError:
            return sent, True
        time.sleep(pause_s)
    return times, False


def settle(platform, path: str) -> None:
    """Give what was sent the time to be in its forward; forwards of these policies take several times as long."""
    time.sleep(0.1)
    counted(platform, path, "roboserve_queue_depth")


def test_a_session_that_says_nothing_is_told_so_and_closed(platform):
    with talk(platform, STRICT) as session:
        error = session.hear()
        assert (error["code"], error["retryable"]) == ("timeout", True)
        assert "1 s" in error["message"]
        with pytest.raises(ConnectionClosed) as closed:
            session.hear()
        assert closed.value.rcvd.code == 1008
    with talk(platform, STRICT) as session:
        assert session.ask(act())["type"] == "action"


def test_an_openpi_session_that_says_nothing_is_told_so_and_closed(platform):
    with talk(platform, STRICT, native=False) as session:
        assert session.hear().startswith("timeout: ")
        with pytest.raises(ConnectionClosed) as closed:
            session.hear()
        assert closed.value.rcvd.code == 1011


def test_half_a_frame_and_then_nothing(platform):
    connection = upgraded(platform, STRICT)
    connection.sendall(b"\x82\xfe\x10\x00" + os.urandom(4) + b"half of it")  # announces 4096 bytes
    said = read_until(connection, b"\x88")  # a close frame
    assert b"timeout" in said
    assert b"no whole message arrived for 1 s" in said
    connection.close()


def test_a_frame_fed_byte_by_byte_does_not_outlive_the_limit(platform):
    connection = upgraded(platform, STRICT)
    connection.sendall(b"\x82\xfe\x10\x00" + os.urandom(4))
    _, ended = push(connection, b"x", times=10_000, limit_s=LIMIT_S, pause_s=0.1)
    assert ended
    connection.close()


def test_half_an_http_body_and_then_nothing(platform):
    connection = raw_connection(platform)
    connection.sendall(f"POST {STRICT}/act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf".encode())
    reply = b""
    while b"}" not in reply:
        reply += connection.recv(4096)
    assert b" 408 " in reply.split(b"\r\n")[0]
    error = json.loads(reply[reply.index(b"{") :])
    assert error["code"] == "timeout"
    assert "body" in error["message"]
    connection.close()


def test_an_http_body_over_the_limit_is_refused_before_it_is_sent(platform):
    connection = raw_connection(platform)
    connection.sendall(f"POST {STRICT}/act HTTP/1.1\r\nHost: x\r\nContent-Length: 20001\r\n\r\n".encode())
    reply = b""
    while b"}" not in reply:
        reply += connection.recv(4096)
    assert b" 413 " in reply.split(b"\r\n")[0]
    error = json.loads(reply[reply.index(b"{") :])
    assert error["code"] == "too_large"
    assert "20001" in error["message"]
    assert "20000" in error["message"]
    connection.close()


def test_a_chunked_body_over_the_limit(platform):
    def pieces():
        for _ in range(30):
            yield bytes(1000)

    response = httpx.post(platform.url(f"{STRICT}/act"), content=pieces(), headers=MSGPACK, timeout=LIMIT_S)
    assert response.status_code == 413
    assert decode(response.content)["code"] == "too_large"


@pytest.mark.parametrize("path", ["/act", "/policy/locked/act"])
def test_a_body_of_many_megabytes_is_refused_and_the_next_request_is_answered(platform, path):
    for _ in range(3):
        try:
            response = post(platform, path, bytes(20 * 2**20))
        except httpx.TransportError:  # the refusal came while the body was still on its way
            continue
        assert response.status_code in (401, 413)
    assert post(platform, "/act", act()).status_code == 200


def test_a_message_over_the_applications_limit(platform):
    with talk(platform, STRICT) as session:
        error = session.ask(bytes(20_001))
        assert error["code"] == "too_large"
        assert "20001" in error["message"]
        assert "20000" in error["message"]
        with pytest.raises(ConnectionClosed) as closed:
            session.hear()
        assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize("native", [True, False])
def test_a_message_over_the_servers_own_cap_ends_in_1009(platform, native):
    with talk(platform, native=native) as session:
        with pytest.raises(ConnectionClosed) as closed:
            session.ask(bytes(16 * 2**20 + 1))
        # The server may cut while the message is still on its way: then the close frame is lost with the connection.
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    with talk(platform) as session:
        assert session.ask(act())["type"] == "action"


def test_a_message_just_within_the_cap_is_read(platform):
    with talk(platform) as session:
        image = np.zeros((2048, 2048, 3), np.uint8)
        reply = session.ask(act(observation={"images": {"front": image}, "state": np.zeros(8), "instruction": "x"}))
        assert reply["code"] == "invalid_image"


def test_a_fragmented_message_over_the_cap(platform):
    connection = upgraded(platform, "/")
    piece = b"\xff" + (4 * 2**20).to_bytes(8, "big") + bytes(4) + bytes(4 * 2**20)
    connection.sendall(b"\x02" + piece)
    _, ended = push(connection, b"\x00" + piece, times=50, limit_s=LIMIT_S)
    assert ended
    connection.close()


def test_a_bomb_of_compressed_frames_is_bounded_too(platform):
    def explode(session):
        session.send(bytes(64 * 2**20))
        session.recv(timeout=LIMIT_S)

    with connect(platform.websocket("/"), subprotocols=[PROTOCOL], max_size=None) as session:  # deflates
        session.recv(timeout=LIMIT_S)
        with pytest.raises(ConnectionClosed) as closed:
            explode(session)
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


def test_more_sessions_than_the_limit_are_refused_at_the_handshake(platform):
    with talk(platform, STRICT) as first, talk(platform, STRICT), talk(platform, STRICT):
        with pytest.raises(InvalidStatus) as refused, talk(platform, STRICT):
            pass
        assert refused.value.response.status_code == 429
        error = json.loads(refused.value.response.body)
        assert (error["code"], error["retryable"]) == ("overloaded", True)
        assert "3 open, limit 3" in error["message"]
        assert first.ask(act())["type"] == "action"
    with talk(platform, STRICT) as session:
        assert session.ask(act())["type"] == "action"


def test_more_unanswered_requests_than_a_session_may_have(platform):
    with talk(platform, STRICT) as session:
        for name in "abc":
            session.send(act(name, session=name))
        # The silence while the session waits for its answers is longer than the limit on silence, and no fault of its.
        replies = {reply["request_id"]: reply for reply in (session.hear() for _ in range(3))}
        assert replies["c"]["code"] == "overloaded"
        assert "2 requests are unanswered, limit 2" in replies["c"]["message"]
        assert [replies[name]["type"] for name in "ab"] == ["action", "action"]
        assert session.ask(act("d"))["type"] == "action"


def test_a_full_queue_refuses(platform):
    with talk(platform, STRICT) as one, talk(platform, STRICT) as other:
        for session in (one, other):
            for name in "ab":
                session.send(act(name, session=name + session.socket.id.hex))
                settle(platform, STRICT)
        replies = [session.hear() for session in (one, other) for _ in range(2)]
        refused = [reply for reply in replies if reply["type"] == "error"]
        assert [error["code"] for error in refused] == ["overloaded"]
        assert "queue: 2 requests waiting, limit 2" in refused[0]["message"]


def test_more_http_requests_than_the_limit_are_refused_with_retry_after(platform):
    slow = [raw_connection(platform) for _ in range(2)]
    for connection in slow:
        connection.sendall(f"POST {STRICT}/act HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nhalf".encode())
    time.sleep(0.2)
    response = post(platform, f"{STRICT}/act", act())
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert "2 requests unanswered, limit 2" in decode(response.content)["message"]
    assert httpx.get(platform.url(f"{STRICT}/healthz")).status_code == 200
    for connection in slow:
        assert b" 408 " in connection.recv(4096)
        connection.close()
    assert post(platform, f"{STRICT}/act", act()).status_code == 200


def test_a_deadline_that_passes_in_the_queue_is_never_run(platform):
    before = counted(platform, "/policy/slow", "roboserve_deadline_misses_total")
    batches = counted(platform, "/policy/slow", "roboserve_batch_size_count")
    with talk(platform, "/policy/slow") as session:
        session.send(act("running", session="one"))
        settle(platform, "/policy/slow")
        session.send(act("late", session="two", deadline_ms=100.0))
        replies = {reply["request_id"]: reply for reply in (session.hear(), session.hear())}
    assert replies["running"]["type"] == "action"
    assert replies["late"]["code"] == "deadline_exceeded"
    assert re.search(r"passed \d+ ms ago in the queue", replies["late"]["message"])
    assert counted(platform, "/policy/slow", "roboserve_deadline_misses_total") == before + 1
    assert counted(platform, "/policy/slow", "roboserve_batch_size_count") == batches + 1


def test_a_newer_observation_of_a_session_replaces_the_queued_one(platform):
    with talk(platform, "/policy/slow") as session:
        for name in ("running", "old", "new"):
            session.send(act(name))
            settle(platform, "/policy/slow")
        replies = {reply["request_id"]: reply for reply in (session.hear() for _ in range(3))}
    assert replies["old"]["code"] == "superseded"
    assert [replies[name]["type"] for name in ("running", "new")] == ["action", "action"]


def test_a_client_that_leaves_takes_its_queued_work_with_it(platform):
    batches = counted(platform, "/policy/slow", "roboserve_batch_size_count")
    with talk(platform, "/policy/slow") as session:
        for name in ("running", "queued"):
            session.send(act(name, session=name))
        time.sleep(0.2)
    with talk(platform, "/policy/slow") as session:
        assert session.ask(act("next"))["type"] == "action"
    assert counted(platform, "/policy/slow", "roboserve_batch_size_count") == batches + 2
    assert counted(platform, "/policy/slow", "roboserve_queue_depth") == 0


def test_a_client_that_floods_and_never_reads_is_given_up(platform):
    """It takes no reply, so the server's window to it fills; its session must end and its memory with it."""
    [replica] = platform.replicas("strict")
    connection = upgraded(platform, STRICT)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    payload = encode({"type": "nonsense " * 100})
    frame = b"\x82\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload
    before = replica.memory_info().rss
    sent, _ = push(connection, frame * 50, times=10_000, limit_s=5.0)
    grown = replica.memory_info().rss - before
    assert sent < 10_000
    assert grown < 100 * 2**20, f"{grown / 2**20:.0f} MiB for one peer"
    connection.close()
    limit = time.monotonic() + LIMIT_S
    while counted(platform, STRICT, "roboserve_sessions") and time.monotonic() < limit:
        time.sleep(0.1)
    assert counted(platform, STRICT, "roboserve_sessions") == 0
    with talk(platform, STRICT) as session:
        assert session.ask(act())["type"] == "action"


def test_a_flood_ahead_of_the_policys_pace_stays_in_the_network(platform):
    """An openpi client may send without waiting; the server must not read ahead without a bound."""
    [replica] = platform.replicas("slow")
    connection = upgraded(platform, "/policy/slow", subprotocol=None)
    payload = encode(flat(**{"observation/front": np.zeros((1000, 1000, 3), np.uint8)}))
    frame = b"\x82\xff" + len(payload).to_bytes(8, "big") + bytes(4) + payload
    before = replica.memory_info().rss
    sent, _ = push(connection, frame, times=300, limit_s=5.0)
    grown = replica.memory_info().rss - before
    connection.close()
    assert sent < 300
    assert grown < 150 * 2**20, f"{grown / 2**20:.0f} MiB for one peer, {sent} messages of 3 MB taken"


def counted(platform, path: str, name: str) -> float:
    text = httpx.get(platform.url(f"{path}/metrics"), timeout=LIMIT_S).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))
