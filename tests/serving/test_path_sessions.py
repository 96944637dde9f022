"""A robot's path: asked for once, read again, asked for anew, forgotten."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from clients.errors import RoboserveError
from serving.path_config import PathSettings
from serving.path_sessions import PathSessions
from tests.serving.asgi import Session
from tests.serving.paths import ANSWER, SayingEngine, path_server, picture, post
from tests.serving.preferences import counter

OTHER = "<ans>[(0.10, 0.10), (0.90, 0.90)]</ans>"


def opening(**more):
    return {"image": picture(), "instruction": "close the drawer", **more}


async def test_a_path_is_asked_for_once_and_read_again() -> None:
    engine = SayingEngine(ANSWER, OTHER)
    server = path_server(engine)
    opened = await post(server, opening(session="episode", options={"draw": "policy"}), kind="open")
    assert (opened["type"], opened["session"], opened["queries"]) == ("kept", "episode", 1)
    assert opened["path"]["drawing"].startswith(b"\x89PNG")
    assert opened["usage"]["calls"] == 1
    for _ in range(3):
        got = await post(server, {"session": "episode"}, kind="get")
        assert got["path"]["points"].tolist() == opened["path"]["points"].tolist()
        assert got["instruction"] == "close the drawer"
    assert len(engine.asked) == 1
    again = await post(server, {"session": "episode", "image": picture(level=9)}, kind="requery")
    assert again["path"]["points"].tolist() == [[0.1, 0.1], [0.9, 0.9]]
    assert "drawing" in again["path"], "options stay as the session was opened with"
    assert again["queries"] == 2
    assert engine.images[1][0, 0, 0] == 9
    assert engine.asked[1].messages[0].text == engine.asked[0].messages[0].text
    assert (await post(server, {"session": "episode"}, kind="get"))["path"]["points"].tolist() == [
        [0.1, 0.1],
        [0.9, 0.9],
    ]
    assert (await post(server, {"session": "episode"}, kind="close"))["type"] == "closed"
    assert (await post(server, {"session": "episode"}, kind="get"))["code"] == "not_found"
    assert (await post(server, {"session": "episode"}, kind="close"))["type"] == "closed"


async def test_a_new_instruction_and_new_options_hold_from_then_on() -> None:
    engine = SayingEngine()
    server = path_server(engine)
    session = (await post(server, opening(), kind="open"))["session"]
    more = {"session": session, "image": picture(40, 80), "instruction": "open it", "options": {"view": "center_crop"}}
    assert (await post(server, more, kind="requery"))["instruction"] == "open it"
    await post(server, {"session": session, "image": picture(40, 80)}, kind="requery")
    assert [image.shape[:2] for image in engine.images] == [(40, 60), (40, 40), (40, 40)]
    assert "open it" in engine.asked[2].messages[0].text


async def test_an_answer_without_a_path_leaves_the_one_that_was() -> None:
    engine = SayingEngine(ANSWER, "no", "no")
    server = path_server(engine)
    session = (await post(server, opening(), kind="open"))["session"]
    failed = await post(server, {"session": session, "image": picture()}, kind="requery")
    assert (failed["code"], "no_answer" in failed["message"]) == ("invalid_output", True)
    kept = await post(server, {"session": session}, kind="get")
    assert (kept["queries"], kept["path"]["points"].tolist()) == (1, [[0.25, 0.5], [0.75, 0.2]])
    assert (await post(server, opening(), kind="open"))["code"] == "invalid_output"
    assert counter(server, "roboserve_path_sessions") == 1


async def test_a_path_outlives_the_connection_that_it_was_asked_on() -> None:
    server = path_server()
    first = await Session().open(server.app, path="/path/mine")
    await first.hear()
    session = (await first.ask({"type": "open", **opening()}))["session"]
    await first.end()
    second = await Session().open(server.app, path="/path/mine")
    await second.hear()
    assert (await second.ask({"type": "get", "session": session}))["session"] == session
    await second.end()


async def test_a_session_opened_anew_while_it_is_asked_about_is_not_overwritten() -> None:
    engine = SayingEngine(ANSWER, OTHER, ANSWER, delay_s=0.05)
    server = path_server(engine)
    await post(server, opening(session="s"), kind="open")
    asking = asyncio.create_task(post(server, {"session": "s", "image": picture()}, kind="requery"))
    await asyncio.sleep(0.01)
    await post(server, {"session": "s"}, kind="close")
    assert (await asking)["code"] == "not_found"


async def test_over_http_only_a_single_replica_keeps_paths() -> None:
    refused = await post(path_server(replicas=2), opening(), kind="open")
    assert (refused["code"], "websocket" in refused["message"]) == ("invalid_request", True)


@pytest.mark.parametrize(
    ("kind", "message", "text"),
    [
        ("open", {"image": picture()}, "instruction"),
        ("open", {"instruction": "go"}, "image"),
        ("open", opening(session=3), "session"),
        ("open", opening(options={"view": "no"}), "options.view"),
        ("open", opening(queries=[]), "queries"),
        ("get", {}, "session: is missing"),
        ("get", {"session": "s", "image": picture()}, "image"),
        ("requery", {"session": "s"}, "image"),
        ("requery", {"image": picture()}, "session: is missing"),
        ("requery", {"session": "s", "image": picture(), "instruction": "x" * 600}, "600 characters"),
        ("close", {"session": "s" * 200}, "session"),
    ],
)
async def test_a_wrong_message_is_refused_by_field(kind, message, text) -> None:
    refused = await post(path_server(), message, kind=kind)
    assert refused["code"] in ("invalid_request", "too_large")
    assert text in refused["message"]


class Kept:
    """Kept paths under a clock of the test's own."""

    def __init__(self, **settings) -> None:
        self.now, self.count = 0.0, 0
        self.sessions = PathSessions(PathSettings(**settings), now=lambda: self.now, on_count=self._told)

    def _told(self, count: int) -> None:
        self.count = count

    def keep(self, owner: str, name: str | None = None):
        key = self.sessions.key(SimpleNamespace(id=owner), name)
        return self.sessions.keep(key, "go", None, None).key.session

    def find(self, owner: str, name: str):
        return self.sessions.find(SimpleNamespace(id=owner), name)


def test_nobody_reaches_anothers_path() -> None:
    kept = Kept()
    kept.keep("one", "shared")
    kept.keep("two", "shared")
    assert kept.count == 2
    assert kept.find("one", "shared") is not kept.find("two", "shared")
    kept.sessions.close(SimpleNamespace(id="two"), "shared")
    with pytest.raises(RoboserveError, match="not_found"):
        kept.find("two", "shared")
    assert kept.find("one", "shared").queries == 1


def test_kept_paths_are_bounded_and_forgotten_when_nobody_asks() -> None:
    kept = Kept(sessions=2, session_idle_s=10.0)
    first, _ = kept.keep("one"), kept.keep("one")
    with pytest.raises(RoboserveError, match="2 paths are kept, limit 2"):
        kept.keep("one")
    kept.keep("one", first)  # in its own place
    kept.now = 8.0
    kept.find("one", first)
    kept.now = 15.0
    assert kept.keep("two")
    assert kept.find("one", first)
    kept.now = 30.0
    with pytest.raises(RoboserveError, match="for 10 s is dropped"):
        kept.find("one", first)
    assert kept.count == 0
