from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from clients.errors import RoboserveError
from clients.path import PathAsk, PathClient, PathFailure, PathQuery
from clients.path_async import AsyncPathClient
from clients.path_messages import read_path
from clients.preference import PreferenceClient
from models.hamster.drawing import POLICY, overlay
from models.hamster.path import Path
from tests.serving.path_running import RunningPath
from tests.serving.paths import ANSWER, SayingEngine, path_server, picture

POINTS = [[0.25, 0.5], [0.75, 0.2]]


@pytest.fixture
def running():
    with RunningPath.of(path_server(SayingEngine())) as server:
        yield server


def test_a_path_and_what_it_comes_from(running) -> None:
    with PathClient(running.url) as client:
        path = client.path(picture(), "close it", PathAsk(audit=True))
        np.testing.assert_array_equal(path.points, POINTS)
        assert path.gripper_open.tolist() == [False, True]
        assert (path.answer, path.issues, path.drawing) == (ANSWER, (), None)
        replies = client.paths([PathQuery(picture(), "close it"), PathQuery(picture(), "open it")])
        assert len(replies.paths) == 2
        assert replies.usage["calls"] == 2
        assert (replies.model.architecture, replies.adapter) == ("vlm", None)
        assert client.contract.structured


def test_an_answer_without_a_path_is_raised_for_one_and_told_for_many(running) -> None:
    running.server.engine.says = ["none", "none"]
    with PathClient(running.url) as client:
        with pytest.raises(RoboserveError, match="no_answer") as caught:
            client.path(picture(), "close it")
        assert caught.value.code == "invalid_output"
        bad, good = client.paths([PathQuery(picture(), "a"), PathQuery(picture(), "b")], PathAsk(audit=True)).paths
        assert isinstance(bad, PathFailure)
        assert (bad.reason, bad.answer) == ("no_answer", "none")
        np.testing.assert_array_equal(good.points, POINTS)


def test_a_drawing_goes_over_later_pictures(running) -> None:
    image = np.random.default_rng(1).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    with PathClient(running.url) as client:
        path = client.path(image, "close it", PathAsk(draw="policy", form="concat"))
        later = np.random.default_rng(2).integers(0, 255, (96, 96, 3), dtype=np.uint8)
        expected = overlay(later, Path(points=POINTS, gripper_open=[False, True]), style=POLICY)
        np.testing.assert_array_equal(path.over(later), expected)
        assert path.six_channels(later).shape == (96, 96, 6)
        with pytest.raises(RoboserveError, match="as the drawing"):
            path.over(picture(8, 8))
        with pytest.raises(RoboserveError, match="none was asked for"):
            client.path(image, "close it").over(image)


def test_a_path_is_kept_and_asked_for_anew(running) -> None:
    engine = running.server.engine
    with PathClient(running.url) as client:
        with client.open(picture(), "close it", session="episode") as kept:
            assert kept.get().path.points.tolist() == POINTS
            assert len(engine.asked) == 1
            engine.says = ["<ans>[(0.10, 0.10)]</ans>"]
            assert kept.requery(picture(level=3)).queries == 2
            assert kept.path.points.tolist() == [[0.1, 0.1]]
        with pytest.raises(RoboserveError, match="not_found"):
            kept.get()


def test_what_does_not_fit_the_contract_is_not_sent(running) -> None:
    with PathClient(running.url) as client:
        with pytest.raises(RoboserveError, match="queries: 9, limit 8"):
            client.paths([PathQuery(picture(), "go")] * 9)
        with pytest.raises(RoboserveError, match=r"queries\[0\].image: float64"):
            client.path(picture() / 2.0, "go")
        with pytest.raises(RoboserveError, match="family 'path'"):
            PreferenceClient(running.url)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"points": None}, "points"),
        ({"points": np.zeros((0, 2))}, "points"),
        ({"points": np.array([[0.5, 1.5]])}, "from 0 to 1"),
        ({"points": np.array([[0.5, np.nan]])}, "from 0 to 1"),
        ({"gripper_open": np.array([True, False])}, "truth values"),
        ({"gripper_open": np.array([1])}, "truth values"),
        ({"issues": "none"}, "issues"),
        ({"drawing": b"\x89PNG\r\n\x1a\nno"}, "drawing"),
    ],
)
def test_a_reply_that_cannot_be_used_is_refused(changes, text) -> None:
    good = {"points": np.array([[0.5, 0.5]]), "gripper_open": np.array([True]), "issues": []}
    assert read_path(good, "path").points.tolist() == [[0.5, 0.5]]
    with pytest.raises(RoboserveError, match=text) as caught:
        read_path({**good, **changes}, "path")
    assert caught.value.code == "invalid_output"


def test_a_restart_is_waited_for(running) -> None:
    with PathClient(running.url) as client:
        assert client.path(picture(), "go").points.tolist() == POINTS
        running.stop()

        async def again():
            return path_server(SayingEngine())

        running._make = again
        restarted = threading.Timer(0.3, running.start)
        restarted.start()
        assert client.path(picture(), "go", timeout_s=30).points.tolist() == POINTS
        restarted.join()


async def test_the_asyncio_client_does_the_same(running) -> None:
    async with await AsyncPathClient.open(running.url) as client:
        paths = await asyncio.gather(*(client.path(picture(), "go") for _ in range(20)))
        assert all(path.points.tolist() == POINTS for path in paths)
        kept = await client.session(picture(), "go", session="a")
        assert (await client.get("a")).path.points.tolist() == kept.path.points.tolist()
        assert (await client.requery("a", picture())).queries == 2
        await client.forget("a")
        with pytest.raises(RoboserveError, match="not_found"):
            await client.get("a")
        running.server.engine.delay_s = 5.0
        with pytest.raises(RoboserveError, match="no answer within"):
            await client.path(picture(), "go", timeout_s=0.3)
