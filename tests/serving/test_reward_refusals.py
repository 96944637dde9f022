"""Bad input: a typed error that names the field, the value and the limit; the server answers the next request."""

from __future__ import annotations

import io
import re

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import RoboserveError
from clients.images import encode_image
from serving.clips import ClipLimits, clip_frames
from tests.serving.asgi import Session, http
from tests.serving.rewards import MSGPACK, bright, clip, grey, post, reward_server
from tests.serving.test_reward_score import mp4, npy

LIMITS = ClipLimits(frames=8, pixels=64 * 64)


@pytest.fixture
async def served():
    server = reward_server(rewards={"clip_frames": 64, "clips": 4, "cameras": 2})
    yield server
    await server.close()


def npy_of_shape(*shape: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(abs(int(np.prod(shape))))


BAD = [
    ({}, "invalid_request", "clips: must be a list"),
    ({"clips": []}, "invalid_request", "clips: must be a list of at least one"),
    ({"clips": [clip(grey(1))] * 5}, "too_large", "clips: 5, limit 4"),
    ({"clips": [1]}, "invalid_request", "clips[0]: must be a map"),
    ({"clips": [{"frames": grey(1)}]}, "invalid_request", "clips[0].instruction: must be text"),
    ({"clips": [clip(grey(1), "x" * 100_000)]}, "too_large", "text"),
    ({"clips": [clip(grey(1), "x" * 1000)]}, "too_large", "clips[0].instruction: 1000 characters, limit 512"),
    ({"clips": [clip(np.zeros((0, 4, 4, 3), np.uint8))]}, "invalid_image", "clips[0].frames: has no frames"),
    ({"clips": [clip([])]}, "invalid_image", "clips[0].frames: has no frames"),
    ({"clips": [clip(np.zeros((65, 2, 2, 3), np.uint8))]}, "too_large", "clips[0].frames: 65 frames, limit 64"),
    ({"clips": [clip([np.zeros((2, 2, 3), np.uint8)] * 65)]}, "too_large", "65 frames, limit 64"),
    ({"clips": [clip({"video": mp4(np.zeros((70, 16, 16, 3), np.uint8))})]}, "too_large", "limit 64"),
    ({"clips": [clip({"video": mp4(np.zeros((70, 16, 16, 3), np.uint8)), "fps": 100})]}, "too_large", "limit"),
    ({"clips": [clip({"video": b"no video at all" * 50})]}, "invalid_image", "clips[0].frames.video: is no mp4"),
    ({"clips": [clip({"video": b"RIFF0000AVI ", "fps": None})]}, "invalid_image", "is no mp4"),
    ({"clips": [clip({"video": b"", "fps": -1})]}, "invalid_request", "clips[0].frames.fps: -1"),
    ({"clips": [clip({"npy": b"\x93NUMPY\x01\x00"})]}, "invalid_image", "is no .npy file"),
    ({"clips": [clip({"npy": npy(np.array([{"a": 1}], dtype=object))})]}, "invalid_image", "needs numbers"),
    ({"clips": [clip({"npy": npy(grey(1, 2))[:-7]})]}, "invalid_image", "bytes follow the header"),
    ({"clips": [clip({"npy": npy(np.zeros((2, 4, 4, 3), np.float32))})]}, "invalid_image", "needs uint8"),
    ({"clips": [clip(np.full((2, 4, 4, 3), np.nan, np.float32))]}, "invalid_image", "dtype float32, needs uint8"),
    ({"clips": [clip({"npy": npy_of_shape(-1, -4, 4, 3)})]}, "invalid_image", "no side may be negative"),
    ({"clips": [clip(np.zeros((1, 1, 300, 3), np.uint8))]}, "invalid_image", "one side over 200 times the other"),
    ({"clips": [clip([encode_image(np.zeros((300, 1, 3), np.uint8), "png")])]}, "invalid_image", "clips[0].frames[0]"),
    ({"clips": [clip(np.zeros((2, 4, 4), np.uint8))]}, "invalid_image", "shape (2, 4, 4)"),
    ({"clips": [clip([b"\xff\xd8\xff\x00broken"])]}, "invalid_image", "clips[0].frames[0]"),
    ({"clips": [clip("frames")]}, "invalid_image", "clips[0].frames: must be"),
    ({"clips": [{**clip(grey(1)), "cameras": {}}]}, "invalid_request", "either 'frames' or 'cameras'"),
    ({"clips": [{"instruction": "", "cameras": {"a": grey(1), "b": grey(1, 2)}}]}, "invalid_request", "differ"),
    ({"clips": [{"instruction": "", "cameras": dict.fromkeys("abc", grey(1))}]}, "too_large", "3 cameras, limit 2"),
    ({"clips": [clip(grey(1))], "mode": "tail"}, "invalid_request", "mode: 'tail'; known are"),
    ({"clips": [clip(grey(1))], "frame_policy": "tail-8"}, "invalid_request", "linspace-K"),
    ({"clips": [clip(grey(1))], "frame_policy": "linspace-65"}, "too_large", "shows 65 frames, limit 64"),
    ({"clips": [clip(grey(1))], "indices": [0], "mode": "prefix"}, "invalid_request", "indices: cannot be combined"),
    ({"clips": [clip(grey(1))], "indices": [3], "mode": "final"}, "invalid_request", "indices: 3"),
    ({"clips": [clip(grey(1))], "indices": [1, 0], "mode": "final"}, "invalid_request", "in order"),
    ({"clips": [clip(grey(1))], "every": 0}, "invalid_request", "every: 0"),
    ({"clips": [clip(grey(1))], "every": 2, "mode": "final"}, "invalid_request", "every: 2"),
    ({"clips": [clip(grey(1))], "evry": 2}, "invalid_request", "unknown entries evry"),
    ({"clips": [clip(grey(1))], "model": "other"}, "not_found", "'other' is not served here"),
    ({"clips": [clip(grey(1))], "deadline_ms": -3}, "deadline_exceeded", "deadline_ms: -3"),
]


@pytest.mark.parametrize(("message", "code", "text"), BAD, ids=[text for _, _, text in BAD])
async def test_a_bad_score_request(served, message, code, text):
    reply = await post(served, "score", {**message, "request_id": "r"})
    assert reply["type"] == "error"
    assert reply["code"] == code
    assert text in reply["message"]
    good = await post(served, "score", {"clips": [clip(grey(9))]})
    np.testing.assert_allclose(good["clips"][0]["progress"], bright(9), atol=1e-6)


async def test_one_frame_is_a_clip(served):
    for mode in ("single_pass", "prefix", "final"):
        [scores] = (await post(served, "score", {"clips": [clip(grey(51))], "mode": mode}))["clips"]
        np.testing.assert_allclose(scores["progress"], bright(51), atol=1e-6)


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ({"first": grey(1, 2), "second": grey(1)}, "first shows 2 frames, second 1"),
        ({"first": grey(1)}, "pairs[0].second: is missing"),
        ({"first": grey(1), "second": []}, "pairs[0].second: has no frames"),
        ({"first": grey(1), "second": grey(1), "third": 1}, "unknown entries third"),
    ],
)
async def test_a_bad_pair(served, pair, text):
    reply = await post(served, "compare", {"pairs": [{"instruction": "x", **pair}]})
    assert reply["type"] == "error"
    assert text in reply["message"]


async def test_unequal_clips_compare_under_a_policy_that_pads(served):
    pair = {"instruction": "x", "first": grey(1, 2, 3), "second": grey(9)}
    reply = await post(served, "compare", {"pairs": [pair], "frame_policy": "linspace-4-pad"})
    assert reply["pairs"][0]["shown_second"].tolist() == [0, 0, 0, 0]


async def test_what_is_no_message_and_no_route(served):
    status, _, _ = await http(served.app, "POST", "/score", b"\xc1nothing", headers=MSGPACK)
    assert status == 400
    status, _, _ = await http(served.app, "POST", "/act", b"", headers=MSGPACK)
    assert status == 404
    reply = await post(served, "score", {"type": "compare", "pairs": []})
    assert "does not belong to this route" in reply["message"]


async def test_a_bad_request_on_a_websocket_leaves_the_session_open(served):
    session = await Session().open(served.app)
    contract = await session.hear()
    assert (contract["family"], contract["type"]) == ("reward", "contract")
    assert (await session.ask({"type": "score", "clips": [], "request_id": "a"}))["code"] == "invalid_request"
    assert (await session.ask({"type": "ping", "request_id": "b"}))["type"] == "pong"
    good = await session.ask({"type": "score", "clips": [clip(grey(51))], "request_id": "c"})
    assert good["type"] == "scores"
    await session.end()


CLIPS = st.one_of(
    st.binary(max_size=64),
    st.text(max_size=8),
    st.none(),
    st.integers(),
    st.lists(st.one_of(st.binary(max_size=32), st.none(), st.integers()), max_size=10),
    st.builds(lambda data: {"video": data}, st.binary(max_size=200)),
    st.builds(lambda data, fps: {"video": data, "fps": fps}, st.binary(max_size=64), st.floats()),
    st.builds(lambda data: {"npy": data}, st.binary(max_size=200)),
    st.builds(lambda data: {"npy": b"\x93NUMPY\x01\x00" + data}, st.binary(max_size=200)),
    st.builds(
        np.zeros,
        st.lists(st.integers(0, 5), max_size=5),
        st.sampled_from(["u1", "i4", "f4", "?"]),
    ),
)


def frames_or_refusal(value):
    try:
        return list(clip_frames(value, field="clip", limits=LIMITS)), ""
    except RoboserveError as error:
        return [], error.message


@settings(max_examples=300, deadline=None)
@given(CLIPS)
def test_anything_is_frames_or_a_typed_error(value):
    frames, refusal = frames_or_refusal(value)
    assert refusal.startswith("clip") if refusal else 0 < len(frames) <= LIMITS.frames
    assert all(frame.dtype == np.uint8 and frame.ndim == 3 for frame in frames)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 4000), st.integers(0, 255), st.integers(0, 20))
def test_a_damaged_video_is_frames_or_a_typed_error(at, byte, cut):
    data = bytearray(VIDEO[: len(VIDEO) - cut * 37])
    data[at % len(data)] = byte
    frames, refusal = frames_or_refusal({"video": bytes(data)})
    assert refusal.startswith("clip.video") if refusal else 0 < len(frames) <= LIMITS.frames


VIDEO = mp4(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("fps", [None, 0.1])
def test_a_video_whose_pictures_grow_is_refused_even_where_they_are_skipped(fps):
    with pytest.raises(RoboserveError, match=r"clip\.video") as caught:
        list(clip_frames({"video": growing(32, 512), "fps": fps}, field="clip", limits=LIMITS))
    assert caught.value.code == "invalid_image"


def growing(small: int, large: int) -> bytes:
    """A video whose header tells of small pictures, and whose later ones are large."""
    few, many = (
        av.open(io.BytesIO(mp4(np.zeros((2, side, side, 3), np.uint8), box=box)), format=box)
        for side, box in ((small, "mp4"), (large, "h264"))
    )
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as out:
        stream = out.add_stream_from_template(few.streams.video[0])
        for packet in few.demux(few.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
        for number, packet in enumerate(many.demux(many.streams.video[0])):
            if packet.size:
                units = re.split(b"\x00\x00\x00?\x01", bytes(packet))[1:]
                moved = av.Packet(b"".join(len(unit).to_bytes(4, "big") + unit for unit in units))
                moved.stream, moved.time_base, moved.is_keyframe = stream, stream.time_base, True
                moved.pts = moved.dts = (number + 2) * int(1 / (10 * stream.time_base))
                out.mux(moved)
    return sink.getvalue()


def test_a_header_that_claims_gigabytes_is_refused_before_anything_is_made():
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (100_000, 4000, 4000, 3)}
    )
    with pytest.raises(RoboserveError, match="bytes follow the header"):
        list(clip_frames({"npy": stream.getvalue()}, field="clip", limits=LIMITS))
