"""Scoring and comparing: what is shown, what comes back, what rides together, and who pays for a bad clip."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest

from clients.images import encode_image
from serving.batcher import Batcher
from tests.serving.rewards import bright, clip, grey, post, reward_server

LEVELS = (10, 40, 70, 100, 130, 160, 190, 220, 250, 30)


@pytest.fixture
async def served():
    server = reward_server()
    yield server
    await server.close()


async def test_single_pass_shows_the_clip_once_and_reads_every_frame_shown(served):
    reply = await post(served, "score", {"clips": [clip(grey(*LEVELS))], "mode": "single_pass", "request_id": "r1"})
    assert reply["type"] == "scores"
    assert reply["request_id"] == "r1"
    assert (reply["mode"], reply["frame_policy"]) == ("single_pass", "linspace-8")
    assert set(reply["model"]) == {"id", "revision", "content_hash", "architecture", "dtype", "prompt_version"}
    [scores] = reply["clips"]
    shown = [0, 1, 3, 4, 5, 6, 8, 9]
    assert scores["frames"] == 10
    assert scores["indices"].tolist() == shown
    assert [window.tolist() for window in scores["shown"]] == [shown]
    np.testing.assert_allclose(scores["progress"], bright(*[LEVELS[i] for i in shown]), atol=1e-6)
    np.testing.assert_array_equal(scores["success"], (scores["progress"] > 0.5).astype(np.float32))


async def test_prefix_gives_a_value_for_every_frame_from_the_frames_up_to_it(served):
    reply = await post(served, "score", {"clips": [clip(grey(*LEVELS))], "frame_policy": "linspace-4"})
    [scores] = reply["clips"]
    assert reply["mode"] == "prefix", "what Robometer's authors do is the default"
    assert scores["indices"].tolist() == list(range(10))
    assert scores["shown"][0].tolist() == [0]
    assert scores["shown"][9].tolist() == [0, 3, 6, 9]
    np.testing.assert_allclose(scores["progress"], bright(*LEVELS), atol=1e-6)


async def test_every_nth_prefix_keeps_the_last(served):
    [scores] = (await post(served, "score", {"clips": [clip(grey(*LEVELS))], "every": 4}))["clips"]
    assert scores["indices"].tolist() == [0, 4, 8, 9]


async def test_final_is_one_value_and_explicit_indices_show_just_those(served):
    asked = {"clips": [clip(grey(*LEVELS))], "mode": "final"}
    [final] = (await post(served, "score", asked))["clips"]
    assert final["indices"].tolist() == [9]
    np.testing.assert_allclose(final["progress"], bright(30), atol=1e-6)
    reply = await post(served, "score", {**asked, "mode": "single_pass", "indices": [2, 2, 7]})
    assert reply["frame_policy"] == "indices"
    np.testing.assert_allclose(reply["clips"][0]["progress"], bright(70, 70, 220), atol=1e-6)


async def test_a_frame_is_encoded_once_however_often_it_is_shown(served):
    before = served.model.encoded
    await post(served, "score", {"clips": [clip(grey(*LEVELS)), clip(grey(*LEVELS[::-1]))]})
    assert served.model.encoded - before == len(LEVELS)
    await post(served, "compare", {"pairs": [{"instruction": "", "first": grey(10, 40), "second": grey(70, 100)}]})
    assert served.model.encoded - before == len(LEVELS)
    text = served.metrics.text().decode()
    assert 'roboserve_frames_encoded_total{family="reward",model="mine"' in text


async def test_with_no_cache_the_values_are_the_same(served):
    bare = reward_server(rewards={"cache_bytes": 0})
    for server in (served, served, bare, bare):
        [scores] = (await post(server, "score", {"clips": [clip(grey(*LEVELS))]}))["clips"]
        np.testing.assert_allclose(scores["progress"], bright(*LEVELS), atol=1e-6)
    assert bare.model.encoded - 1 == 2 * (served.model.encoded - 1), "but for the warm-up's frame"
    await bare.close()


async def test_several_callers_ride_in_fewer_forwards():
    server = reward_server({"seconds_per_frame": 0.002})
    before = server.model.forwards
    clips = [grey(*np.random.default_rng(seed).integers(0, 256, 8)) for seed in range(16)]
    replies = await asyncio.gather(*(post(server, "score", {"clips": [clip(c)], "mode": "final"}) for c in clips))
    for frames, reply in zip(clips, replies, strict=True):
        np.testing.assert_allclose(reply["clips"][0]["progress"], bright(int(frames[-1, 0, 0, 0])), atol=1e-6)
    assert server.model.forwards - before < 8
    assert max(reply["batch_size"] for reply in replies) > 2
    await server.close()


async def test_a_poisoned_clip_costs_its_caller_an_error_and_nobody_else_anything():
    server = reward_server({"poison": 255, "seconds_per_frame": 0.001})
    good, bad = grey(*LEVELS), grey(10, 255)
    asked = [{"clips": [clip(frames)]} for frames in (good, bad, good, good)]
    replies = await asyncio.gather(*(post(server, "score", message) for message in asked))
    assert [reply["type"] for reply in replies] == ["scores", "error", "scores", "scores"]
    assert replies[1]["code"] == "policy_failed"
    for reply in (replies[0], replies[2], replies[3]):
        np.testing.assert_allclose(reply["clips"][0]["progress"], bright(*LEVELS), atol=1e-6)
    await server.close()


async def test_running_out_of_memory_names_the_query_and_spares_the_neighbours(monkeypatch):
    server = reward_server()
    score = server.model.score

    def small(queries):
        if any(len(query.frames) > 4 for query in queries):
            raise MemoryError
        return score(queries)

    monkeypatch.setattr(server.model, "score", small)
    asked = [{"clips": [clip(grey(*LEVELS[:n]))], "mode": "final"} for n in (8, 3)]
    large, fine = await asyncio.gather(*(post(server, "score", message) for message in asked))
    assert (large["code"], fine["type"]) == ("too_large", "scores")
    assert "8 frames" in large["message"]
    await server.close()


@pytest.mark.parametrize("bad", [np.array([0.1, np.nan], np.float32), np.array([0.5, 3.0], np.float32), np.zeros(1)])
async def test_an_unusable_answer_never_leaves_the_server(monkeypatch, bad):
    server = reward_server()
    values = server.model.score

    def wrong(queries):
        return [type(value)(progress=bad, success=None) for value in values(queries)]

    monkeypatch.setattr(server.model, "score", wrong)
    reply = await post(server, "score", {"clips": [clip(grey(1, 2))], "mode": "single_pass"})
    assert reply["code"] == "invalid_output"
    await server.close()


async def test_several_cameras_give_each_and_the_mean_the_least_and_the_most(served):
    cameras = {"front": grey(10, 20), "wrist": grey(50, 200)}
    [scores] = (await post(served, "score", {"clips": [{"instruction": "x", "cameras": cameras}]}))["clips"]
    np.testing.assert_allclose(scores["progress"], bright(30, 110), atol=1e-6)
    np.testing.assert_allclose(scores["progress_min"], bright(10, 20), atol=1e-6)
    np.testing.assert_allclose(scores["progress_max"], bright(50, 200), atol=1e-6)
    np.testing.assert_allclose(scores["cameras"]["wrist"]["progress"], bright(50, 200), atol=1e-6)


async def test_compare_in_both_orders(served):
    pair = {"instruction": "x", "first": grey(10, 200), "second": grey(10, 20)}
    reply = await post(served, "compare", {"pairs": [pair], "swap": True})
    [answer] = reply["pairs"]
    assert answer["p_first"] > 0.99
    assert answer["p_first_swapped"] == pytest.approx(answer["p_first"], abs=1e-6)
    assert answer["shown_first"].tolist() == [0, 1]
    [once] = (await post(served, "compare", {"pairs": [pair]}))["pairs"]
    assert "p_first_swapped" not in once


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def mp4(frames, fps=10, box="mp4"):
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format=box) as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "0", "g": "1"})
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
    return stream.getvalue()


@pytest.mark.parametrize(
    "form",
    [
        lambda frames: frames,
        list,
        lambda frames: [encode_image(frame, "png") for frame in frames],
        lambda frames: [encode_image(frame, "jpeg") for frame in frames],
        lambda frames: {"npy": npy(frames)},
        lambda frames: {"video": mp4(frames), "fps": None},
    ],
    ids=["array", "list", "png", "jpeg", "npy", "mp4"],
)
async def test_a_clip_may_come_in_any_of_these_forms(served, form):
    [scores] = (await post(served, "score", {"clips": [clip(form(grey(*LEVELS)))]}))["clips"]
    np.testing.assert_allclose(scores["progress"], bright(*LEVELS), atol=2 / 255)


async def test_a_video_is_sampled_at_the_rate_asked_for(served):
    data = mp4(grey(*range(0, 200, 10)), fps=10)
    [scores] = (await post(served, "score", {"clips": [clip({"video": data, "fps": 5})]}))["clips"]
    np.testing.assert_allclose(scores["progress"], bright(*range(0, 200, 20)), atol=2 / 255)


async def test_work_past_its_deadline_is_not_run():
    server = reward_server({"seconds_per_frame": 0.02})
    forwards = server.model.forwards
    slow = asyncio.create_task(post(server, "score", {"clips": [clip(grey(*LEVELS))], "mode": "final"}))
    await asyncio.sleep(0.05)
    late = await post(server, "score", {"clips": [clip(grey(1, 2))], "mode": "final", "deadline_ms": 1})
    assert late["code"] == "deadline_exceeded"
    assert (await slow)["type"] == "scores"
    assert server.model.forwards - forwards == 1
    await server.close()


async def test_a_long_clip_leaves_room_for_others(monkeypatch):
    """A request of many queries puts a bounded number of them into the queue at a time."""
    server = reward_server({"seconds_per_frame": 0.0005}, rewards={"request_queries": 4, "forward_tokens": 16})
    depths = []
    submit = Batcher.submit

    async def watched(self, *args, **kwargs):
        depths.append(self.depth)
        return await submit(self, *args, **kwargs)

    monkeypatch.setattr(Batcher, "submit", watched)
    random = np.random.default_rng(0)
    long = post(server, "score", {"clips": [clip(grey(*random.integers(0, 256, 100)))]})
    short = post(server, "score", {"clips": [clip(grey(5, 6))], "mode": "final"})
    replies = await asyncio.gather(long, short)
    assert [reply["type"] for reply in replies] == ["scores", "scores"]
    assert len(replies[0]["clips"][0]["progress"]) == 100
    assert max(depths) <= 5
    await server.close()


async def test_frames_under_way_are_capped_in_bytes():
    server = reward_server({"seconds_per_frame": 0.02}, rewards={"clip_bytes": 10 * 32 * 32 * 3})
    asked = {"clips": [clip(grey(*LEVELS[:8]))], "mode": "final"}
    replies = await asyncio.gather(post(server, "score", asked), post(server, "score", asked))
    assert sorted(reply["type"] for reply in replies) == ["error", "scores"]
    [refused] = [reply for reply in replies if reply["type"] == "error"]
    assert refused["code"] == "overloaded"
    assert (await post(server, "score", asked))["type"] == "scores", "what is done is counted no more"
    await server.close()
