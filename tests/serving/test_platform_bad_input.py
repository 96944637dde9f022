"""Bad input over the websocket, over HTTP and in openpi's dialect, beside a neighbour who must not notice."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from clients.errors import ERROR_TABLE
from clients.wire import decode, encode
from tests.serving.speaking import act, bomb, flat, image, jpeg, observation, post, talk

pytestmark = pytest.mark.usefixtures("neighbour")


def seen(**changes):
    return act(observation={**observation(), **changes})


def state(*values, dtype=np.float32):
    return np.array(values, dtype)


def nan_state():
    values = np.zeros(8, np.float32)
    values[3] = np.nan
    return values


def array(data: bytes, dtype: str, shape: list[int]) -> dict:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


LONG = "x" * 513
CUT = jpeg()[: len(jpeg()) // 2]

# name: message, code, words that the message must hold
FIELDS = {
    "missing camera": (seen(images={}), "invalid_request", ["images", "front", "missing"]),
    "extra camera": (seen(images={"front": image(), "rear": image()}), "invalid_request", ["images", "rear", "front"]),
    "images no map": (seen(images=[image()]), "invalid_request", ["images", "map"]),
    "image size": (seen(images={"front": image(16, 24)}), "invalid_image", ["images.front", "24 x 16", "32 x 32"]),
    "jpeg size": (seen(images={"front": jpeg(16, 24)}), "invalid_image", ["images.front", "24 x 16", "32 x 32"]),
    "image dtype": (
        seen(images={"front": image().astype(np.float32)}),
        "invalid_image",
        ["images.front", "float32", "uint8"],
    ),
    "four channels": (seen(images={"front": image(channels=4)}), "invalid_image", ["images.front", "(32, 32, 4)"]),
    "grey image": (seen(images={"front": image()[..., 0]}), "invalid_image", ["images.front", "(32, 32)"]),
    "empty image": (seen(images={"front": image(0, 0)}), "invalid_image", ["images.front", "0 x 0"]),
    "image is text": (seen(images={"front": "file:///etc/passwd"}), "invalid_image", ["images.front"]),
    "no image at all": (seen(images={"front": b"GIF89a" + bytes(64)}), "invalid_image", ["images.front", "JPEG"]),
    "truncated jpeg": (seen(images={"front": CUT}), "invalid_image", ["images.front", "cut short"]),
    "bomb jpeg": (seen(images={"front": bomb()}), "too_large", ["images.front", "pixels", "4194304"]),
    "lesser bomb": (seen(images={"front": bomb(4000, 4000)}), "too_large", ["images.front", "4000 x 4000"]),
    "nan in state": (seen(state=nan_state()), "invalid_state", ["state", "'s3'", "nan", "finite"]),
    "state overflow": (seen(state=np.full(8, 1e300)), "invalid_state", ["state", "'s0'", "1e+300"]),
    "state size": (seen(state=np.zeros(7, np.float32)), "invalid_state", ["state", "(7,)", "(8,)"]),
    "state shape": (seen(state=np.zeros((2, 4), np.float32)), "invalid_state", ["state", "(2, 4)", "(8,)"]),
    "state of bools": (seen(state=np.zeros(8, np.bool_)), "invalid_state", ["state", "bool"]),
    "state is text": (seen(state="0,0,0"), "invalid_state", ["state", "numeric", "str"]),
    "state is a list": (seen(state=[0.0] * 8), "invalid_state", ["state", "array", "list"]),
    "text over the limit": (seen(instruction=LONG), "too_large", ["instruction", "513", "512"]),
    "text is bytes": (seen(instruction=b"go"), "invalid_request", ["instruction", "text", "bytes"]),
    "no instruction": (seen(instruction=None), "invalid_request", ["instruction", "text"]),
    "unknown observation": (seen(video=1), "invalid_request", ["observation", "video"]),
    "no observation": (act(observation=None), "invalid_request", ["observation", "map"]),
    "observation is an array": (act(observation=np.zeros(4)), "invalid_request", ["observation", "map"]),
    "unknown model": (act(model="gpt"), "not_found", ["model", "'gpt'", "'zero'"]),
    "unknown adapter": (act(adapter="lora"), "not_found", ["adapter", "'lora'"]),
    "deadline of zero": (act(deadline_ms=0), "deadline_exceeded", ["deadline_ms", "0", "passed"]),
    "deadline in the past": (act(deadline_ms=-250.0), "deadline_exceeded", ["deadline_ms", "-250"]),
    "deadline nan": (act(deadline_ms=float("nan")), "invalid_request", ["deadline_ms", "nan"]),
    "deadline too far": (act(deadline_ms=1e12), "invalid_request", ["deadline_ms", "1e+12", "3.6e+06"]),
    "deadline is text": (act(deadline_ms="soon"), "invalid_request", ["deadline_ms", "number"]),
    "deadline is true": (act(deadline_ms=True), "invalid_request", ["deadline_ms", "number"]),
    "misspelt deadline": (act(deadline=100), "invalid_request", ["deadline", "deadline_ms"]),
    "long session": (act(session="s" * 129), "invalid_request", ["session", "128"]),
    "session is an array": (act(session=np.zeros(3)), "invalid_request", ["session", "text"]),
    "request id is a number": (act(request_id=7), "invalid_request", ["request_id", "text"]),
    "options are an array": (act(options=np.zeros(3)), "invalid_request", ["options", "map"]),
    "unknown option": (act(options={"sed": 1}), "invalid_request", ["options", "sed", "seed"]),
    "negative seed": (act(options={"seed": -1}), "invalid_request", ["seed", "-1", "0"]),
    "seed is true": (act(options={"seed": True}), "invalid_request", ["seed", "True"]),
    "seed is a float": (act(options={"seed": 1.5}), "invalid_request", ["seed", "1.5"]),
    "unsupported steps": (act(options={"integration_steps": 4}), "invalid_request", ["integration_steps", "'zero'"]),
    "executed beyond": (act(options={"executed": 17}), "invalid_request", ["executed", "17", "16"]),
    "executed before any": (act(session="fresh", options={"executed": 3}), "invalid_request", ["executed", "earlier"]),
    "leftover width": (
        act(options={"leftover": np.zeros((4, 3), np.float32)}),
        "invalid_request",
        ["leftover", "16", "4"],
    ),
    "leftover nan": (
        act(options={"leftover": np.full((4, 4), np.nan, np.float32)}),
        "invalid_request",
        ["leftover", "finite"],
    ),
    "leftover overflow": (act(options={"leftover": np.full((4, 4), 1e300)}), "invalid_request", ["leftover", "finite"]),
    "flag is a number": (act(options={"return_model_actions": 1}), "invalid_request", ["return_model_actions", "1"]),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_bad_field_costs_its_request_a_typed_error_and_the_session_goes_on(platform, case):
    message, code, words = FIELDS[case]
    with talk(platform) as session:
        reply = session.ask(message)
        check(reply, code, words)
        assert session.ask(act("after"))["request_id"] == "after"


@pytest.mark.parametrize("case", FIELDS)
def test_a_bad_field_over_http(platform, case):
    message, code, words = FIELDS[case]
    response = post(platform, "/act", message)
    assert response.status_code == ERROR_TABLE[code].http
    check(decode(response.content), code, words)
    assert post(platform, "/act", act()).status_code == 200


def check(reply, code, words):
    assert (reply["type"], reply["code"]) == ("error", code), reply
    assert all(word in reply["message"] for word in words), reply["message"]
    assert reply["retryable"] == ERROR_TABLE[code].retryable
    assert reply["request_id"] in ("r1", None)
    assert "Traceback" not in reply["message"]
    assert ".py" not in reply["message"]
    assert "0x" not in reply["message"]


def nested(depth: int):
    node: object = 1
    for _ in range(depth):
        node = {"a": node}
    return node


def pack(message) -> bytes:
    return msgpack.packb(message)


WIRE = {
    "object dtype": (pack({"type": "act", "x": array(bytes(8), "|O", [1])}), "malformed", ["dtype"]),
    "void dtype": (pack({"x": array(bytes(8), "|V8", [1])}), "malformed", ["dtype"]),
    "negative dimension": (pack({"x": array(bytes(8), "|u1", [-1, -8])}), "malformed", ["shape", "negative"]),
    "lying length": (pack({"x": array(bytes(8), "<f4", [1_000_000])}), "malformed", ["8 bytes"]),
    "huge dimension": (pack({"x": array(b"", "<f4", [2**62, 2**62, 0])}), "malformed", ["shape"]),
    "deep nesting": (pack(nested(9)), "too_large", ["nested", "8"]),
    "very deep nesting": (b"\x81\xa1a" * 5000 + b"\xc0", "too_large", ["nested"]),
    "cut message": (encode(act())[:-10], "malformed", ["ends"]),
    "lying bin": (b"\x81\xa1a\xc6\xff\xff\xff\xff" + bytes(8), "malformed", ["ends"]),
    "bytes left over": (encode(act()) + b"\x00", "malformed", ["left over"]),
    "no map": (pack([1, 2, 3]), "malformed", ["map"]),
    "extension type": (msgpack.packb({"x": msgpack.ExtType(1, b"a")}), "malformed", ["extension"]),
    "reserved byte": (b"\xc1", "malformed", ["extension"]),
    "key is a number": (pack({1: 2}), "malformed", ["message", "valid"]),
    "too many values": (pack({"x": [[0] * 900, [0] * 900]}), "too_large", ["1024"]),
    "long list": (pack({"x": [0] * 1500}), "too_large", ["1500", "1024"]),
    "long text": (pack({"x": "a" * 70_000}), "too_large", ["70000", "65536"]),
    "empty message": (b"", "malformed", ["ends"]),
}


@pytest.mark.parametrize("case", WIRE)
def test_bytes_that_are_no_message_end_the_session_with_a_typed_error(platform, case):
    data, code, words = WIRE[case]
    with talk(platform) as session:
        check(session.ask(data), code, words)
        with pytest.raises(ConnectionClosed) as closed:
            session.hear()
        assert closed.value.rcvd.code == ERROR_TABLE[code].websocket
        assert code in closed.value.rcvd.reason
    with talk(platform) as session:
        assert session.ask(act())["type"] == "action"


@pytest.mark.parametrize("case", WIRE)
def test_bytes_that_are_no_message_over_http(platform, case):
    data, code, words = WIRE[case]
    response = post(platform, "/act", data)
    assert response.status_code == ERROR_TABLE[code].http
    check(decode(response.content), code, words)
    assert post(platform, "/act", act()).status_code == 200


def test_a_text_frame_in_the_native_dialect(platform):
    with talk(platform) as session:
        check(session.ask("hello"), "malformed", ["binary", "text"])
        with pytest.raises(ConnectionClosed) as closed:
            session.hear()
        assert closed.value.rcvd.code == 1007


OPENPI = {
    "missing camera": ({"observation/state": np.zeros(8), "prompt": "go"}, "invalid_request", ["observation/front"]),
    "extra key": (flat(wrist=image()), "invalid_request", ["wrist", "observation/front"]),
    "image dtype": (flat(**{"observation/front": image().astype(np.float32)}), "invalid_image", ["observation/front"]),
    "channels": (flat(**{"observation/front": image(channels=4)}), "invalid_image", ["observation/front", "4"]),
    "truncated jpeg": (flat(**{"observation/front": CUT}), "invalid_image", ["observation/front", "cut short"]),
    "bomb jpeg": (flat(**{"observation/front": bomb()}), "too_large", ["observation/front", "4194304"]),
    "nan in state": (flat(**{"observation/state": nan_state()}), "invalid_state", ["observation/state", "'s3'", "nan"]),
    "state size": (flat(**{"observation/state": np.zeros(7)}), "invalid_state", ["observation/state", "(7,)", "(8,)"]),
    "ragged state": (flat(**{"observation/state": [[1.0], [1.0, 2.0]]}), "invalid_state", ["observation/state"]),
    "state of text": (flat(**{"observation/state": ["a"] * 8}), "invalid_state", ["observation/state"]),
    "no prompt": ({k: v for k, v in flat().items() if k != "prompt"}, "invalid_request", ["prompt", "text"]),
    "text over the limit": (flat(prompt=LONG), "too_large", ["prompt", "513", "512"]),
    "object dtype": (pack({"x": array(bytes(8), "|O", [1])}), "malformed", ["dtype"]),
    "negative dimension": (pack({"x": array(bytes(8), "|u1", [-1, -8])}), "malformed", ["negative"]),
    "lying length": (pack({"x": array(bytes(8), "<f4", [99])}), "malformed", ["8 bytes"]),
    "deep nesting": (pack(nested(9)), "too_large", ["nested"]),
    "text frame": ("hello", "malformed", ["binary"]),
    "cut message": (encode(flat())[:-10], "malformed", ["ends"]),
}


@pytest.mark.parametrize("case", OPENPI)
def test_bad_input_in_openpi_terms_is_a_text_frame_and_1011(platform, case):
    message, code, words = OPENPI[case]
    with talk(platform, native=False) as session:
        reply = session.ask(message)
        assert isinstance(reply, str)
        assert reply.startswith(f"{code}: "), reply
        assert all(word in reply for word in words), reply
        assert "Traceback" not in reply
        with pytest.raises(ConnectionClosed) as closed:
            session.hear()
        assert closed.value.rcvd.code == 1011
    with talk(platform, native=False) as session:
        assert session.ask(flat())["actions"].shape == (16, 4)


def test_a_two_camera_policy_names_the_camera_that_is_missing(platform):
    with talk(platform, "/policy/crashing") as session:
        check(session.ask(act(cameras=("left",))), "invalid_request", ["right", "missing", "left"])
        assert session.ask(act(cameras=("left", "right")))["type"] == "action"
