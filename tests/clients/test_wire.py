from __future__ import annotations

import hypothesis.extra.numpy as npst
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import RoboserveError
from clients.wire import decode, encode

# Bytes of a stock openpi client for the same values.
GOLDEN = {
    "empty map": ({}, "80"),
    "array": (
        {"actions": np.array([[1, 2]], dtype=np.float32)},
        (
            "81a7616374696f6e7384c40b5f5f6e6461727261795f5fc3c40464617461c4080000803f00000040"
            "c4056474797065a33c6634c4057368617065920102"
        ),
    ),
    "scalar": (
        {"s": np.float32(1.5)},
        "81a17383c40d5f5f6e7067656e657269635f5fc3c40464617461cb3ff8000000000000c4056474797065a33c6634",
    ),
}
DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

texts = st.text(st.characters(codec="utf-8"), max_size=30)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: npst.arrays(np.dtype(dtype), npst.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=3))
)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=300)
)
scalars = st.sampled_from(DTYPES[:-1]).flatmap(
    lambda dtype: npst.arrays(np.dtype(dtype), (1,)).map(lambda array: array[0])
)
# Four levels of maps and lists: within the depth limit with the array's own map and shape inside.
trees = st.dictionaries(
    texts,
    st.recursive(
        plain | arrays | scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=8,
    ).filter(lambda tree: nesting(tree) <= 4),
    max_size=5,
)


def nesting(tree: object) -> int:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return 1 + max(map(nesting, children), default=0) if isinstance(tree, (dict, list)) else 0


def assert_same(given_value: object, got: object) -> None:
    if isinstance(given_value, dict):
        assert isinstance(got, dict)
        assert list(got) == list(given_value)
        for key, value in given_value.items():
            assert_same(value, got[key])
    elif isinstance(given_value, list):
        assert isinstance(got, list)
        assert len(got) == len(given_value)
        for one, other in zip(given_value, got, strict=True):
            assert_same(one, other)
    elif isinstance(given_value, (np.ndarray, np.generic)):
        assert isinstance(got, type(given_value))
        assert got.dtype == given_value.dtype
        np.testing.assert_array_equal(got, given_value)
        assert np.shape(got) == np.shape(given_value)
    else:
        assert type(got) is type(given_value)
        assert got == given_value


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_those_of_the_field(name: str) -> None:
    value, expected = GOLDEN[name]
    assert encode(value).hex() == expected
    assert_same(value, decode(bytes.fromhex(expected)))


@given(trees)
def test_every_tree_comes_back_as_it_went(tree: dict) -> None:
    assert_same(tree, decode(encode(tree)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 7), (3,), (2, 0, 3), (2, 1, 2, 1, 2, 1)])
def test_arrays_of_every_dtype_and_shape_are_writable_copies(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype=dtype)
    message = encode({"a": array})
    got = decode(message)["a"]
    assert_same(array, got)
    assert got.flags.owndata
    got[...] = 0
    assert_same(array, decode(message)["a"])


def test_fortran_order_and_slices_arrive_as_the_values_they_are() -> None:
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for view in (np.asfortranarray(image), image[::-1, ::2], image.transpose(2, 0, 1)):
        np.testing.assert_array_equal(decode(encode(view)), view)


def test_foreign_byte_order_becomes_native() -> None:
    got = decode(encode(np.array([1.5, -2.0], dtype=">f4")))
    assert got.dtype.isnative
    assert got.tolist() == [1.5, -2.0]


def test_booleans_are_zero_or_one_whatever_bytes_came() -> None:
    message = encode(np.array([True, True])).replace(b"\x01\x01", b"\x02\x00")
    assert decode(message).view(np.uint8).tolist() == [1, 0]


def test_nan_and_infinity_survive() -> None:
    got = decode(encode({"a": np.array([np.nan, np.inf]), "s": np.float32(-np.inf), "n": float("nan")}))
    assert np.isnan(got["a"][0])
    assert np.isinf(got["a"][1])
    assert got["s"] == -np.inf
    assert np.isnan(got["n"])


def test_tuples_arrive_as_lists() -> None:
    assert decode(encode({"t": (1, (2,))})) == {"t": [1, [2]]}


def test_any_msgpack_implementation_can_read_what_we_write() -> None:
    tree = msgpack.unpackb(encode({"a": np.arange(3, dtype="<i2")}), raw=False)
    assert tree == {"a": {b"__ndarray__": True, b"data": b"\0\0\1\0\2\0", b"dtype": "<i2", b"shape": [3]}}


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([1j]),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.zeros(2, dtype="f4,f4"),
        np.complex64(1),
        object(),
        {1, 2},
        2**64,
        "\ud800",
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_values_without_a_wire_form_are_refused_before_they_travel(value: object) -> None:
    with pytest.raises(RoboserveError) as refusal:
        encode({"a": value})
    assert refusal.value.code == "invalid_request"


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list = []
    loop.append(loop)
    with pytest.raises(RoboserveError, match="cannot be encoded"):
        encode(loop)
