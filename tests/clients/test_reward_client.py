"""The reward client against a real server over a real socket: values, sessions, restarts, limits, threads and tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clients.errors import RoboserveError
from clients.images import encode_image
from clients.reward import Clip, ClipPair, RewardClient, Video
from clients.reward_async import AsyncRewardClient
from tests.serving.reward_running import RunningReward
from tests.serving.rewards import bright, grey
from tests.serving.test_reward_score import mp4

LEVELS = (10, 60, 110, 160, 210)


@pytest.fixture(scope="module")
def running():
    with RunningReward() as server:
        yield server


@pytest.fixture
def client(running):
    with RewardClient(running.url, timeout_s=20.0) as connected:
        yield connected


def run(work):
    return asyncio.run(asyncio.wait_for(work, 30.0))


def test_the_contract_says_what_answers_and_how(client):
    contract = client.contract
    assert (contract.model, contract.architecture, contract.image_size) == ("mine", "scripted", (32, 32))
    assert contract.frame_policy == "linspace-8"
    assert set(contract.modes) == {"single_pass", "prefix", "final"}
    assert set(contract.supports) == {"success", "compare", "sessions"}


def test_scores_of_several_clips_with_what_they_were_read_from(client):
    scores = client.score([Clip("lift", grey(*LEVELS)), Clip("lift", grey(200))], frame_policy="linspace-3")
    first, second = scores.clips
    np.testing.assert_allclose(first.progress, bright(*LEVELS), atol=1e-6)
    assert first.shown[4].tolist() == [0, 2, 4]
    assert first.final == pytest.approx(210 / 255)
    assert second.indices.tolist() == [0]
    assert (scores.mode, scores.frame_policy, scores.model.id) == ("prefix", "linspace-3", "mine")
    assert scores.timings["total"] > 0


@pytest.mark.parametrize(
    "frames",
    [
        grey(*LEVELS),
        list(grey(*LEVELS, size=64)),
        [encode_image(frame, "png") for frame in grey(*LEVELS)],
        Video(mp4(grey(*LEVELS))),
    ],
    ids=["array", "list of another size", "encoded", "video"],
)
@pytest.mark.parametrize("codec", ["png", "jpeg", "raw"])
def test_clips_in_any_form_and_codec(running, frames, codec):
    with RewardClient(running.url, codec=codec) as client:
        [score] = client.score([Clip("x", frames)]).clips
    np.testing.assert_allclose(score.progress, bright(*LEVELS), atol=3 / 255)


def test_a_video_file_by_its_path(client, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(mp4(grey(*LEVELS)))
    np.testing.assert_allclose(client.score([Clip("x", path)]).clips[0].progress, bright(*LEVELS), atol=2 / 255)


def test_cameras_and_pairs(client):
    cameras = {"front": grey(0, 100), "wrist": grey(100, 200)}
    [score] = client.score([Clip("x", cameras=cameras)]).clips
    np.testing.assert_allclose(score.progress, bright(50, 150), atol=1e-6)
    np.testing.assert_allclose(score.cameras["wrist"].progress, bright(100, 200), atol=1e-6)
    np.testing.assert_allclose(score.progress_max, bright(100, 200), atol=1e-6)
    [better, worse] = client.compare(
        [ClipPair("x", grey(0, 200), grey(0, 10)), ClipPair("x", grey(0, 10), grey(0, 200))], swap=True
    ).pairs
    assert better.p_first > 0.9
    assert worse.p_first < 0.1
    assert better.mean == pytest.approx(better.p_first)


def test_a_session_gives_the_value_after_every_frame(client):
    with client.open("lift it", frame_policy="linspace-2") as session:
        values = [session.append(frame) for frame in grey(*LEVELS)]
    assert [value.frame for value in values] == list(range(5))
    np.testing.assert_allclose([value.progress for value in values], bright(*LEVELS), atol=1e-6)
    assert [value.shown.tolist() for value in values] == [[0], [0, 1], [0, 2], [0, 3], [0, 4]]
    with pytest.raises(RoboserveError, match="not open here"):
        session.append(grey(1))


def test_a_session_of_two_cameras_takes_several_frames_at_once(client):
    with client.open("x", cameras=("front", "wrist")) as session:
        value = session.append({"front": grey(0, 100), "wrist": grey(5, 200)})
        assert (value.frame, value.progress) == (1, pytest.approx(150 / 255))
        assert (value.progress_min, value.progress_max) == (pytest.approx(100 / 255), pytest.approx(200 / 255))
        with pytest.raises(RoboserveError, match="map of the cameras front, wrist"):
            session.append(grey(1))
        with pytest.raises(RoboserveError, match="differ in their number"):
            session.append({"front": grey(1), "wrist": grey(1, 2)})
        assert session.append({"front": grey(9), "wrist": grey(9)}).frame == 2, "what failed left it as it was"


def test_sessions_of_one_name_belong_to_who_opened_them_and_a_new_one_begins_anew(client):
    session = client.open("x", session="mine")
    session.append(grey(1, 2, 3))
    again = client.open("x", session="mine")
    assert again.append(grey(7)).frame == 0


def test_refusals_are_typed(client):
    with pytest.raises(RoboserveError, match=r"clips\[0\]\.frames: has no frames") as caught:
        client.score([Clip("x", [])])
    assert caught.value.code == "invalid_image"
    with pytest.raises(RoboserveError, match="either frames or cameras"):
        client.score([Clip("x")])
    with pytest.raises(RoboserveError, match="linspace-K"):
        client.score([Clip("x", grey(1))], frame_policy="first-3")
    assert client.score([Clip("x", grey(51))]).clips[0].final == pytest.approx(0.2)


def test_a_message_over_the_servers_limit_is_not_sent():
    with RunningReward(limits={"message_bytes": 20_000}) as server, RewardClient(server.url, codec="raw") as client:
        with pytest.raises(RoboserveError, match="the server takes 20000") as caught:
            client.score([Clip("x", grey(*range(20)))])
        assert caught.value.code == "too_large"
        assert client.score([Clip("x", grey(1, 2))]).clips[0].frames == 2


def test_what_is_no_reward_server_is_told_apart(running):
    with pytest.raises(RoboserveError) as caught:
        RewardClient(f"ws://127.0.0.1:{running.port}", model="other")
    assert caught.value.code == "not_found"


def test_scoring_survives_a_restart_and_a_session_says_that_it_is_lost():
    with RunningReward() as server, RewardClient(server.url, timeout_s=30.0) as client:
        session = client.open("x")
        session.append(grey(1))
        server.stop()
        later = threading.Timer(0.5, server.start)
        later.start()
        np.testing.assert_allclose(client.score([Clip("x", grey(*LEVELS))]).clips[0].progress, bright(*LEVELS))
        later.join()
        with pytest.raises(RoboserveError) as caught:
            session.append(grey(2))
        assert caught.value.code in ("unavailable", "not_found")
        assert client.open("x").append(grey(2)).frame == 0


def test_without_a_server_a_call_ends_in_its_time():
    with RunningReward() as server:
        client = RewardClient(server.url)
    started = time.monotonic()
    with pytest.raises(RoboserveError) as caught:
        client.score([Clip("x", grey(1))], timeout_s=0.5)
    assert caught.value.code == "unavailable"
    assert time.monotonic() - started < 10
    client.close()


def test_threads_share_one_client():
    with RunningReward({"seconds_per_frame": 0.002}) as server, RewardClient(server.url) as client:
        clips = [grey(*np.random.default_rng(seed).integers(0, 256, 6)) for seed in range(24)]
        before = server.server.model.forwards
        with ThreadPoolExecutor(8) as pool:
            finals = list(pool.map(lambda clip: client.score([Clip("x", clip)], mode="final").clips[0].final, clips))
        np.testing.assert_allclose(finals, [clip[-1, 0, 0, 0] / 255 for clip in clips], atol=1e-6)
        assert server.server.model.forwards - before < len(clips)


def test_tasks_share_one_client_beyond_the_servers_limit_of_requests_under_way(running):
    async def work():
        async with await AsyncRewardClient.open(running.url) as client:
            clips = [grey(level, level) for level in range(0, 200, 5)]
            scores = await asyncio.gather(*(client.score([Clip("x", clip)]) for clip in clips))
            [pair] = (await client.compare([ClipPair("x", clips[0], clips[-1])])).pairs
            session = await client.session("x")
            value = await session.append(grey(51))
            await session.close()
            return clips, scores, pair, value

    clips, scores, pair, value = run(work())
    finals = [score.clips[0].final for score in scores]
    np.testing.assert_allclose(finals, [clip[0, 0, 0, 0] / 255 for clip in clips], atol=1e-6)
    assert pair.p_first < 0.1
    assert value.progress == pytest.approx(0.2)


def test_the_async_client_survives_a_restart_too():
    async def work(server):
        async with await AsyncRewardClient.open(server.url, timeout_s=30.0) as client:
            await client.score([Clip("x", grey(1))])
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            return await client.score([Clip("x", grey(51))])

    with RunningReward() as server:
        assert run(work(server)).clips[0].final == pytest.approx(0.2)
