from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import RoboserveError
from clients.wire import decode, encode
from models.policies.scripted import Interface
from serving.fields import request_id_of, short_text
from serving.requests import parse_act
from tests.serving.asgi import Session, server
from tests.serving.speaking import act, flat, image, observation

SPEC = replace(Interface(image_size=32).spec("test", supports_rtc=True), integration_steps=10)


def parse(message):
    return parse_act(message, SPEC, session="own", max_pixels=10**6)


def test_a_plain_request():
    request = parse(act("id", deadline_ms=50, options={"seed": 3}))
    assert (request.request_id, request.session, request.deadline_ms) == ("id", "own", 50.0)
    assert request.options.seed == 3
    assert request.executed is None
    assert not request.return_model_actions
    assert request.observation.state.dtype == np.float32
    assert request.observation.images["front"].shape == (32, 32, 3)


def test_entries_left_out_and_entries_of_null_are_the_same():
    bare = parse({"observation": observation()})
    empty = dict.fromkeys(("request_id", "session", "deadline_ms", "adapter", "options", "model"))
    names = ("seed", "integration_steps", "inference_delay", "leftover", "executed", "execution_horizon")
    nulls = parse({**empty, "observation": observation(), "options": dict.fromkeys((*names, "return_model_actions"))})
    for request in (bare, nulls):
        assert (request.request_id, request.session, request.adapter) == (None, "own", None)
        assert request.options.inference_delay == 0
        assert request.options.leftover is None


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_numbers_of_numpy_are_numbers(kind):
    request = parse(act(deadline_ms=kind(100), options={"seed": kind(7), "executed": kind(3)}))
    assert (request.deadline_ms, request.options.seed, request.executed) == (100.0, 7, 3)
    assert type(request.options.seed) is int


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_deadline_may_be_any_float(kind):
    assert parse(act(deadline_ms=kind(1.5))).deadline_ms == 1.5


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i8", "u1", "u8"])
def test_a_state_may_be_of_any_number(kind):
    state = np.arange(8).astype(kind)
    parsed = parse(act(observation={**observation(), "state": state})).observation.state
    assert parsed.dtype == np.float32
    np.testing.assert_array_equal(parsed, np.arange(8))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"seed": np.bool_(True)}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"integration_steps": 0}, "integration_steps"),
        ({"integration_steps": 101}, "integration_steps"),
        ({"inference_delay": -1}, "inference_delay"),
        ({"inference_delay": 16}, "inference_delay"),
        ({"execution_horizon": 0}, "execution_horizon"),
        ({"execution_horizon": 17}, "execution_horizon"),
        ({"executed": -1}, "executed"),
        ({"executed": 2.0}, "executed"),
        ({"leftover": np.zeros((0, 4), np.float32)}, "leftover"),
        ({"leftover": np.zeros((17, 4), np.float32)}, "leftover"),
        ({"leftover": np.zeros(4, np.float32)}, "leftover"),
        ({"leftover": np.zeros((2, 4), np.int32)}, "leftover"),
        ({"leftover": [[0.0] * 4]}, "leftover"),
        ({"return_model_actions": "yes"}, "return_model_actions"),
    ],
)
def test_an_option_out_of_its_range_is_named(options, field):
    with pytest.raises(RoboserveError, match=field) as caught:
        parse(act(options=options))
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("option", ["seed", "integration_steps", "inference_delay", "leftover", "executed"])
def test_an_option_that_the_policy_would_ignore_is_refused(option):
    spec = replace(SPEC, supports_rtc=False, supports_seed=False, integration_steps=0)
    value = np.zeros((2, 4), np.float32) if option == "leftover" else 1
    with pytest.raises(RoboserveError, match=f"options.{option}: policy 'test' does not support it"):
        parse_act(act(options={option: value}), spec, session="", max_pixels=10**6)
    parse(act(options={option: value}))


def test_the_first_bad_value_of_the_state_is_named_with_its_own_value():
    state = np.zeros(8)
    state[[2, 5]] = [np.inf, np.nan]
    with pytest.raises(RoboserveError, match="'s2' is inf"):
        parse(act(observation={**observation(), "state": state}))


def test_ids():
    assert request_id_of({"request_id": "a"}) == "a"
    for unusable in ({"request_id": 3}, {"request_id": "x" * 129}, {}, [1], None, {"request_id": np.zeros(3)}):
        assert request_id_of(unusable) is None
    assert short_text({"a": ""}, "a") is None
    assert short_text({"a": "x" * 128}, "a") == "x" * 128


_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=20),
        st.binary(max_size=20),
        st.sampled_from(
            [
                np.zeros(0),
                np.zeros(3),
                np.full(8, np.nan),
                np.ones((2, 4), np.float32),
                np.zeros((32, 32, 3), np.uint8),
                np.array(3.0),
                np.zeros(8, np.bool_),
                np.float32(2),
                np.int64(-1),
                np.bool_(True),
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["images", "front", "state", "seed", "x"]), inner, max_size=4),
    ),
    max_leaves=6,
)
_TOP = ["type", "request_id", "session", "deadline_ms", "model", "adapter", "observation", "options", "extra"]
_INNER = ["images", "state", "instruction", "extra"]
_OPTIONS = ["seed", "integration_steps", "inference_delay", "leftover", "executed", "execution_horizon", "other"]


@st.composite
def messages(draw):
    """A good request with a few entries replaced by anything at all."""
    message = act(session="s", options={"seed": 1})
    for name, value in draw(st.dictionaries(st.sampled_from(_TOP), _VALUES, max_size=2)).items():
        message[name] = value
    for where, names in (("observation", _INNER), ("options", _OPTIONS)):
        if isinstance(message[where], dict):
            changes = draw(st.dictionaries(st.sampled_from(names), _VALUES, max_size=2))
            message[where] = {**message[where], **changes}
    return message


def parsed_or_refused(message):
    try:
        return parse(message)
    except RoboserveError as error:
        return error


@settings(max_examples=300)
@given(messages())
def test_whatever_is_sent_is_parsed_or_refused_by_a_clients_error(message):
    request = parsed_or_refused(message)
    if isinstance(request, RoboserveError):
        assert request.kind.http in (400, 413, 504)
        assert request.message.isprintable()
        return
    assert request.observation.images["front"].shape == (32, 32, 3)
    assert np.isfinite(request.observation.state).all()
    assert isinstance(request.session, str)
    assert len(request.session) <= 128
    assert request.deadline_ms is None or 0 < request.deadline_ms <= 3.6e6
    assert request.executed is None or 0 <= request.executed <= 16


@settings(max_examples=50)
@given(st.lists(messages(), min_size=1, max_size=8))
def test_a_session_answers_whatever_map_it_is_sent_and_none_is_our_fault(batch):
    async def converse():
        served = server()
        session = await Session().open(served.app)
        await session.hear()
        replies = []
        for message in batch:
            session.say(decode_able(message))
            replies.append(await session.hear())
        last = await session.ask(act("last"))
        await session.end()
        await served.close()
        return replies, last

    replies, last = asyncio.run(converse())
    assert last["request_id"] == "last"
    assert last["type"] == "action"
    for reply in replies:
        assert reply.get("code") not in ("internal", "policy_failed", "malformed"), reply


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(["observation/front", "observation/state", "prompt", "x"]), _VALUES, max_size=3))
def test_an_openpi_session_answers_whatever_map_it_is_sent_and_none_is_our_fault(changes):
    async def converse():
        served = server()
        session = await Session().open(served.app, subprotocols=[])
        await session.hear()
        reply = await session.ask(decode_able({**flat(), **changes}))
        if isinstance(reply, str):
            assert await session.hear() == 1011
            await asyncio.wait_for(session.task, 20)
        else:
            await session.end()
        await served.close()
        return reply

    reply = asyncio.run(converse())
    if isinstance(reply, str):
        assert reply.partition(":")[0] in ("invalid_request", "invalid_image", "invalid_state", "too_large"), reply
    else:
        assert reply["actions"].shape == (16, 4)


def decode_able(message):
    """What of a message survives the wire is what a session may be sent."""
    packed = encode(message)
    decode(packed)
    return packed


def test_an_image_is_sized_before_it_is_decoded():
    spec = replace(SPEC, cameras=(replace(SPEC.cameras[0], height=64),))
    with pytest.raises(RoboserveError, match="32 x 32 pixels, must be 32 x 64"):
        parse_act(act(observation={**observation(), "images": {"front": image()}}), spec, session="", max_pixels=10**6)
