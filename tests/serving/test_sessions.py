from __future__ import annotations

import asyncio

import numpy as np
import pytest
import yaml

from clients.errors import RoboserveError
from serving.auth import make_key
from serving.sessions import ChunkMemory, SessionKey
from tests.serving.asgi import Session, server
from tests.serving.speaking import act


def chunk(value: float) -> np.ndarray:
    return np.full((4, 2), value, np.float32)


def test_the_rest_of_the_last_chunk_is_what_was_not_played():
    memory = ChunkMemory(8)
    key = SessionKey("arm", "s")
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    memory.remember(key, rows)
    np.testing.assert_array_equal(memory.leftover(key, 1), rows[1:])
    np.testing.assert_array_equal(memory.leftover(key, 0), rows)
    assert memory.leftover(key, 4) is None


def test_a_session_that_is_not_known_cannot_continue():
    memory = ChunkMemory(8)
    memory.remember(SessionKey("arm", "s"), chunk(1))
    for other in (SessionKey("leg", "s"), SessionKey("arm", "t")):
        with pytest.raises(RoboserveError, match="executed") as caught:
            memory.leftover(other, 1)
        assert caught.value.code == "invalid_request"
    memory.forget(SessionKey("arm", "s"))
    memory.forget(SessionKey("arm", "s"))
    with pytest.raises(RoboserveError):
        memory.leftover(SessionKey("arm", "s"), 1)


def test_the_least_recently_used_makes_way_and_is_named():
    memory = ChunkMemory(2)
    one, two, three = (SessionKey("arm", name) for name in "abc")
    assert memory.remember(one, chunk(1)) == []
    assert memory.remember(two, chunk(2)) == []
    assert memory.remember(one, chunk(1)) == []
    assert memory.remember(three, chunk(3)) == [two]


def test_a_remembered_chunk_keeps_neither_its_batch_nor_later_changes():
    memory = ChunkMemory(2)
    batch = np.zeros((64, 4, 2), np.float32)
    memory.remember(SessionKey("arm", "s"), batch[0])
    batch[:] = 7
    kept = memory.leftover(SessionKey("arm", "s"), 0)
    assert (kept == 0).all()
    assert kept.base is None or kept.base.size <= 8


def test_names_of_principals_and_sessions_cannot_be_shifted_into_each_other():
    assert str(SessionKey("a", "b/c")) != str(SessionKey("a/b", "c")) or not _can_be_a_principal("a/b")


def _can_be_a_principal(name: str) -> bool:
    try:
        make_key(name, "admin")
    except ValueError:
        return False
    return True


@pytest.fixture
def two_robots(tmp_path):
    keys = [make_key(name, "robot", policy="mine") for name in ("arm-1", "arm-2")]
    records = [key.record.model_dump(mode="json") for key in keys]
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": records}), "utf-8")
    np.save(tmp_path / "recording.npy", np.linspace(-1, 1, 160, dtype=np.float32).reshape(40, 4))
    return str(tmp_path / "keys.yaml"), [key.secret for key in keys], str(tmp_path / "recording.npy")


async def connect(served, secret) -> Session:
    session = await Session().open(served.app, headers=[("Authorization", f"Bearer {secret}")])
    await session.hear()
    return session


async def test_two_keys_never_share_a_session_whatever_they_call_it(two_robots):
    keys, secrets, _ = two_robots
    served = server(auth={"keys_file": keys})
    one, other = [await connect(served, secret) for secret in secrets]
    assert (await one.ask(act(session="s")))["type"] == "action"
    refused = await other.ask(act(session="s", options={"executed": 2}))
    assert refused["code"] == "invalid_request"
    assert (await one.ask(act(session="s", options={"executed": 2})))["type"] == "action"
    await other.ask({"type": "reset", "session": "s"})
    assert (await one.ask(act(session="s", options={"executed": 2})))["type"] == "action"
    for session in (one, other):
        await session.end()
    await served.close()


async def test_nor_does_a_policy_that_remembers_mix_them_up(two_robots):
    keys, secrets, recording = two_robots
    served = server("ReplayPolicy", config={"actions": recording}, auth={"keys_file": keys})
    one, other = [await connect(served, secret) for secret in secrets]
    first = (await one.ask(act(session="s")))["actions"]
    second = (await one.ask(act(session="s")))["actions"]
    np.testing.assert_array_equal((await other.ask(act(session="s")))["actions"], first)
    await other.ask({"type": "reset", "session": "s"})
    third = (await one.ask(act(session="s")))["actions"]
    assert not any(np.array_equal(third, earlier) for earlier in (first, second))
    for session in (one, other):
        await session.end()
    await served.close()


async def test_two_keys_do_not_replace_each_others_requests(two_robots):
    keys, secrets, _ = two_robots
    served = server("SlowPolicy", config={"base_ms": 100.0}, auth={"keys_file": keys}, batching={"max_batch": 1})
    one, other = [await connect(served, secret) for secret in secrets]
    one.say(act("running", session="x"))
    await asyncio.sleep(0.03)
    one.say(act("mine", session="s"))
    await asyncio.sleep(0.01)
    other.say(act("theirs", session="s"))
    replies = [await one.hear(), await one.hear(), await other.hear()]
    assert [reply["type"] for reply in replies] == ["action"] * 3
    for session in (one, other):
        await session.end()
    await served.close()


async def test_what_a_policy_remembers_is_bounded_and_ends_with_the_connection(two_robots):
    *_, recording = two_robots
    served = server("ReplayPolicy", config={"actions": recording}, limits={"remembered_sessions": 5})
    session = await Session().open(served.app)
    await session.hear()
    await session.ask(act())
    for index in range(50):
        await session.ask(act(session=f"s{index}"))
    (policy,) = served.revisions.policies
    assert len(policy._next_row) <= 5
    await session.ask(act())
    own = set(policy._next_row)
    await session.end()
    assert len(policy._next_row) == len(own) - 1
    await served.close()


async def test_requests_without_a_session_are_not_remembered():
    from clients.wire import encode
    from tests.serving.asgi import http

    served = server(limits={"remembered_sessions": 5})
    session = await Session().open(served.app)
    await session.hear()
    await session.ask(act())
    for _ in range(20):
        assert (await http(served.app, "POST", "/act", encode(act())))[0] == 200
    assert (await session.ask(act(options={"executed": 3})))["type"] == "action"
    await session.end()
    await served.close()
