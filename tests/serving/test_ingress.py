from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from clients.wire import encode
from serving.asgi import middlewares
from serving.auth import make_key
from tests.serving.asgi import LIMIT_S, Peer, Session, http, scope, server
from tests.serving.speaking import act


async def test_many_that_knock_at_once_do_not_all_pass_the_limit():
    served = server(limits={"sessions": 3})
    sessions = [Session() for _ in range(10)]
    for session in sessions:
        session.run(served.app, scope("websocket"))
    for session in sessions:
        session.incoming.put_nowait({"type": "websocket.connect"})
    first = [await session.event() for session in sessions]
    accepted = [session for session, event in zip(sessions, first, strict=True) if event["type"] == "websocket.accept"]
    assert len(accepted) == 3
    assert {event["status"] for event in first if event["type"] != "websocket.accept"} == {429}
    await asyncio.gather(*(session.end() for session in accepted))
    again = await Session().open(served.app)
    assert again.accepted["type"] == "websocket.accept"
    await again.end()
    await served.close()


async def test_a_session_ends_when_its_key_expires(tmp_path):
    key = make_key("arm", "robot", policy="mine", expires=datetime.now(UTC) + timedelta(seconds=0.5))
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [key.record.model_dump(mode="json")]}), "utf-8")
    served = server(auth={"keys_file": str(tmp_path / "keys.yaml")})
    session = await Session().open(served.app, headers=[("Authorization", f"Bearer {key.secret}")])
    assert (await session.hear())["type"] == "contract"
    assert (await session.ask(act()))["type"] == "action"
    await asyncio.sleep(0.6)
    error = await session.ask(act())
    assert error["code"] == "unauthenticated"
    assert "'arm' expired" in error["message"]
    assert await session.hear() == 1008
    await asyncio.wait_for(session.task, LIMIT_S)
    await served.close()


async def test_a_peer_that_takes_nothing_is_given_up_and_frees_its_place():
    served = server(limits={"send_timeout_s": 0.1, "idle_timeout_s": 30})
    session = await Session().open(served.app)
    await session.hear()
    session.stuck = True
    session.say(act())
    await asyncio.sleep(0.3)
    session.say(act())  # it still sends, yet it took no answer
    await asyncio.wait_for(session.task, LIMIT_S)
    assert b"roboserve_sessions{" in served.metrics.text()
    assert _value(served, "roboserve_sessions") == 0
    await served.close()


@pytest.mark.parametrize("moment", ["accept", "contract", "reply"])
@pytest.mark.parametrize("subprotocols", [["roboserve.v1"], []])
async def test_a_peer_that_leaves_at_a_bad_moment_leaves_nothing_behind(moment, subprotocols, caplog):
    served = server()
    session = Session(takes={"accept": 0, "contract": 1, "reply": 2}[moment])
    session.run(served.app, scope("websocket", subprotocols=subprotocols))
    session.incoming.put_nowait({"type": "websocket.connect"})
    if moment == "reply":
        session.say(act())
        session.incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})
    await asyncio.wait_for(session.task, LIMIT_S)
    assert _value(served, "roboserve_sessions") == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await served.close()


async def test_a_session_cut_with_requests_in_the_queue_takes_them_along():
    served = server("SlowPolicy", config={"base_ms": 200.0}, batching={"max_batch": 1})
    session = await Session().open(served.app)
    await session.hear()
    for name in "abc":
        session.say(act(name, session=name))
    await asyncio.sleep(0.05)
    await session.end()
    for _ in range(3):
        await asyncio.sleep(0)
    assert _value(served, "roboserve_queue_depth") == 0
    await served.close()
    assert _value(served, "roboserve_batch_size_count") == 1


@pytest.mark.parametrize("subprotocols", [["roboserve.v1"], []])
async def test_a_fault_of_ours_is_typed_and_logged_and_tells_nothing(subprotocols, monkeypatch, caplog):
    served = server()

    async def explode(*_args, **_kwargs):
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(served, "act", explode)
    session = await Session().open(served.app, subprotocols=subprotocols)
    await session.hear()
    if subprotocols:
        reply = await session.ask(act("id"))
        assert (reply["code"], reply["request_id"]) == ("internal", "id")
        assert "secret" not in str(reply)
        await session.end()
    else:
        from tests.serving.speaking import flat

        assert await session.ask(flat()) == "internal: the server failed on this request"
        assert await session.hear() == 1011
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)
    status, _, body = await http(served.app, "POST", "/act", encode(act()))
    assert (status, b"secret" in body) == (500, False)
    await served.close()


async def test_a_dialect_that_fails_closes_with_1011(monkeypatch, caplog):
    served = server()

    class Broken:
        async def serve(self, session):
            raise ZeroDivisionError

    served.dialects["roboserve.v1"] = Broken()
    session = await Session().open(served.app)
    assert await session.hear() == 1011
    await asyncio.wait_for(session.task, LIMIT_S)
    assert "session failed" in caplog.text
    await served.close()


async def test_a_route_that_fails_is_internal(monkeypatch, caplog):
    served = server()
    monkeypatch.setattr(served.metrics, "text", lambda: 1 / 0)
    status, _, body = await http(served.app, "GET", "/metrics")
    assert (status, json.loads(body)["code"]) == (500, "internal")
    assert "request failed" in caplog.text
    await served.close()


async def test_closing_answers_who_waits_and_health_says_no():
    served = server("SlowPolicy", config={"base_ms": 150.0}, batching={"max_batch": 1})
    session = await Session().open(served.app)
    await session.hear()
    session.say(act("running", session="a"))
    await asyncio.sleep(0.05)
    session.say(act("queued", session="b"))
    await asyncio.sleep(0.02)
    await served.close()
    replies = {reply["request_id"]: reply for reply in [await session.hear(), await session.hear()]}
    assert replies["running"]["type"] == "action"
    assert (replies["queued"]["code"], replies["queued"]["retryable"]) == ("unavailable", True)
    status, _, body = await http(served.app, "GET", "/healthz")
    assert (status, json.loads(body)["code"]) == (503, "unavailable")
    await session.end()


async def test_a_forward_that_hangs_makes_the_replica_unhealthy():
    served = server("SlowPolicy", config={"base_ms": 400.0}, limits={"forward_timeout_s": 0.1})
    session = await Session().open(served.app)
    await session.hear()
    assert (await http(served.app, "GET", "/healthz"))[0] == 200
    session.say(act())
    await asyncio.sleep(0.25)
    status, _, body = await http(served.app, "GET", "/healthz")
    assert status == 503
    assert "limit 0.1 s" in json.loads(body)["message"]
    with pytest.raises(RuntimeError, match=r"limit 0\.1 s"):
        served.check_health()
    await session.hear()
    served.check_health()
    await session.end()
    await served.close()


async def test_without_keys_a_peer_of_another_machine_is_refused():
    served = server()
    for client in ("192.168.0.9", None, "unix"):
        status, _, body = await http(served.app, "GET", "/contract", client=client)
        assert (status, json.loads(body)["code"]) == (403, "forbidden")
    assert (await http(served.app, "GET", "/contract", client="::1"))[0] == 200
    await served.close()


async def test_a_server_without_refusals_in_the_handshake_closes_with_a_code():
    served = server(limits={"sessions": 1})
    first = await Session().open(served.app)
    second = await Session().open(served.app, extensions={})
    assert second.accepted["type"] == "websocket.close"
    assert second.accepted["code"] == 1013
    assert "limit 1" in second.accepted["reason"]
    await first.end()
    await served.close()


async def test_a_length_that_is_no_number_and_a_peer_that_leaves_in_the_body():
    served = server()
    for length in ("many", "-5", "9" * 5000):
        status, _, _ = await http(served.app, "POST", "/act", headers=[("Content-Length", length)])
        assert status == 413
    peer = Peer()
    peer.incoming.put_nowait({"type": "http.request", "body": b"half", "more_body": True})
    peer.incoming.put_nowait({"type": "http.disconnect"})
    peer.run(served.app, scope("http", "/act", method="POST"))
    await asyncio.wait_for(peer.task, LIMIT_S)
    assert peer.outgoing.empty()
    await served.close()


async def test_the_websocket_is_read_at_the_applications_own_pace():
    """The header that keeps Ray Serve from reading ahead without a bound."""
    seen = []

    async def app(where, receive, send):
        seen.append(dict(where["headers"]).get(b"x-request-disconnect-disabled"))

    [middleware] = middlewares()
    wrapped = middleware.cls(app, *middleware.args, **middleware.kwargs)
    for kind in ("websocket", "http"):
        await wrapped(scope(kind), None, None)
    assert seen == [b"?1", None]


def _value(served, name: str) -> float:
    lines = served.metrics.text().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))
