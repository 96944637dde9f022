"""The wire codec: msgpack maps with numpy arrays, and the trust boundary of the platform.

An array is a map with the byte keys `__ndarray__`, `data`, `dtype`, `shape`; a numpy scalar has `__npgeneric__`,
`data`, `dtype`. This is openpi's encoding (openpi-client, msgpack_numpy.py), so stock openpi clients and servers
understand it.

Unlike that one, the decoder trusts nothing it is told: it walks the message once for its limits, before any object is
built, allows the array kinds b, i, u, f only (an object array over foreign bytes is a wild pointer), wants the buffer's
length to equal shape times itemsize, and copies, so that arrays are writable and own their memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import msgpack
import numpy as np

from clients.errors import RoboserveError

ARRAY_KINDS = "biuf"
_ND, _NP, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
_ARRAY_KEYS, _SCALAR_KEYS = {_ND, _DATA, _DTYPE, _SHAPE}, {_NP, _DATA, _DTYPE}
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
_DTYPES = {
    f"{order}{kind}{size}": np.dtype(f"{order}{kind}{size}")
    for order in "<>|="
    for kind in ARRAY_KINDS
    for size in _SIZES[kind]
}


@dataclass(frozen=True)
class WireLimits:
    """Caps that hold before any object of a message is built.

    Attributes:
        message_bytes: the whole message.
        text_bytes: one string.
        map_keys: entries of one map.
        list_items: items of one list.
        depth: nesting of maps and lists.
        array_dims: dimensions of one array.
        objects: values in the whole message, keys included.
    """

    message_bytes: int = 16 * 1024 * 1024
    text_bytes: int = 64 * 1024
    map_keys: int = 256
    list_items: int = 4096
    depth: int = 8
    array_dims: int = 6
    objects: int = 20_000


DEFAULT_LIMITS = WireLimits()


def encode(message: Any) -> bytes:
    """Encode a message (maps, lists, text, bytes, numbers, numpy arrays and scalars).

    Raises:
        RoboserveError: `invalid_request` for an array of a kind other than b, i, u, f or a value that has no wire form.
    """
    try:
        packed = msgpack.packb(message, default=_pack_numpy, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise RoboserveError("invalid_request", f"message: cannot be encoded: {error}") from error
    return bytes(packed)


def decode(data: bytes, limits: WireLimits = DEFAULT_LIMITS) -> Any:
    """Decode one message from an untrusted peer.

    Returns:
        maps with text keys, lists, text, bytes, numbers, and numpy arrays that are writable copies.

    Raises:
        RoboserveError: `too_large` over a limit, `malformed` where the bytes are no message of this protocol.
    """
    if len(data) > limits.message_bytes:
        raise RoboserveError("too_large", f"message: {len(data)} bytes, limit {limits.message_bytes}")
    _scan(data, limits)
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, object_pairs_hook=_Reviver(limits))
    except RoboserveError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RoboserveError("malformed", "message: not a valid msgpack message") from error


def with_entry(packed_map: bytes, key: str, value: Any) -> bytes:
    """Return an encoded map of fewer than 15 entries with one entry more, without encoding the rest again.

    So a reply can carry the time that its own encoding took.
    """
    if not 0x80 <= packed_map[0] < 0x8F:
        raise ValueError("with_entry: needs an encoded map of fewer than 15 entries")
    return bytes([packed_map[0] + 1]) + packed_map[1:] + encode(key) + encode(value)


def _pack_numpy(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in ARRAY_KINDS:
        raise TypeError(f"array of dtype {value.dtype}: allowed kinds are {', '.join(ARRAY_KINDS)}")
    if isinstance(value, np.ndarray):
        return {_ND: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {_NP: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    raise TypeError(f"a value of type {type(value).__name__} has no wire form")


class _Reviver:
    """Called for every map while it is unpacked, innermost first: turns it into a plain map, an array or a scalar."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits

    def __call__(self, pairs: List[Tuple[Any, Any]]) -> Any:
        node = dict(pairs)
        if len(node) != len(pairs):
            raise RoboserveError("malformed", "map: a key comes twice")
        if _ND in node:
            return _array(node, self._limits)
        if _NP in node:
            return _scalar(node)
        if not all(isinstance(key, str) for key in node):
            raise RoboserveError("malformed", "map: keys must be text")
        return node


def _dtype(name: Any) -> np.dtype[Any]:
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise RoboserveError("malformed", f"array dtype: kind must be one of {', '.join(ARRAY_KINDS)}, 8 bytes or less")
    return dtype


def _array(node: Dict[Any, Any], limits: WireLimits) -> np.ndarray[Any, Any]:
    if node.keys() != _ARRAY_KEYS:
        raise RoboserveError("malformed", "array: needs __ndarray__, data, dtype and shape, and nothing else")
    data, shape, dtype = node[_DATA], node[_SHAPE], _dtype(node[_DTYPE])
    if not isinstance(data, bytes):
        raise RoboserveError("malformed", "array data: must be bytes")
    if not isinstance(shape, list) or any(type(side) is not int for side in shape):
        raise RoboserveError("malformed", "array shape: must be a list of integers")
    if len(shape) > limits.array_dims:
        raise RoboserveError("too_large", f"array shape: {len(shape)} dimensions, limit {limits.array_dims}")
    if any(side < 0 for side in shape):
        raise RoboserveError("malformed", "array shape: a dimension is negative")
    # The sides of an array without elements count too: numpy multiplies them, and they can overflow.
    if math.prod(side for side in shape if side) > limits.message_bytes:
        raise RoboserveError("malformed", "array shape: its dimensions are larger than any message")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise RoboserveError("malformed", f"array: its shape and dtype do not fit the {len(data)} bytes sent")
    if dtype.kind == "b":
        flags: np.ndarray[Any, Any] = np.array(np.frombuffer(data, dtype=np.uint8).reshape(shape), dtype=np.bool_)
        return flags
    return np.array(np.frombuffer(data, dtype=dtype).reshape(shape), dtype=dtype.newbyteorder("="))


def _scalar(node: Dict[Any, Any]) -> Any:
    if node.keys() != _SCALAR_KEYS:
        raise RoboserveError("malformed", "scalar: needs __npgeneric__, data and dtype, and nothing else")
    dtype, value = _dtype(node[_DTYPE]).newbyteorder("="), node[_DATA]
    if not _fits(dtype, value):
        raise RoboserveError("malformed", f"scalar: the value is not one of dtype {dtype.str}")
    return dtype.type(value)


def _fits(dtype: np.dtype[Any], value: Any) -> bool:
    """Whether a dtype holds a plain number without changing what it is."""
    if dtype.kind == "b":
        return isinstance(value, bool)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return type(value) is int and bool(bounds.min <= value <= bounds.max)
    if type(value) is int and abs(value) > 2**53:
        return False
    return type(value) in (int, float) and (not math.isfinite(value) or abs(value) <= float(np.finfo(dtype).max))


def _scan(data: bytes, limits: WireLimits) -> None:
    """Walk over the raw bytes once and build nothing: structure, counts and lengths (msgpack specification)."""
    at, end, values = 0, len(data), 0
    outer: List[int] = []  # values still to come in each map or list around the present one
    left = 1
    while left or outer:
        if not left:
            left = outer.pop()
            continue
        left -= 1
        values += 1
        if values > limits.objects:
            raise RoboserveError("too_large", f"message: more than {limits.objects} values")
        if at >= end:
            raise _ends_early()
        kind, length_bytes, number = _TAGS[data[at]]
        at += 1
        if length_bytes:
            number = int.from_bytes(data[at : at + length_bytes], "big")
            at += length_bytes
        if at > end:
            raise _ends_early()
        if kind == _BYTES:
            at += number
        elif kind == _TEXT:
            if number > limits.text_bytes:
                raise RoboserveError("too_large", f"text: {number} bytes, limit {limits.text_bytes}")
            at += number
        else:
            _check_container(kind, number, len(outer), limits)
            outer.append(left)
            left = number * (2 if kind == _MAP else 1)
    if at > end:
        raise _ends_early()
    if at != end:
        raise RoboserveError("malformed", "message: bytes left over after its end")


def _check_container(kind: int, count: int, depth: int, limits: WireLimits) -> None:
    if kind == _FOREIGN:
        raise RoboserveError("malformed", "message: extension and reserved types are not part of the protocol")
    limit, noun = (limits.map_keys, "map") if kind == _MAP else (limits.list_items, "list")
    if count > limit:
        raise RoboserveError("too_large", f"{noun}: {count} entries, limit {limit}")
    if depth >= limits.depth:
        raise RoboserveError("too_large", f"message: nested deeper than {limits.depth}")


def _ends_early() -> RoboserveError:
    return RoboserveError("malformed", "message: ends before its declared length")


_BYTES, _TEXT, _LIST, _MAP, _FOREIGN = range(5)


def _tag(tag: int) -> Tuple[int, int, int]:
    """Say what a first byte announces: the kind, how many bytes of length follow, and the length where none do."""
    if 0x80 <= tag <= 0x8F:
        return _MAP, 0, tag & 0x0F
    if 0x90 <= tag <= 0x9F:
        return _LIST, 0, tag & 0x0F
    if 0xA0 <= tag <= 0xBF:
        return _TEXT, 0, tag & 0x1F
    if tag <= 0x7F or tag >= 0xE0 or tag in (0xC0, 0xC2, 0xC3):
        return _BYTES, 0, 0
    return _NUMBERS.get(tag) or _SIZED.get(tag) or (_FOREIGN, 0, 0)


_NUMBERS = {0xCA + index: (_BYTES, 0, size) for index, size in enumerate((4, 8, 1, 2, 4, 8, 1, 2, 4, 8))}
_SIZED = {
    0xC4: (_BYTES, 1, 0),
    0xC5: (_BYTES, 2, 0),
    0xC6: (_BYTES, 4, 0),
    0xD9: (_TEXT, 1, 0),
    0xDA: (_TEXT, 2, 0),
    0xDB: (_TEXT, 4, 0),
    0xDC: (_LIST, 2, 0),
    0xDD: (_LIST, 4, 0),
    0xDE: (_MAP, 2, 0),
    0xDF: (_MAP, 4, 0),
}
_TAGS = tuple(map(_tag, range(256)))
