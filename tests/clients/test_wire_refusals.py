from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from clients.errors import RoboserveError
from clients.wire import DEFAULT_LIMITS, WireLimits, decode, encode

ND = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
NP = {b"__npgeneric__": True, b"data": 1, b"dtype": "<i4"}


def refused(data: bytes, limits: WireLimits = DEFAULT_LIMITS) -> RoboserveError:
    with pytest.raises(RoboserveError) as refusal:
        decode(data, limits)
    return refusal.value


def pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


def array(**changes: Any) -> bytes:
    return pack({"a": {**ND, **{key.encode(): value for key, value in changes.items()}}})


def test_the_unchanged_array_is_good() -> None:
    assert decode(array())["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "dtype", ["|O", "O", "|V8", "V8", "<c8", "<M8", "<m8", "|S8", "<U2", "<f16", "<c16", "f4,f4", "(2,)f4"]
)
def test_dtypes_that_are_no_numbers_are_refused(dtype: str) -> None:
    error = refused(array(dtype=dtype))
    assert error.code == "malformed"
    assert "dtype" in error.message


@pytest.mark.parametrize(
    "dtype", ["", "x", "<f3", "float", "4", ",", "<f4\0", "é", "<f4" * 40, b"<f4", 4, None, [], {}]
)
def test_dtypes_that_are_nothing_are_refused(dtype: Any) -> None:
    assert refused(array(dtype=dtype)).code in {"malformed", "too_large"}


@pytest.mark.parametrize(
    "shape",
    [
        [-1],
        [-2, -1],
        [1],
        [3],
        [2, 2],
        [],
        [2.0],
        [True, 2],
        ["2"],
        [None],
        2,
        "2",
        b"\2",
        None,
        [2**63 - 1],
        [2**64 - 1],
        [2**32, 2**32],
    ],
    ids=repr,
)
def test_shapes_that_do_not_describe_the_buffer_are_refused(shape: Any) -> None:
    error = refused(array(shape=shape))
    assert error.code == "malformed"
    assert "array" in error.message


@pytest.mark.parametrize("shape", [[0, 2**24, 2**24, 2**24], [2**24, 2**24, 2**24, 2**24, 0], [2**24] * 5 + [0]])
def test_an_empty_array_may_not_have_sides_that_overflow(shape: list[int]) -> None:
    assert refused(array(data=b"", shape=shape)).code == "malformed"


def test_too_many_dimensions_are_refused() -> None:
    assert refused(array(shape=[1] * 6 + [2])).code == "too_large"


@pytest.mark.parametrize("data", ["text", None, 3, [0] * 8, {}, bytes(7), bytes(9), b""])
def test_buffers_of_the_wrong_length_or_type_are_refused(data: Any) -> None:
    assert refused(array(data=data)).code == "malformed"


@pytest.mark.parametrize("missing", sorted(set(ND) - {b"__ndarray__"}))
def test_an_array_without_one_of_its_keys_is_refused(missing: bytes) -> None:
    assert refused(pack({key: value for key, value in ND.items() if key != missing})).code == "malformed"


@pytest.mark.parametrize("extra", [{b"more": 1}, {"data": b""}, {b"__npgeneric__": True}])
def test_an_array_with_more_keys_is_refused(extra: dict[Any, Any]) -> None:
    assert refused(pack({**ND, **extra})).code == "malformed"


def test_a_key_that_comes_twice_is_refused() -> None:
    twice = b"\x85" + pack(ND)[1:] + pack(b"shape") + pack([2])
    assert "twice" in refused(twice).message
    assert "twice" in refused(b"\x82" + (pack("prompt") + pack("open")) * 2).message


@pytest.mark.parametrize("key", [1, 1.5, None, True, b"bytes", [1], {"a": 1}], ids=repr)
def test_keys_must_be_text(key: Any) -> None:
    data = b"\x81" + pack(key) + pack(1)
    assert refused(data).code == "malformed"


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("<i1", 300),
        ("|u1", -1),
        ("<i4", 1.5),
        ("<i4", True),
        ("|b1", 1),
        ("<f4", 1e300),
        ("<f2", 70000),
        ("<f4", "1"),
        ("<f4", None),
        ("|O", 1),
        ("<M8", 1),
        ("<f4", [1]),
    ],
)
def test_scalars_that_their_dtype_cannot_hold_are_refused(dtype: str, value: Any) -> None:
    assert refused(pack({**NP, b"dtype": dtype, b"data": value})).code == "malformed"


@pytest.mark.parametrize(
    "data",
    [
        pack(msgpack.ExtType(1, b"x")),
        pack(msgpack.ExtType(5, bytes(16))),
        pack(msgpack.ExtType(5, bytes(300))),
        pack(msgpack.Timestamp(1)),
        b"\xc1",
        b"\x91\xc1",
    ],
)
def test_extension_and_reserved_types_are_refused(data: bytes) -> None:
    error = refused(data)
    assert error.code == "malformed"
    assert "extension" in error.message


@pytest.mark.parametrize("data", [b"", b"\x80\x80", b"\xa1\xff", pack({"a": 1})[:-1], b"\xcb\0", b"\xd9", b"\xc6\0\0"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    assert refused(data).code == "malformed"


@pytest.mark.parametrize("cut", range(0, len(array()), 3))
def test_a_message_cut_anywhere_is_refused(cut: int) -> None:
    assert refused(array()[:cut]).code == "malformed"


@pytest.mark.parametrize(
    "header",
    [b"\xc4\xff", b"\xc5\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd9\xff", b"\xda\xff\xff", b"\xdb\xff\xff\xff\xff"],
)
def test_declared_lengths_are_not_believed(header: bytes) -> None:
    assert refused(b"\x81\xa1a" + header + b"short").code in {"malformed", "too_large"}


@pytest.mark.parametrize("header", [b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_declared_counts_are_refused_before_a_slot_is_made(header: bytes) -> None:
    assert refused(header).code == "too_large"


@pytest.mark.parametrize(
    ("value", "limits", "limit"),
    [
        ({"a": "x" * 11}, WireLimits(text_bytes=10), "10"),
        ({"é" * 6: 1}, WireLimits(text_bytes=10), "10"),
        ({"a": list(range(5))}, WireLimits(list_items=4), "4"),
        ({str(i): i for i in range(5)}, WireLimits(map_keys=4), "4"),
        ([[[[]]]], WireLimits(depth=3), "3"),
        ({"a": {"b": {"c": {}}}}, WireLimits(depth=3), "3"),
        ([[1, 2], [3, 4]], WireLimits(objects=6), "6"),
        ({"a": bytes(50)}, WireLimits(message_bytes=50), "50"),
    ],
)
def test_every_limit_names_itself(value: Any, limits: WireLimits, limit: str) -> None:
    error = refused(pack(value), limits)
    assert error.code == "too_large"
    assert limit in error.message
    decode(pack(value))


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        ({"a": "x" * 10}, WireLimits(text_bytes=10)),
        (list(range(4)), WireLimits(list_items=4)),
        ({str(i): i for i in range(4)}, WireLimits(map_keys=4)),
        ([[[1]]], WireLimits(depth=3)),
        ([[1, 2], [3, 4]], WireLimits(objects=7)),
    ],
)
def test_what_just_fits_is_read(value: Any, limits: WireLimits) -> None:
    assert decode(pack(value), limits) == value


def test_nesting_cannot_exhaust_the_stack() -> None:
    for opening in (b"\x91", b"\x81\xa1a"):
        assert refused(opening * 1_000_000 + b"\xc0").code == "too_large"


def test_a_count_bomb_is_refused_by_the_number_of_its_values() -> None:
    bomb = b"\xdc\x10\x00" * 3 + b"\xc0" * 4096 * 200
    assert refused(bomb).code in {"too_large", "malformed"}
    nested = pack([[None] * 4096] * 10)
    assert "values" in refused(nested).message


def test_text_keys_that_look_like_an_array_stay_a_map() -> None:
    value = {"__ndarray__": True, "data": b"", "dtype": "|O", "shape": [1]}
    assert decode(pack(value)) == value


def test_refusals_carry_no_content_and_no_address() -> None:
    private = "hunter2hunter2"
    for data in (array(dtype=private[:8]), array(data=private), pack({b"key": private}), b"\x81" + pack(private)):
        assert private[:8] not in refused(data).message
        assert "0x" not in refused(data).message


def test_an_array_message_of_the_robots_size_is_within_the_limits() -> None:
    observation = {"images": {name: np.zeros((480, 640, 3), np.uint8) for name in "abcd"}, "state": np.zeros(64)}
    assert decode(encode(observation))["images"]["d"].shape == (480, 640, 3)
