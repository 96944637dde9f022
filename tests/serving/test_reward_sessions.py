"""Streaming sessions: an append that fails, is late or is given up leaves the episode as it was."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from tests.serving.asgi import LIMIT_S, Session
from tests.serving.rewards import bright, grey, reward_server

POISON = 255
FRAME = 32 * 32 * 3


class Gate:
    """Holds a model's forwards until it is opened; `reached` once one waits."""

    def __init__(self, server) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        score = server.model.score

        def gated(queries):
            self.reached.set()
            assert self.opened.wait(LIMIT_S)
            return score(queries)

        server.model.score = gated

    async def wait_until_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, LIMIT_S)


@pytest.fixture
async def served():
    server = reward_server({"poison": POISON}, rewards={"session_bytes": 4 * FRAME})
    yield server
    await server.close()


async def connect(server) -> Session:
    session = await Session().open(server.app)
    await session.hear()
    return session


async def episode(server, **more) -> Session:
    session = await connect(server)
    opened = await session.ask({"type": "open", "session": "episode", "instruction": "lift it", **more})
    assert opened["type"] == "opened", opened
    return session


def append(frames, session="episode", **more):
    return {"type": "append", "session": session, "frames": frames, **more}


REFUSED = [
    (append(grey(POISON)), "policy_failed"),
    (append(grey(30, POISON)), "policy_failed"),
    (append(np.zeros((0, 32, 32, 3), np.uint8)), "invalid_image"),
    (append(grey(1, 2, 3, 4)), "overloaded"),
]


@pytest.mark.parametrize(("refused", "code"), REFUSED)
async def test_a_session_knows_nothing_of_an_append_that_failed(served, refused, code):
    session = await episode(served)
    assert (await session.ask(append(grey(10))))["frame"] == 0
    for _ in range(5):  # more than there would be room for
        assert (await session.ask(refused))["code"] == code
    value = await session.ask(append(grey(20, 40)))
    assert (value["frame"], value["shown"].tolist()) == (2, [0, 1, 2])
    np.testing.assert_allclose(value["progress"], bright(40), atol=1e-6)
    assert (await session.ask(append(grey(50))))["frame"] == 3
    assert (await session.ask(append(grey(60))))["code"] == "overloaded"
    await session.end()


async def test_the_first_append_may_fail_too(served):
    session = await episode(served)
    assert (await session.ask(append(grey(POISON))))["code"] == "policy_failed"
    value = await session.ask(append(grey(70)))
    assert (value["frame"], value["shown"].tolist()) == (0, [0])
    await session.end()


async def test_one_camera_that_fails_takes_the_others_frames_back(served):
    session = await episode(served, cameras=["left", "right"])
    bad = await session.ask(append({"left": grey(10), "right": grey(POISON)}))
    assert bad["code"] == "policy_failed"
    value = await session.ask(append({"left": grey(20, 30), "right": grey(40, 50)}))
    assert value["frame"] == 1
    np.testing.assert_allclose(value["cameras"]["left"]["progress"], bright(30), atol=1e-6)
    np.testing.assert_allclose(value["cameras"]["right"]["progress"], bright(50), atol=1e-6)
    await session.end()


async def test_appends_that_overlap_are_taken_in_order_and_only_those_that_succeed(served):
    session = await episode(served)
    given = {"a": grey(10), "b": grey(POISON), "c": grey(30), "d": grey(POISON), "e": grey(50)}
    for name, frames in given.items():
        session.say(append(frames, request_id=name))
    answers = {}
    for _ in given:
        answer = await session.hear()
        answers[answer["request_id"]] = answer.get("frame", answer.get("code"))
    assert answers == {"a": 0, "b": "policy_failed", "c": 1, "d": "policy_failed", "e": 2}
    await session.end()


async def test_an_append_that_waited_beyond_its_deadline_is_taken_back(served):
    session = await episode(served)
    await session.ask(append(grey(10)))
    another = await connect(served)
    await another.ask({"type": "open", "session": "another", "instruction": "lift it"})
    gate = Gate(served)
    another.say(append(grey(20), session="another"))
    await gate.wait_until_reached()
    session.say(append(grey(30), deadline_ms=50.0))
    await asyncio.sleep(0.2)
    gate.opened.set()
    assert (await session.hear())["code"] == "deadline_exceeded"
    assert (await session.ask(append(grey(40))))["frame"] == 1
    assert (await another.hear())["frame"] == 0
    await session.end()
    await another.end()


async def test_an_append_whose_caller_left_is_taken_back(served):
    session = await episode(served)
    await session.ask(append(grey(10)))
    gate = Gate(served)
    session.say(append(grey(20, 30)))
    await gate.wait_until_reached()
    await session.end()
    gate.opened.set()
    another = await connect(served)
    value = await another.ask(append(grey(40)))
    assert (value["frame"], value["shown"].tolist()) == (1, [0, 1])
    await another.end()


async def test_a_session_that_is_replaced_under_a_failing_append_gives_its_room_back_once(served):
    session = await episode(served)
    gate = Gate(served)
    session.say(append(grey(20, POISON), request_id="late"))
    await gate.wait_until_reached()
    another = await connect(served)
    await another.ask({"type": "open", "session": "episode", "instruction": "lift it"})
    gate.opened.set()
    assert (await session.hear())["code"] == "policy_failed"
    value = await another.ask(append(grey(1, 2, 3, 4)))
    assert value["frame"] == 3, "all of the room is there"
    assert (await another.ask(append(grey(5))))["code"] == "overloaded", "and no more than that"
    await session.end()
    await another.end()
