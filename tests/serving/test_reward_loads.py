"""Many callers, many clips and long ones: what rides together, what is held, what every answer says of itself."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest

from clients.images import encode_image
from tests.serving.asgi import Session
from tests.serving.rewards import bright, clip, grey, post, reward_server

FACTS = {"id", "revision", "content_hash", "architecture", "dtype", "prompt_version"}


def noise(frames, seed=0, **size):
    return grey(*np.random.default_rng(seed).integers(0, 256, frames), **size)


@pytest.mark.parametrize("mode", ["final", "single_pass", "prefix"])
async def test_concurrent_single_requests_take_fewer_forwards_than_there_are(mode):
    server = reward_server({"seconds_per_frame": 0.001})
    before = server.model.forwards
    asked = [{"clips": [clip(noise(8, seed))], "mode": mode} for seed in range(24)]
    replies = await asyncio.gather(*(post(server, "score", message) for message in asked))
    assert {reply["type"] for reply in replies} == {"scores"}
    assert server.model.forwards - before < 12
    await server.close()


async def test_clips_and_pairs_of_one_request_ride_together():
    server = reward_server({"seconds_per_frame": 0.001})
    before = server.model.forwards
    clips = [noise(8, seed) for seed in range(24)]
    reply = await post(server, "score", {"clips": [clip(frames) for frames in clips], "mode": "final"})
    for frames, scores in zip(clips, reply["clips"], strict=True):
        np.testing.assert_allclose(scores["progress"], bright(int(frames[-1, 0, 0, 0])), atol=1e-6)
    pairs = [{"instruction": "x", "first": first, "second": second} for first, second in itertools.pairwise(clips)]
    reply = await post(server, "compare", {"pairs": pairs})
    assert len(reply["pairs"]) == 23
    assert server.model.forwards - before < 24
    await server.close()


async def test_clips_that_do_not_fit_together_wait_for_each_other():
    one = 8 * 32 * 32 * 3
    server = reward_server({"seconds_per_frame": 0.001}, rewards={"clip_bytes": 2 * one})
    message = {"clips": [clip(noise(8, seed)) for seed in range(7)], "mode": "final"}
    assert (await post(server, "score", message))["type"] == "scores"
    bad = {"clips": [*message["clips"][:3], clip([])], "mode": "final"}
    assert (await post(server, "score", bad))["message"].startswith("clips[3].frames: has no frames")
    assert (await post(server, "score", message))["type"] == "scores", "what failed is counted no more"
    large = await post(server, "score", {"clips": [clip(noise(17))], "mode": "final"})
    assert large["code"] == "too_large"
    await server.close()


async def test_a_clip_that_would_not_fit_is_given_up_while_it_is_decoded():
    """Compressed frames say little of the memory that they take: what is over the cap is never there at once."""
    server = reward_server(rewards={"clip_bytes": 10 * 32 * 32 * 3})
    prepared, prepare = [], server.model.prepare
    server.model.prepare = lambda frame: prepared.append(1) or prepare(frame)
    frames = [encode_image(frame, "png") for frame in noise(100)]
    for message in (
        {"clips": [clip(frames)], "mode": "final"},
        {"clips": [{"instruction": "x", "cameras": {"left": frames[:6], "right": frames[:6]}}], "mode": "final"},
    ):
        reply = await post(server, "score", message)
        assert (reply["code"], "take more memory" in reply["message"]) == ("too_large", True), reply
    reply = await post(server, "compare", {"pairs": [{"instruction": "x", "first": frames[:6], "second": frames[:6]}]})
    assert reply["code"] == "too_large"
    assert len(prepared) == 3 * 11
    assert (await post(server, "score", {"clips": [clip(frames[:10])], "mode": "final"}))["type"] == "scores"
    await server.close()


async def test_a_value_at_each_of_512_frames_stays_within_what_is_set():
    """Frames in one forward, features kept and queries that wait are each bounded, however long the clip."""
    settings = {"forward_tokens": 64, "encode_frames": 16, "request_queries": 8, "cache_bytes": 100 * 64}
    server = reward_server(rewards=settings)
    shown, encoded, kept, waiting = [], [], [], []
    score, encode, on_frames, on_queue = (
        server.model.score,
        server.model.encode,
        server.metrics.on_frames,
        server.metrics.on_queue,
    )

    def watch(seen, note, call):
        def watched(*given, **named):
            seen.append(note(*given, **named))
            return call(*given, **named)

        return watched

    server.model.score = watch(shown, lambda queries: sum(len(query.frames) for query in queries), score)
    server.model.encode = watch(encoded, len, encode)
    server.metrics.on_frames = watch(kept, lambda **named: named["kept"], on_frames)
    server.metrics.on_queue = watch(waiting, lambda depth: depth, on_queue)
    frames = noise(512)
    [scores] = (await post(server, "score", {"clips": [clip(frames)], "mode": "prefix"}))["clips"]
    np.testing.assert_allclose(scores["progress"], bright(*frames[:, 0, 0, 0]), atol=1e-6)
    assert max(shown) <= 64
    assert max(encoded) <= 16
    assert max(waiting) <= 8
    assert 0 < max(kept) <= 100 * 64
    await server.close()


async def test_every_answer_says_which_model_saw_what_and_how():
    server = reward_server()
    frames = noise(12)
    scored = await post(server, "score", {"clips": [clip(frames)], "mode": "final"})
    compared = await post(server, "compare", {"pairs": [{"instruction": "x", "first": frames, "second": frames}]})
    session = await Session().open(server.app)
    await session.hear()
    opened = await session.ask({"type": "open", "instruction": "x"})
    value = await session.ask({"type": "append", "session": opened["session"], "frames": frames})
    for reply in (scored, compared, opened, value):
        assert set(reply["model"]) == FACTS
        assert (reply["model"]["id"], reply["model"]["revision"]) == ("mine", "1")
        assert reply["frame_policy"] == "linspace-8"
    shown = [0, 2, 3, 5, 6, 8, 9, 11]
    assert [part.tolist() for part in scored["clips"][0]["shown"]] == [shown]
    assert compared["pairs"][0]["shown_first"].tolist() == compared["pairs"][0]["shown_second"].tolist() == shown
    assert value["shown"].tolist() == shown
    assert (scored["mode"], value["mode"]) == ("final", "final")
    await session.end()
    await server.close()
